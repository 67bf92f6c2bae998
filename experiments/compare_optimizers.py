"""Which of SGD, momentum, RMSProp, Adagrad and Adam is faster, and is that chance?

Claim: with a learning rate chosen on validation data for each, the five differ little,
and which is fastest depends on the problem; a paired test over seeds shows which
differences are more than chance.

Command:  python -m experiments.compare_optimizers
Minutes:  three on two cores.
Expected: on digits Adam 35 steps, Adagrad and RMSProp 40, momentum 45, SGD 55, all but
          Adagrad slower beyond chance; on the noisy quadratic Adagrad and momentum 180,
          SGD 190, RMSProp 225, Adam 270; on diabetes no difference beyond chance.

Four problems: handwritten digits, breast cancer and diabetes (scikit-learn's), each
with a small dense network, and a quadratic with noise in its gradients. They are
compared by the number of steps to a fixed loss on the validation split, over 20 seeds
that draw weights and batches; the learning rate was chosen on other seeds. Two
optimizers are compared seed by seed with the exact sign test; Holm's correction keeps
the chance of a false statement per problem below 5 %. Their paths are drawn on
Rosenbrock's and Beale's functions.

The run folder (``runs/compare_optimizers/...``) holds config.json, manifest.json,
steps.png and paths.png.
"""

import dataclasses
from pathlib import Path
from typing import Any

import experiments.races as races
import fngrad as fg
from experiments.outputs import finish, new_figure, new_folder, run_cli
from fngrad.sweeps.results.statistics import holm, sign_test

PATH_RATES = {  # of the paths, which are for illustration, not comparison
    "rosenbrock": (1e-3, 1e-3, 3e-3, 0.5, 0.05),
    "beale": (1e-2, 3e-3, 1e-2, 0.5, 0.1),
}
LEVEL = 0.05
PROBLEMS = {
    "digits": races.digits,
    "breast cancer": races.breast_cancer,
    "diabetes": races.diabetes,
    "noisy quadratic": races.noisy_quadratic,
}


@dataclasses.dataclass(frozen=True)
class Config(races.Rules):
    """The rules of the race, how long the paths are, and where the results go."""

    # By their names; paths are drawn of these five.
    optimizers: tuple[str, ...] = ("sgd", "momentum", "rmsprop", "adagrad", "adam")
    problems: tuple[str, ...] = tuple(PROBLEMS)  # by their names
    path_steps: int = 500  # of the paths that are drawn
    runs: Path = Path("runs/compare_optimizers")  # where the run folder is made


def statement(rows: dict[str, races.Row]) -> tuple[str, dict[str, float]]:
    """Return which optimizers are slower than the first, beyond chance, in words."""
    first, *others = races.ranking(rows)
    p = holm({name: sign_test(rows[first].steps, rows[name].steps) for name in others})
    slower = [f"{name} (p = {p[name]:.2g})" for name in others if p[name] < LEVEL]
    level = [f"{name} (p = {p[name]:.2g})" for name in others if p[name] >= LEVEL]
    text = f"{first} needs fewer steps than {', '.join(slower) or 'none of the others'}"
    if level:
        text += f"; not distinguished from {', '.join(level)}"
    return text, p


def draw_paths(config: Config) -> Any:
    """Draw the optimizers' paths on Rosenbrock's and Beale's functions."""
    figure = new_figure(13, 5.5)
    parts = figure.subfigures(1, len(PATH_RATES))
    for part, (name, rates) in zip(parts, PATH_RATES.items(), strict=True):
        place = fg.landscapes.CATALOG[name]
        chosen = dict(zip(Config.optimizers, rates, strict=True))
        paths = {
            f"{rule}, {chosen[rule]:g}": fg.landscapes.descend(
                place.f, place.start, fg.REGISTRY[rule](chosen[rule]), config.path_steps
            )
            for rule in config.optimizers
            if rule in chosen
        }
        fg.landscapes.plot(
            place.f,
            paths,
            lower=place.lower,
            upper=place.upper,
            minima=place.minima,
            saddles=place.saddles,
            title=f"{name}: {config.path_steps} steps, learning rate in the legend",
            figure=part,
        )
    return figure


def main(config: Config) -> dict[str, dict[str, races.Row]]:
    """Race, test, print tables and statements, draw."""
    races.check(config)
    if not config.problems or not set(config.problems) <= PROBLEMS.keys():
        raise SystemExit(f"need problems among {list(PROBLEMS)}, got {config.problems}")
    problems = [PROBLEMS[name]() for name in config.problems]
    folder = new_folder(config)
    results = races.race(problems, config)
    p_values = {}
    for problem in problems:
        rows = results[problem.name]
        text, p_values[problem.name] = statement(rows)
        print(f"{races.table(problem, rows, config)}\n{text}\n")
    found = {"races": races.summary(results), "p_values": p_values}
    finish(
        folder,
        found,
        steps=races.draw(results, config),
        paths=draw_paths(config),
    )
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)

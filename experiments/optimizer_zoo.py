"""Run every registered optimizer to a fixed target, on real data and under noise.

Claim: with a learning rate chosen for it on other seeds, every optimizer of the
registry reaches the target on handwritten digits and on a noisy quadratic; how many
steps it takes differs far more between optimizers than between seeds.

Command:  python -m experiments.optimizer_zoo
          python -m experiments.optimizer_zoo --optimizers sgd adam muon
Minutes:  eight on two cores for all of them.
Expected: on digits the adaptive rules need 40 to 100 steps to a validation loss of
          0.2 nats, plain SGD with its best rate is among the slower ones.

The digits are scikit-learn's, 8x8 pixels, learned by a dense network 64-32-10 in
batches of 64. The quadratic has 50 coordinates in a rotated basis, curvatures from
0.01 to 1, and gradients with Gaussian noise. The learning rate is the one of the grid
with the fewest median steps to the target over the tuning seeds; the table comes from
fresh seeds. A star says that it is at the edge of the grid.

The run folder (``runs/optimizer_zoo/...``) holds config.json, manifest.json with the
results, and zoo.png.
"""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from fngrad.extras import import_extra

MODEL = fg.models.mlp((64, 32, 10))
TUNING_SEED = 1000  # tuning seeds begin here, the table's at 0
RATES = tuple(float(f"{10.0**exponent:.1g}") for exponent in np.arange(-4, 2.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Config:
    """Who runs, how often, how long, and where the results go."""

    optimizers: tuple[str, ...] = tuple(fg.REGISTRY)
    rates: tuple[float, ...] = RATES
    seeds: int = 20  # for the table; also how many runs one compiled program trains
    tuning_seeds: int = 4  # for the choice of the learning rate
    steps: int = 400
    every: int = 5  # steps from one look at the validation loss to the next
    digits_target: float = 0.2  # nats
    quadratic_target: float = 0.05  # of 5 at the start
    noise: float = 0.1  # standard deviation of the quadratic's gradients
    runs: Path = Path("runs/optimizer_zoo")


class Problem(NamedTuple):
    """What is minimised, and when it counts as done."""

    name: str
    target: float
    init: Callable[[jax.Array], Any]  # key -> params
    loss_fn: Callable[[Any, Any], jax.Array]
    metric_fn: Callable[[Any, Any], dict[str, Any]]
    data: Any  # a pytree
    batches: Callable[[Any, jax.Array], Any]  # (data, seed) -> what `run` folds over
    held_out: Any


class Row(NamedTuple):
    """What one optimizer needed on one problem."""

    rate: float
    is_at_edge: bool
    steps: np.ndarray  # to the target, one for each seed; infinite where not reached

    @property
    def quartiles(self) -> np.ndarray:
        """The quartiles of the steps; interpolation would mix in infinities."""
        return np.quantile(self.steps, [0.25, 0.5, 0.75], method="higher")


def digits(config: Config) -> Problem:
    """Cross-entropy of a dense network on handwritten digits."""
    splits = fg.data.digits()
    predict = fg.layers.batched(MODEL)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            predict(params, batch["x"]), batch["y"], reduction="mean"
        )

    def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
        return {"loss": fg.metrics.log_loss(predict(params, batch["x"]), batch["y"])}

    return Problem(
        "digits",
        config.digits_target,
        MODEL.init,
        loss_fn,
        metric_fn,
        fg.data.from_arrays(splits.train, batch_size=64),
        lambda data, seed: data.reseed(seed),
        splits.validation,
    )


def noisy_quadratic(config: Config) -> Problem:
    """x'Ax / 2 with noise e in its gradients: the loss is x'Ax / 2 + e'x."""
    curvatures = np.logspace(-2, 0, 50)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))
    a = jnp.asarray((basis * curvatures) @ basis.T, jnp.float32)

    def value(params: Any, a: jax.Array) -> jax.Array:
        x = params["x"].reshape(-1)
        return x @ a @ x / 2

    def batches(data: Any, seed: jax.Array) -> Any:
        key = jax.random.key(seed)

        def batch(step: jax.Array) -> Any:
            noise = jax.random.normal(jax.random.fold_in(key, step), (50,))
            return {"a": data, "noise": config.noise * noise}

        return batch

    return Problem(
        "noisy quadratic",
        config.quadratic_target,
        # A matrix, so that the rules for matrices have one.
        lambda key: {"x": jax.random.normal(key, (10, 5))},
        lambda p, batch: value(p, batch["a"]) + p["x"].reshape(-1) @ batch["noise"],
        lambda p, batch: {"loss": jax.vmap(lambda a: value(p, a))(batch["a"])},
        a,
        batches,
        {"a": a[None]},
    )


def make_lanes(problem: Problem, name: str, config: Config) -> Callable[..., Any]:
    """Return the program (rates, seeds) -> validation losses, a run in each lane."""

    def train(rate: jax.Array, seed: jax.Array, data: Any, held_out: Any) -> Any:
        optimizer = fg.REGISTRY[name](rate)
        params = problem.init(jax.random.key(seed))
        _, history = fg.run(
            fg.make_step(problem.loss_fn, optimizer, metrics="loss"),
            fg.init_state(params, optimizer, seed),
            problem.batches(data, seed),
            config.steps,
            metric_fn=problem.metric_fn,
            eval_data=held_out,
            eval_every=config.every,
        )
        return history["val/loss"]

    program = jax.jit(jax.vmap(train, (0, 0, None, None)))

    def lanes(rates: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Train in groups of one size, so that it compiles once."""
        width, parts = config.seeds, []
        for start in range(0, len(seeds), width):
            group = np.arange(start, start + width) % len(seeds)
            losses = program(
                jnp.asarray(rates[group], jnp.float32),
                jnp.asarray(seeds[group]),
                problem.data,
                problem.held_out,
            )
            parts.append(np.asarray(losses))
        return np.concatenate(parts)[: len(seeds)]

    return lanes


def steps_to_target(losses: np.ndarray, target: float, every: int) -> np.ndarray:
    """Return the steps at the first loss on target, shape (runs,), else infinity."""
    reached = losses <= target
    first = every * (np.argmax(reached, axis=1) + 1.0)
    return np.where(reached.any(axis=1), first, np.inf)


def measure(problem: Problem, name: str, config: Config) -> Row:
    """Choose the learning rate on some seeds and count steps on others."""
    lanes = make_lanes(problem, name, config)
    seeds = TUNING_SEED + np.arange(config.tuning_seeds)
    losses = lanes(
        np.repeat(config.rates, config.tuning_seeds), np.tile(seeds, len(config.rates))
    )
    steps = steps_to_target(losses, problem.target, config.every)
    medians = np.median(steps.reshape(len(config.rates), -1), axis=1)
    last = np.nan_to_num(losses[:, -1], nan=np.inf, posinf=np.inf)
    finals = np.median(last.reshape(len(config.rates), -1), axis=1)
    best = int(np.lexsort((finals, medians))[0])
    rate = config.rates[best]
    losses = lanes(np.full(config.seeds, rate), np.arange(config.seeds))
    is_at_edge = best in (0, len(config.rates) - 1)
    return Row(rate, is_at_edge, steps_to_target(losses, problem.target, config.every))


def table(problem: Problem, rows: dict[str, Row], config: Config) -> str:
    """Write the rows for a reader, the fastest first."""
    lines = [
        f"{problem.name}: steps to a validation loss of {problem.target:g}, "
        f"{config.seeds} seeds, looked at every {config.every} steps",
        f"{'optimizer':20} {'learning rate':>14} {'median':>8} {'quartiles':>13} "
        f"{'reached':>8}",
    ]
    for name in ranking(rows):
        row = rows[name]
        low, median, high = (_count(q) for q in row.quartiles)
        rate = f"{row.rate:g}{'*' if row.is_at_edge else ' '}"
        reached = f"{np.isfinite(row.steps).sum()}/{len(row.steps)}"
        spread = f"{low} - {high}"
        lines.append(f"{name:20} {rate:>14} {median:>8} {spread:>13} {reached:>8}")
    return "\n".join(lines)


def ranking(rows: dict[str, Row]) -> list[str]:
    """Return the names, the fewest median steps first."""
    return sorted(rows, key=lambda name: (*rows[name].quartiles[[1, 2]], name))


def _count(steps: float) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else "never"


def draw(results: dict[str, dict[str, Row]], config: Config, path: Path) -> None:
    """Draw medians and quartiles, a panel a problem."""
    height = 1.5 + 0.25 * len(config.optimizers)
    figure = import_extra("matplotlib.figure", "plot").Figure((11, height))
    for axis, (name, rows) in zip(
        figure.subplots(1, len(results), squeeze=False)[0],
        results.items(),
        strict=True,
    ):
        names = ranking(rows)[::-1]
        # What never arrives is drawn at the right edge, hollow.
        quartiles = np.array([rows[n].quartiles for n in names])
        shown = np.minimum(quartiles, 1.1 * config.steps)
        places = np.arange(len(names))
        axis.hlines(places, shown[:, 0], shown[:, 2], color="tab:blue", alpha=0.5, lw=4)
        arrived = np.isfinite(quartiles[:, 1])
        axis.plot(shown[arrived, 1], places[arrived], "o", color="tab:blue")
        axis.plot(
            shown[~arrived, 1], places[~arrived], "o", color="tab:red", mfc="none"
        )
        axis.set_yticks(places, names)
        axis.set_xlim(0, 1.15 * config.steps)
        axis.set_xlabel("steps to the target: median and quartiles (red: never)")
        axis.set_title(name)
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(config: Config) -> dict[str, dict[str, Row]]:
    """Measure everything; print a table a problem and return the rows."""
    unknown = sorted(set(config.optimizers) - fg.REGISTRY.keys())
    if unknown or config.seeds < 1 or config.tuning_seeds < 1:
        raise SystemExit(
            f"need optimizers among {list(fg.REGISTRY)} and at least one seed, "
            f"got {unknown or (config.seeds, config.tuning_seeds)}"
        )
    if config.steps < config.every:
        raise SystemExit(f"need steps >= every, got {config.steps} < {config.every}")
    problems = [digits(config), noisy_quadratic(config)]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    seeds = {"seed": list(range(config.seeds))}
    folder = fg.logging.RunFolder(config.runs / now, config=config, extra=seeds)
    results: dict[str, dict[str, Row]] = {problem.name: {} for problem in problems}
    total = len(problems) * len(config.optimizers)
    with fg.logging.ProgressBar(total, description="optimizers") as bar:
        for problem in problems:
            for name in config.optimizers:
                results[problem.name][name] = measure(problem, name, config)
                bar.advance(1)
    for problem in problems:
        print(f"{table(problem, results[problem.name], config)}\n")
    folder.update_manifest(
        results={
            problem: {name: _summary(row) for name, row in rows.items()}
            for problem, rows in results.items()
        }
    )
    draw(results, config, folder.path / "zoo.png")
    print(f"run folder: {folder.path}")
    return results


def _summary(row: Row) -> dict[str, Any]:
    steps = [None if np.isinf(s) else float(s) for s in row.steps]
    return {"learning_rate": row.rate, "steps": steps}


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))

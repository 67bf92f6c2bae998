"""Races of optimizers to a target: problems, the choice of a rate, the count of steps.

A run is one lane of a compiled program; the learning rate and the seed are its data.
The rate is the one of a grid that brings most runs to the target soonest: with the
smallest upper quartile of steps over the tuning seeds, judged by the loss on held-out
data. The steps that are reported come from fresh seeds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import new_figure
from experiments.outputs import table as columns

TUNING_SEED = 1000  # tuning seeds begin here, the reported ones at 0
# Shampoo as its docstring recommends for networks. Under vmap both branches of a
# condition run, so lanes of rules with a costly branch run one after another.
SETTINGS: dict[str, dict[str, Any]] = {
    "shampoo": {"b2": 0.99, "momentum": 0.9, "graft": "diagonal", "update_every": 10},
    "soap": {},
}
RATES = tuple(float(f"{10.0**exponent:.1g}") for exponent in np.arange(-4, 2.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which optimizers run, from how many seeds and for how long."""

    optimizers: tuple[str, ...] = tuple(fg.REGISTRY)  # by their names
    rates: tuple[float, ...] = RATES  # learning rates to choose from
    seeds: int = 20  # reported; also how many runs one compiled program trains
    tuning_seeds: int = 5  # for the choice of the learning rate
    steps: int = 400  # of a run, at most
    every: int = 5  # steps between evaluations of the validation loss


class Problem(NamedTuple):
    """What is minimized, and to which loss."""

    name: str
    target: float
    init: Callable[[jax.Array], Any]  # key -> params
    loss_fn: Callable[[Any, Any], jax.Array]
    metric_fn: Callable[[Any, Any], dict[str, Any]]
    data: Any  # a pytree
    batches: Callable[[Any, jax.Array], Any]  # (data, seed) -> what `run` folds over
    held_out: Any


class Row(NamedTuple):
    """The steps that one optimizer needed on one problem."""

    rate: float
    is_at_edge: bool
    steps: np.ndarray  # to the target, one for each seed; infinite where not reached

    @property
    def quartiles(self) -> np.ndarray:
        """The quartiles of the steps; interpolation would mix in infinities."""
        return np.quantile(self.steps, [0.25, 0.5, 0.75], method="higher")


def digits(target: float = 0.2) -> Problem:
    """Cross-entropy, in nats, of a dense network on handwritten digits."""
    model = fg.models.mlp((64, 32, 10))
    return _classification("digits", fg.data.digits(), model, 64, target)


def breast_cancer(target: float = 0.05) -> Problem:
    """Cross-entropy, in nats, of a dense network on tumours, benign or not."""
    model = fg.models.mlp((30, 16, 2))
    return _classification("breast cancer", fg.data.breast_cancer(), model, 32, target)


def diabetes(target: float = 0.55) -> Problem:
    """Squared error, in variances of the target, of a dense network on diabetes."""
    splits, model = fg.data.diabetes(), fg.models.mlp((10, 16, 1))

    def errors(params: Any, batch: Any) -> jax.Array:
        predicted = fg.layers.batched(model)(params, batch["x"])
        return (predicted.reshape(-1) - batch["y"].reshape(-1)) ** 2

    return _supervised("diabetes", splits, model, errors, 32, target)


def _classification(
    name: str, splits: fg.data.Splits, model: fg.Layer, batch_size: int, target: float
) -> Problem:
    def errors(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    return _supervised(name, splits, model, errors, batch_size, target)


def _supervised(
    name: str,
    splits: fg.data.Splits,
    model: fg.Layer,
    errors: Callable[[Any, Any], jax.Array],
    batch_size: int,
    target: float,
) -> Problem:
    return Problem(
        name,
        target,
        model.init,
        lambda params, batch: jnp.mean(errors(params, batch)),
        lambda params, batch: {"loss": errors(params, batch)},
        fg.data.from_arrays(splits.train, batch_size),
        lambda data, seed: data.reseed(seed),
        splits.validation,
    )


def noisy_quadratic(target: float = 0.05, noise: float = 0.1) -> Problem:
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
            e = jax.random.normal(jax.random.fold_in(key, step), (50,))
            return {"a": data, "noise": noise * e}

        return batch

    return Problem(
        "noisy quadratic",
        target,
        # A matrix, so that the rules for matrices have one.
        lambda key: {"x": jax.random.normal(key, (10, 5))},
        lambda p, batch: value(p, batch["a"]) + p["x"].reshape(-1) @ batch["noise"],
        lambda p, batch: {"loss": jax.vmap(lambda a: value(p, a))(batch["a"])},
        a,
        batches,
        {"a": a[None]},
    )


def make_lanes(problem: Problem, name: str, rules: Rules) -> Callable[..., Any]:
    """Return the program (rates, seeds) -> validation losses, a run in each lane."""

    def train(rate: jax.Array, seed: jax.Array, data: Any, held_out: Any) -> Any:
        optimizer = fg.REGISTRY[name](rate, **SETTINGS.get(name, {}))
        params = problem.init(jax.random.key(seed))
        _, history = fg.run(
            fg.make_step(problem.loss_fn, optimizer, metrics="loss"),
            fg.init_state(params, optimizer, seed),
            problem.batches(data, seed),
            rules.steps,
            metric_fn=problem.metric_fn,
            eval_data=held_out,
            eval_every=rules.every,
        )
        return history["val/loss"]

    @jax.jit
    def program(rates: jax.Array, seeds: jax.Array, data: Any, held_out: Any) -> Any:
        if name in SETTINGS:
            return jax.lax.map(
                lambda lane: train(lane[0], lane[1], data, held_out), (rates, seeds)
            )
        return jax.vmap(train, (0, 0, None, None))(rates, seeds, data, held_out)

    def lanes(rates: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Train in groups of one size, so that it compiles once."""
        width, parts = rules.seeds, []
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


def measure(problem: Problem, name: str, rules: Rules) -> Row:
    """Choose the learning rate on some seeds and count steps on others."""
    lanes = make_lanes(problem, name, rules)
    seeds = TUNING_SEED + np.arange(rules.tuning_seeds)
    losses = lanes(
        np.repeat(rules.rates, rules.tuning_seeds), np.tile(seeds, len(rules.rates))
    )
    steps = steps_to_target(losses, problem.target, rules.every)
    steps = steps.reshape(len(rules.rates), -1)
    upper = np.quantile(steps, 0.75, axis=1, method="higher")
    last = np.nan_to_num(losses[:, -1], nan=np.inf, posinf=np.inf)
    finals = np.median(last.reshape(len(rules.rates), -1), axis=1)
    best = int(np.lexsort((finals, upper))[0])
    rate = rules.rates[best]
    losses = lanes(np.full(rules.seeds, rate), np.arange(rules.seeds))
    is_at_edge = best in (0, len(rules.rates) - 1)
    return Row(rate, is_at_edge, steps_to_target(losses, problem.target, rules.every))


def table(problem: Problem, rows: dict[str, Row], rules: Rules) -> str:
    """Write the rows for a reader, the fastest first."""
    lines = []
    for name in ranking(rows):
        row = rows[name]
        low, median, high = (_count(q) for q in row.quartiles)
        rate = f"{row.rate:g}{'*' if row.is_at_edge else ' '}"
        reached = f"{np.isfinite(row.steps).sum()}/{len(row.steps)}"
        lines.append([name, rate, median, f"{low} - {high}", reached])
    return (
        f"{problem.name}: steps to a validation loss of {problem.target:g}, "
        f"{rules.seeds} seeds, evaluated every {rules.every} steps\n"
    ) + columns(["optimizer", "learning rate", "median", "quartiles", "reached"], lines)


def ranking(rows: dict[str, Row]) -> list[str]:
    """Return the names, the fewest median steps first."""
    return sorted(rows, key=lambda name: (*rows[name].quartiles[[1, 2]], name))


def _count(steps: float) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else "never"


def draw(results: dict[str, dict[str, Row]], rules: Rules) -> Any:
    """Draw medians and quartiles, one panel per problem."""
    height = 1.5 + 0.25 * len(rules.optimizers)
    figure = new_figure(1 + 5 * len(results), height)
    for axis, (name, rows) in zip(
        figure.subplots(1, len(results), squeeze=False)[0],
        results.items(),
        strict=True,
    ):
        names = ranking(rows)[::-1]
        # What never reaches the target is drawn at the right edge, hollow.
        quartiles = np.array([rows[n].quartiles for n in names])
        end = rules.steps if np.isinf(quartiles).any() else np.max(quartiles)
        shown = np.minimum(quartiles, 1.1 * end)
        places = np.arange(len(names))
        axis.hlines(places, shown[:, 0], shown[:, 2], color="tab:blue", alpha=0.5, lw=4)
        arrived = np.isfinite(quartiles[:, 1])
        axis.plot(shown[arrived, 1], places[arrived], "o", color="tab:blue")
        axis.plot(
            shown[~arrived, 1], places[~arrived], "o", color="tab:red", mfc="none"
        )
        axis.set_yticks(places, names)
        axis.set_xlim(0, 1.15 * end)
        axis.set_xlabel("steps: median and quartiles (red: never)")
        axis.set_title(name)
        axis.grid(axis="x", alpha=0.3)
    return figure


def check(rules: Rules) -> None:
    """Exit with a message if the rules are invalid."""
    unknown = sorted(set(rules.optimizers) - fg.REGISTRY.keys())
    if unknown or rules.seeds < 1 or rules.tuning_seeds < 1:
        raise SystemExit(
            f"need optimizers among {list(fg.REGISTRY)} and at least one seed, "
            f"got {unknown or (rules.seeds, rules.tuning_seeds)}"
        )
    if rules.steps < rules.every:
        raise SystemExit(f"need steps >= every, got {rules.steps} < {rules.every}")


def race(problems: Sequence[Problem], rules: Rules) -> dict[str, dict[str, Row]]:
    """Measure every optimizer on every problem: problem -> optimizer -> row."""
    results: dict[str, dict[str, Row]] = {problem.name: {} for problem in problems}
    total = len(problems) * len(rules.optimizers)
    with fg.logging.ProgressBar(total, description="optimizers") as bar:
        for problem in problems:
            for name in rules.optimizers:
                results[problem.name][name] = measure(problem, name, rules)
                bar.advance(1)
    return results


def summary(results: dict[str, dict[str, Row]]) -> dict[str, Any]:
    """Return the rows as JSON has them; null is a target not reached."""
    return {
        problem: {name: _as_json(row) for name, row in rows.items()}
        for problem, rows in results.items()
    }


def _as_json(row: Row) -> dict[str, Any]:
    steps = [None if np.isinf(s) else float(s) for s in row.steps]
    return {"learning_rate": row.rate, "steps": steps}

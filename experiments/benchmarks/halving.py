"""What successive halving saves over the full sweep, and whether its winner is as good.

Claim: with four rungs, each three times as long as the one before, successive halving
of 54 points makes a ninth of the full sweep's steps, and its winner is as good: its
validation loss after all steps is within 5 % of the full sweep's best. It compiles four
programs instead of one, so it saves time where training is longer than compiling.

Command:  python -m experiments.benchmarks.halving
Minutes:  five on two cores.
Expected: 9 times fewer examples, about 2 times fewer seconds with compiling, a regret
          below 5 %. With a third of the steps and a quarter of the width, halving took
          twice as long as the full sweep (one run each, on a busy machine).

Points are learning rates and weight decays of AdamW for a dense network on handwritten
digits (scikit-learn's), with the same seeds for both. The regret is the winner's
median validation loss in the full sweep over the least one there, minus 1: both were
trained to the end, by the same keys. Both take turns on the machine, and every turn
compiles anew, as a user's first call does.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import fngrad as fg
import fngrad.sweeps as sweeps
from experiments.benchmarks.timing import interleave, paired_ratio, seconds
from experiments.outputs import run_cli, table


@dataclasses.dataclass(frozen=True)
class Config:
    """What is swept, and how often it is timed."""

    rates: int = 9  # learning rates, from 1e-4 to 1
    decays: int = 6  # weight decays, from 1e-4 to 1
    seeds: int = 3  # trainings at each point
    low: int = 60  # steps to the first rung
    high: int = 1620  # steps to the last
    factor: float = 3.0  # one in so many points continues
    batch_size: int = 64  # examples
    width: int = 128  # of the hidden layer
    repeats: int = 1  # of the timing, after one that is thrown away


@dataclasses.dataclass(frozen=True)
class Problem:
    """A training in two parts, what it is given, and its points."""

    init_fn: Callable[..., Any]
    advance_fn: Callable[..., Any]
    args: tuple[Any, ...]
    points: dict[str, np.ndarray]


def make_problem(config: Config) -> Problem:
    """Return AdamW on digits, its learning rate and weight decay as data."""
    model, splits = fg.models.mlp((64, config.width, 10)), fg.data.digits()

    def errors(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    def optimizer(point: Any) -> fg.Transform:
        return fg.adamw(point["learning_rate"], weight_decay=point["weight_decay"])

    def init_fn(point: Any, key: Any, data: Any, held_out: Any) -> Any:
        return fg.init_state(model.init(key), optimizer(point), key)

    def advance_fn(
        point: Any, state: Any, num_steps: int, data: Any, held_out: Any
    ) -> Any:
        step = fg.make_step(
            lambda params, batch: errors(params, batch).mean(),
            optimizer(point),
            metrics="loss",
        )
        return fg.run(
            fg.steps.freeze_diverged(step),
            state,
            data.reseed(state.key),
            num_steps,
            metric_fn=lambda params, batch: {"loss": errors(params, batch)},
            eval_data=held_out,
        )

    points = sweeps.grid(
        learning_rate=np.geomspace(1e-4, 1, config.rates),
        weight_decay=np.geomspace(1e-4, 1, config.decays),
    )
    data = fg.data.from_arrays(splits.train, config.batch_size)
    return Problem(init_fn, advance_fn, (data, splits.validation), points)


def full_sweep(problem: Problem, config: Config) -> sweeps.SweepResult:
    """Train every point to the end; a new function, so that it compiles."""

    def train_fn(point: Any, key: Any, *args: Any) -> Any:
        state = problem.init_fn(point, key, *args)
        return problem.advance_fn(point, state, config.high, *args)

    return sweeps.sweep(
        train_fn, problem.points, config.seeds, args=problem.args, progress=False
    )


def halve(problem: Problem, config: Config) -> sweeps.Halving:
    """Halve the points successively."""
    return sweeps.successive_halving(
        problem.init_fn,
        problem.advance_fn,
        problem.points,
        config.seeds,
        rungs=sweeps.rungs(config.low, config.high, config.factor),
        factor=config.factor,
        args=problem.args,
    )


def main(config: Config) -> dict[str, float]:
    """Run both in turns; print examples, seconds and the winners."""
    problem, found = make_problem(config), {}

    def case(name: str, method: Callable[..., Any]) -> Callable[[], float]:
        def once() -> Any:
            found[name] = method(problem, config)
            return ()

        return lambda: seconds(once)

    cases = {"full sweep": full_sweep, "halving": halve}
    times = interleave(
        {name: case(name, method) for name, method in cases.items()}, config.repeats
    )
    return report(found["full sweep"], found["halving"], times, config)


def report(
    full: sweeps.SweepResult,
    halved: sweeps.Halving,
    times: dict[str, list[float]],
    config: Config,
) -> dict[str, float]:
    """Print the two side by side, and the ratios; return the ratios."""
    ranks = sweeps.summary(full)
    winner = int(halved.survivors[sweeps.summary(halved.final).best])
    winners = {"full sweep": ranks.best, "halving": winner}
    steps = {"full sweep": halved.full_lane_steps, "halving": halved.lane_steps}
    compiling = {
        "full sweep": sum(m["compile_seconds"] for m in full.notes["modes"]),
        "halving": halved.final.notes["compile_seconds"],
    }
    rows = []
    for name, number in winners.items():
        rows.append(
            [
                name,
                f"{steps[name] * config.batch_size:,}",
                f"{statistics.median(times[name]):.1f}",
                f"{compiling[name]:.1f}",
                *(f"{column[number]:.3g}" for column in full.points.values()),
                f"{ranks.median[number]:.4f}",
            ]
        )
    head = ["", "examples", "seconds", "compiling", *full.points, "full val loss"]
    print(f"{config.seeds} seeds; points and steps: {ladder(halved)}")
    print(table(head, rows))
    found = {
        "fewer_examples": steps["full sweep"] / steps["halving"],
        "fewer_seconds": paired_ratio(times, "full sweep", "halving"),
        "regret": float(ranks.median[winner] / ranks.median[ranks.best] - 1),
    }
    print(
        "full sweep over halving: {fewer_examples:.1f} in examples, "
        "{fewer_seconds:.1f} in seconds; regret {regret:.1%}".format(**found)
    )
    return found


def ladder(halved: sweeps.Halving) -> str:
    """Say how many points trained to each rung."""
    counts = [int(np.sum(halved.reached >= i)) for i in range(len(halved.rungs))]
    pairs = zip(counts, halved.rungs, strict=True)
    return ", ".join(f"{count} to {steps}" for count, steps in pairs)


if __name__ == "__main__":
    run_cli(main, Config, __doc__)

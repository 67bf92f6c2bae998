"""What a training costs in a sweep, in a Python loop, and with its rate baked in.

Claim: 256 trainings as one sweep take a hundredth of the time of a loop that compiles
each, as happens where the learning rate is written into the program, and less than a
Python loop over one compiled training with the rate as data: lanes of a block share
what each operation costs, and every core has a block. The last table is for the aim
that ``mode="auto"`` takes at most 10 % more than the fastest width.

Command:  python -m experiments.benchmarks.sweeps
Minutes:  ten on two cores, with torch.
Expected: against the sweep, compiling each takes 60 to 100 times as long, torch eager 5
          to 9 times, and the loop over one compiled training 1.2 to 2 times, compiling
          included (two quiet cores).

All cases train the same dense networks on handwritten digits (scikit-learn's) with
SGD, batch 64; a training is a learning rate and a seed. They are timed from their first
call on, because compiling is part of what they cost: the compile seconds are a column.
Of the loop that compiles each training, and of torch eager, a sample is timed and the
rest extrapolated. torch is left out where it is not installed. With ``parts`` only some
of the three tables are made: the cases, the cost of a training as lanes grow, and the
modes.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import fngrad as fg
import fngrad.sweeps as sweeps
from experiments.benchmarks.timing import interleave, paired_ratio
from experiments.outputs import run_cli, table

Part = Literal["cases", "lanes", "modes"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, how often, and which tables are made."""

    widths: tuple[int, ...] = (16, 64, 256)  # of the two hidden layers, one model each
    trainings: int = 256  # a sweep, half of them seeds of the same rate
    steps: int = 500  # of each training
    batch_size: int = 64  # examples
    sample: int = 4  # trainings that are compiled one by one, or run in torch
    lanes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)  # trainings of a sweep
    modes: tuple[int, ...] = (1, 8, 32, 128)  # widths against "auto"
    repeats: int = 3  # turns of the modes
    parts: tuple[Part, ...] = ("cases", "lanes", "modes")  # the tables


class Cost(NamedTuple):
    """What all trainings cost."""

    seconds: float  # in all, compiling included
    compiling: float  # of these
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A training and its data."""

    layers: tuple[int, ...]
    train_fn: Callable[..., Any]  # (point, key, data) -> (state, history)
    data: fg.Dataset


def make_problem(width: int, config: Config) -> Problem:
    """Return a dense network on digits."""
    layers = (64, width, width, 10)
    model = fg.models.mlp(layers)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    def train_fn(point: Any, key: Any, data: Any) -> Any:
        optimizer = fg.sgd(point["learning_rate"])
        step = fg.make_step(loss_fn, optimizer, metrics="loss")
        state = fg.init_state(model.init(key), optimizer, key)
        return fg.run(step, state, data.reseed(key), config.steps)

    data = fg.data.from_arrays(fg.data.digits().train, config.batch_size)
    return Problem(layers, train_fn, data)


def trainings(count: int) -> tuple[dict[str, np.ndarray], jax.Array]:
    """Return points and keys of so many trainings, two seeds per point."""
    seeds = min(count, 2)
    rates = np.geomspace(1e-3, 1.0, max(count // seeds, 1))
    return {"learning_rate": rates}, jax.random.split(jax.random.key(0), seeds)


def run_sweep(problem: Problem, count: int, mode: Any = "auto") -> Cost:
    """Return what one call of `sweep` costs."""
    points, keys = trainings(count)
    begin = time.perf_counter()
    result = sweeps.sweep(
        problem.train_fn,
        points,
        keys,
        args=(problem.data,),
        metric=("loss", "min"),
        mode=mode,
        devices=jax.local_devices()[:1],
        progress=False,
    )
    (used,) = result.notes["modes"]
    seconds = time.perf_counter() - begin
    return Cost(seconds, used["compile_seconds"], f"width {used['width']}")


def run_loop(problem: Problem, config: Config) -> Cost:
    """Return what a loop over one compiled training costs, the rate as data."""
    points, keys = trainings(config.trainings)
    program = jax.jit(problem.train_fn)
    begin = time.perf_counter()
    point = {"learning_rate": np.float32(0.1)}
    compiled = program.lower(point, keys[0], problem.data).compile()
    compiling = time.perf_counter() - begin
    for rate in points["learning_rate"].astype(np.float32):
        for key in keys:
            point = {"learning_rate": rate}
            jax.block_until_ready(compiled(point, key, problem.data))
    return Cost(time.perf_counter() - begin, compiling)


def run_baked(problem: Problem, config: Config) -> Cost:
    """Return what a loop costs that compiles each training, from a sample."""
    points, keys = trainings(config.trainings)
    count, compiling = min(config.sample, config.trainings), 0.0
    begin = time.perf_counter()
    for rate in points["learning_rate"][:count]:
        point = {"learning_rate": float(rate)}
        program = jax.jit(functools.partial(problem.train_fn, point))
        started = time.perf_counter()
        compiled = program.lower(keys[0], problem.data).compile()
        compiling += time.perf_counter() - started
        jax.block_until_ready(compiled(keys[0], problem.data))
    factor = config.trainings / count
    note = f"extrapolated from {count}"
    return Cost(factor * (time.perf_counter() - begin), factor * compiling, note)


def run_torch(problem: Problem, config: Config) -> Cost:
    """Return what the same trainings cost in torch eager, from a sample."""
    torch = importlib.import_module("torch")
    x, y = (torch.tensor(np.asarray(problem.data.arrays[name])) for name in "xy")
    rates = trainings(config.trainings)[0]["learning_rate"][: config.sample]
    pairs = list(zip(problem.layers, problem.layers[1:], strict=False))

    def train(rate: float, steps: int) -> None:
        parts = [layer for a, b in pairs for layer in (torch.nn.Linear(a, b), _relu())]
        model = torch.nn.Sequential(*parts[:-1])
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for step in range(steps):
            if step % (len(x) // config.batch_size) == 0:
                order = torch.randperm(len(x))
            first = step % (len(x) // config.batch_size) * config.batch_size
            chosen = order[first : first + config.batch_size]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen].long())
            loss.backward()
            optimizer.step()

    def seconds_with(threads: int) -> float:
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        train(0.1, min(config.steps, 50))
        return time.perf_counter() - begin

    seconds_with(1)  # warm-up
    # In a small network, synchronizing threads costs more than they gain.
    torch.set_num_threads(min((1, os.cpu_count() or 1), key=seconds_with))
    begin = time.perf_counter()
    for rate in rates:
        train(float(rate), config.steps)
    factor = config.trainings / len(rates)
    seconds = factor * (time.perf_counter() - begin)
    return Cost(seconds, 0.0, f"extrapolated from {len(rates)}")


def _relu() -> Any:
    return importlib.import_module("torch").nn.ReLU()


def measure_cases(config: Config) -> dict[int, dict[str, Cost]]:
    """Print and return what all trainings cost in each case, for each model."""
    found: dict[int, dict[str, Cost]] = {}
    for width in config.widths:
        problem = make_problem(width, config)
        costs = {
            "one sweep": run_sweep(problem, config.trainings),
            "loop, rate as data": run_loop(problem, config),
            "loop, rate baked in": run_baked(problem, config),
        }
        if importlib.util.find_spec("torch"):
            costs["torch eager"] = run_torch(problem, config)
        found[width] = costs
        first = costs["one sweep"].seconds
        rows = [
            [name, f"{c.seconds:.2f}", f"{c.compiling:.2f}", f"{c.seconds / first:.1f}"]
            for name, c in costs.items()
        ]
        rows = [[*row, c.note] for row, c in zip(rows, costs.values(), strict=True)]
        layers = "-".join(map(str, problem.layers))
        print(f"\n{config.trainings} trainings of {config.steps} steps, mlp {layers}")
        print(table(["", "seconds", "compiling", "ratio", "note"], rows))
    return found


def measure_lanes(config: Config) -> dict[int, list[float]]:
    """Print and return milliseconds per training, without compiling, as lanes grow."""
    rows, found = [], {}
    for width in config.widths:
        problem = make_problem(width, config)
        costs = [run_sweep(problem, count) for count in config.lanes]
        found[width] = [
            1e3 * (cost.seconds - cost.compiling) / count
            for cost, count in zip(costs, config.lanes, strict=True)
        ]
        layers = "-".join(map(str, problem.layers))
        rows.append([f"mlp {layers}", *(f"{ms:.2f}" for ms in found[width])])
    print("\nmilliseconds a training, compiling left out, by lanes in the sweep")
    print(table(["", *map(str, config.lanes)], rows))
    return found


def measure_modes(config: Config) -> dict[int, float]:
    """Print the modes in turns; return the ratio of "auto" to the best width."""
    modes = ("auto", *config.modes, "vmap")
    rows, found = [], {}
    for width in config.widths:
        problem = make_problem(width, config)

        def case(mode: Any, problem: Problem = problem) -> Callable[[], float]:
            def once() -> float:
                return run_sweep(problem, config.trainings, mode).seconds

            return once

        times = interleave({str(mode): case(mode) for mode in modes}, config.repeats)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        best = min((str(m) for m in modes[1:]), key=lambda name: medians[name])
        found[width] = paired_ratio(times, "auto", best)
        layers = "-".join(map(str, problem.layers))
        cells = [f"{seconds:.2f}" for seconds in medians.values()]
        rows.append([f"mlp {layers}", *cells, f"{found[width]:.2f}"])
    print(f"\nseconds of {config.trainings} trainings, compiling included, by mode")
    print(table(["", *map(str, modes), "auto / best"], rows))
    return found


def main(config: Config) -> dict[str, Any]:
    """Make the tables; return their numbers."""
    make = {"cases": measure_cases, "lanes": measure_lanes, "modes": measure_modes}
    return {name: make[name](config) for name in config.parts}


if __name__ == "__main__":
    run_cli(main, Config, __doc__)

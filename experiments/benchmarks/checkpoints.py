"""What checkpoints cost: saving, restoring, and the step that waits or runs meanwhile.

Claim: an asynchronous save blocks training for the copy to the host alone, at most a
third of a plain `numpy.savez`; while it is written a step's median is less than twice
as long. The whole of it, checksummed twice, synchronised to the disk, read back and
renamed into place, takes a small multiple of `numpy.savez`, which does none of it.

Command:  python -m experiments.benchmarks.checkpoints
Minutes:  two on two cores.
Expected: of 500 MB, on a busy virtual machine: numpy.savez 0.7 s, an asynchronous save
returns after 0.16 to 0.18 s, a step takes 1.4 times as long meanwhile, all is written
after 5 s; numpy.load 0.9 s, restore 2 s. Where memory that was used before is at hand,
writing takes 0.8 to 1.5 s and restoring 1 s: the rest is the machine, which finds new
memory slowly.

The state is float32 in equal arrays. *numpy.savez, synchronised* is the same file after
`os.fsync`; *numpy.load* checks the CRC-32 of the zip file, and puts the arrays on the
device.
"""

import dataclasses
import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import interleave, seconds, table
from fngrad.checkpoint import Checkpoints, restore, save
from fngrad.programs.optional_imports import import_extra

BYTES = 4  # of a float32


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    megabytes: int = 500  # of the state
    arrays: int = 20  # that it consists of
    repeats: int = 5  # of every measurement
    folder: Path | None = None  # on the disk to measure; None: where temporaries go


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Median seconds of a training step."""

    alone: float
    meanwhile: float  # while a checkpoint is written


State = dict[str, jax.Array]


def make_state(config: Config) -> State:
    """Return a state of random numbers."""
    size = config.megabytes * 10**6 // (BYTES * config.arrays)
    keys = jax.random.split(jax.random.key(0), config.arrays)
    return {f"array {i}": jax.random.normal(k, (size,)) for i, k in enumerate(keys)}


@functools.partial(jax.jit, donate_argnums=0)
def training_step(state: State) -> State:
    """Move every number, in place."""
    return jax.tree.map(lambda x: 0.999 * x + 0.001, state)


def cases(state: State, folder: Path) -> dict[str, Callable[[], float]]:
    """Return name -> a function that measures itself, for `interleave`."""
    file = folder / "state.npz"
    numbers = itertools.count()

    def savez(synchronised: bool) -> None:
        with file.open("wb") as opened:
            arrays: Any = {name: np.asarray(x) for name, x in state.items()}
            np.savez(opened, **arrays)
            if synchronised:
                opened.flush()
                os.fsync(opened.fileno())

    def load() -> State:
        with np.load(file) as opened:
            return {name: jnp.array(opened[name]) for name in opened.files}

    checkpoints = Checkpoints(folder / "asynchronous", keep=1)

    def asynchronous() -> float:
        took = seconds(lambda: checkpoints.save(next(numbers), {"state": state}))
        checkpoints.wait()
        return took

    def synchronous() -> None:
        checkpoints.save(next(numbers), {"state": state})
        checkpoints.wait()

    one = folder / "one"
    save(one, state, step=0)
    return {
        "numpy.savez": lambda: seconds(lambda: savez(False)),
        "numpy.savez, synchronised": lambda: seconds(lambda: savez(True)),
        "save": lambda: seconds(synchronous),
        "asynchronous save returns": asynchronous,
        "numpy.load": lambda: seconds(load),
        "restore": lambda: seconds(lambda: restore(one, state)),
    }


def step_times(state: State, folder: Path, repeats: int) -> StepTimes:
    """Return a step's time alone, and while a checkpoint is written."""
    times: dict[bool, list[float]] = {False: [], True: []}

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(training_step(state))
        return time.perf_counter() - start

    step()
    with Checkpoints(folder / "meanwhile", keep=1) as checkpoints:
        for number in range(repeats):
            times[False] += [step() for _ in range(20)]
            checkpoints.save(number, {"state": state})
            while checkpoints.is_writing:
                times[True].append(step())
    alone, meanwhile = (statistics.median(times[busy]) for busy in (False, True))
    return StepTimes(alone, meanwhile)


def main(config: Config) -> tuple[dict[str, list[float]], StepTimes]:
    """Print a table and the step's times; return both."""
    state = make_state(config)
    size = sum(x.nbytes for x in state.values())
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folder = Path(temporary)
        times = interleave(cases(state, folder), config.repeats)
        steps = step_times(state, folder, config.repeats)
    print(f"a state of {size / 1e6:.0f} MB, on {jax.default_backend()}")
    print(table(times, against="numpy.savez", unit="ms"))
    print("\nMB/s")
    for name, values in times.items():
        print(f"{name:26} {size / 1e6 / statistics.median(values):8.0f}")
    print(
        f"\na training step takes {1e3 * steps.alone:.1f} ms, "
        f"and {1e3 * steps.meanwhile:.1f} ms while a checkpoint is written: "
        f"{steps.meanwhile / steps.alone:.2f} times as long"
    )
    return times, steps


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))

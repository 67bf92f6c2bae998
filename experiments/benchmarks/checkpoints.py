"""What checkpoints cost: saving, restoring, and training steps during a save.

Claim: an asynchronous save blocks training only for the copy to the host, at most a
third of a plain `numpy.savez`; while it is written, the median step takes less than
twice as long, and the first step still updates the donated state in place. The whole
save, with two checksums, `os.fsync`, reading back and renaming, takes a small multiple
of `numpy.savez`, which does none of them.

Command:  python -m experiments.benchmarks.checkpoints
Minutes:  three on two cores.
Expected: of 500 MB: an asynchronous save returns after 0.15 to 0.3 of the time of
numpy.savez, a step takes 1.3 to 1.4 times as long meanwhile, and all is written after
1.8 to 3 times numpy.savez; restore takes 1.6 to 1.8 times numpy.load. The first step
after an asynchronous save takes 1 to 2 times as long as the others, after one by
orbax's AsyncCheckpointer 6 to 7 times. Absolute times vary with the machine:
numpy.savez took 0.7 s on a quiet one and 2 to 5 s on a busy one.

The parts of a save are timed by themselves, for this state and for one of 16 bytes:
the copy to the host; orbax's writing; the CRC-32 of every leaf and of every file, and
the manifest; reading all arrays back and comparing them; `os.fsync` of every file and
folder, and the rename. On two busy cores, of 250 MB: 10, 18, 32, 36 and 3 % of the
time; of 16 bytes: 0, 61, 2, 7 and 30 % of 0.18 s (0.1 s on quiet ones).

The state is float32 in equal arrays. *numpy.savez, synchronized* is the same file after
`os.fsync`; *numpy.load* checks the CRC-32 of the zip file and puts the arrays on the
device. *orbax* is its AsyncCheckpointer, which does not checksum or read back.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.device_transfer as device_transfer
import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.step_folders as step_folders
import fngrad.programs.text_tables as text_tables
from experiments.benchmarks.timing import interleave, seconds, table
from fngrad.checkpoint import Checkpoints, restore, save
from fngrad.checkpoint.writing import DEFAULT_BEST
from fngrad.programs.optional_imports import import_extra

BYTES = 4  # of a float32


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and the number of measurements."""

    megabytes: int = 500  # size of the state
    arrays: int = 20  # number of its arrays
    repeats: int = 5  # of every measurement
    folder: Path | None = None  # on the disk to measure; None: the temporary folder


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Median seconds of a training step."""

    alone: float
    meanwhile: float  # while a checkpoint is written
    first: float  # the first one after an asynchronous save
    first_orbax: float  # the first one after a save by orbax's AsyncCheckpointer


State = dict[str, jax.Array]
PARTS = ("copy", "write", "checksums", "read back", "synchronize and rename")


def make_state(config: Config) -> State:
    """Return a state of random numbers."""
    size = config.megabytes * 10**6 // (BYTES * config.arrays)
    keys = jax.random.split(jax.random.key(0), config.arrays)
    return {f"array {i}": jax.random.normal(k, (size,)) for i, k in enumerate(keys)}


@functools.partial(jax.jit, donate_argnums=0)
def training_step(state: State) -> State:
    """Update every number in place."""
    return jax.tree.map(lambda x: 0.999 * x + 0.001, state)


def cases(state: State, folder: Path) -> dict[str, Callable[[], float]]:
    """Return name -> a function that measures itself, for `interleave`."""
    file = folder / "state.npz"
    numbers = itertools.count()

    def savez(synchronized: bool) -> None:
        with file.open("wb") as opened:
            arrays: Any = {name: np.asarray(x) for name, x in state.items()}
            np.savez(opened, **arrays)
            if synchronized:
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
        "numpy.savez, synchronized": lambda: seconds(lambda: savez(True)),
        "save": lambda: seconds(synchronous),
        "asynchronous save returns": asynchronous,
        "numpy.load": lambda: seconds(load),
        "restore": lambda: seconds(lambda: restore(one, state)),
    }


def part_times(state: State, folder: Path, repeats: int) -> dict[str, float]:
    """Return the median seconds of each part of a save, in their order."""
    folder.mkdir()
    rounds = [_parts_of_save(state, folder, number) for number in range(repeats + 1)]
    return {part: statistics.median(r[part] for r in rounds[1:]) for part in PARTS}


def _parts_of_save(state: State, folder: Path, number: int) -> dict[str, float]:
    """Save as `save` does, with a clock between the parts."""
    times = [time.perf_counter()]

    def lap() -> None:
        times.append(time.perf_counter())

    host = device_transfer.take({"state": state})
    lap()
    with step_folders.hidden(folder, str(number)) as temporary:
        arrays = manifest.arrays_of(host)
        array_files.write(temporary / manifest.ARRAYS, arrays)
        lap()
        manifest.write(temporary, number, host, {}, None, DEFAULT_BEST)
        lap()
        manifest.check_sizes(temporary, manifest.read(temporary))
        array_files.check(temporary / manifest.ARRAYS, arrays)
        lap()
        done = step_folders.commit(temporary, f"{number:08d}")
        lap()
    shutil.rmtree(done)
    laps = [b - a for a, b in itertools.pairwise(times)]
    return dict(zip(PARTS, laps, strict=True))


def step_times(state: State, folder: Path, repeats: int) -> StepTimes:
    """Return a step's time: by itself, while a checkpoint is written, after one."""
    orbax = import_extra("orbax.checkpoint", "checkpoint", "orbax-checkpoint")
    handler = orbax.PyTreeCheckpointHandler(use_compression=False)
    times: dict[str, list[float]] = {f.name: [] for f in dataclasses.fields(StepTimes)}

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(training_step(state))
        return time.perf_counter() - start

    step()
    with (
        Checkpoints(folder / "meanwhile", keep=1) as checkpoints,
        orbax.AsyncCheckpointer(handler) as checkpointer,
    ):
        for number in range(repeats):
            times["alone"] += [step() for _ in range(20)]
            checkpoints.save(number, {"state": state})
            times["first"].append(step())
            times["meanwhile"].append(times["first"][-1])
            while checkpoints.is_writing:
                times["meanwhile"].append(step())
            tree = orbax.args.PyTreeSave(state)
            checkpointer.save(folder / "orbax", args=tree, force=True)
            times["first_orbax"].append(step())
            checkpointer.wait_until_finished()
    return StepTimes(**{name: statistics.median(x) for name, x in times.items()})


def print_parts(parts: dict[str, float], tiny: dict[str, float], size: int) -> None:
    """Print the parts of a save, and those of a save of 16 bytes."""
    rows = [("part of a save", "ms", "MB/s", "ms of 16 bytes")]
    for part, took in parts.items():
        rate = f"{size / 1e6 / took:.0f}"
        rows.append((part, f"{1e3 * took:.0f}", rate, f"{1e3 * tiny[part]:.1f}"))
    total = sum(parts.values())
    rate, small = f"{size / 1e6 / total:.0f}", f"{1e3 * sum(tiny.values()):.1f}"
    rows.append(("total", f"{1e3 * total:.0f}", rate, small))
    print("\n" + text_tables.table(rows, left=1))


def main(config: Config) -> tuple[dict[str, list[float]], StepTimes]:
    """Print a table and the times of a step; return both."""
    state = make_state(config)
    size = sum(x.nbytes for x in state.values())
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folder = Path(temporary)
        times = interleave(cases(state, folder), config.repeats)
        parts = part_times(state, folder / "parts", config.repeats)
        small = {"array": jnp.zeros(4)}
        tiny = part_times(small, folder / "tiny", max(config.repeats, 3))
        steps = step_times(state, folder, config.repeats)
    print(f"a state of {size / 1e6:.0f} MB, on {jax.default_backend()}")
    print(table(times, against="numpy.savez", unit="ms"))
    print("\nMB/s")
    for name, values in times.items():
        print(f"{name:26} {size / 1e6 / statistics.median(values):8.0f}")
    print_parts(parts, tiny, size)
    print(
        f"\na training step takes {1e3 * steps.alone:.1f} ms, "
        f"and {1e3 * steps.meanwhile:.1f} ms while a checkpoint is written: "
        f"{steps.meanwhile / steps.alone:.2f} times as long\n"
        f"the first step after an asynchronous save takes {1e3 * steps.first:.1f} ms, "
        f"after orbax's {1e3 * steps.first_orbax:.1f} ms"
    )
    return times, steps


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))

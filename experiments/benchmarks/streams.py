"""How long a step waits for batches that are read from disk.

Claim: batches of a memory map that are read ahead in threads keep a step waiting less
than batches that are read when they are asked for; the losses are those of the same
examples in memory, bit for bit.

Command:  python -m experiments.benchmarks.streams
Minutes:  six on two cores.
Expected: with 8 batches read ahead, the default, an MLP waits 5 % of the time for steps
          of 5 ms (16 ahead 4 %, without 22 %), 4 % for 6 ms and 3 % for 8 ms, a CNN 2 %
          (without 7 %); torch waits 29 % and grain 76 % of steps of 5 ms. Over the same
          run in memory an MLP's steps take 1.1 to 1.2 times as long (both cores
          compute, so that reading takes time from the step); losses equal.

*waiting* is the part of the time in which nothing computes because the batch is not
there: of a loop that waits for each step before it asks for the next batch, which `fit`
does not. Arrays in memory are read inside the step.

The images are made by the benchmark, in a temporary folder, and are in the page cache
when they are read: a slower disk adds its own time. torch's DataLoader (two workers)
and grain's (two threads) read the same memory map into the same `fit`, as iterables,
each in an order of its own; they take part where they are installed.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
import fngrad.programs.text_tables as text_tables
from fngrad.programs.optional_imports import import_extra

SHAPE = (32, 32, 3)
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    examples: int = 349_525  # 1 GiB of uint8
    batch_size: int = 64
    widths: tuple[int, ...] = (256, 384)  # of the MLPs' hidden layers
    steps: int = 200
    repeats: int = 3  # after a round that compiles; with 0 that round is measured


def make_files(folder: Path, config: Config) -> None:
    """Write random images and labels to a folder."""
    rng = np.random.default_rng(0)
    shape = (config.examples, *SHAPE)
    images = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, shape)
    for start in range(0, config.examples, 10_000):
        part = images[start : start + 10_000]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    images.flush()
    np.save(folder / "y.npy", rng.integers(0, CLASSES, config.examples, np.int32))


def maps(folder: Path) -> dict[str, np.ndarray]:
    """Return the memory maps of a folder's images and labels."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy"}


class Examples:
    """One example at a time, as torch and grain read them."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["y"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: rows[index] for name, rows in self.arrays.items()}


def together(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack examples to a batch."""
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def of_torch(arrays: dict[str, np.ndarray], config: Config) -> Iterator[Any]:
    """Return the batches of torch's DataLoader with two workers."""
    import torch.utils.data as torch_data  # type: ignore[import-not-found]

    return iter(
        torch_data.DataLoader(
            Examples(arrays),  # type: ignore[arg-type]
            config.batch_size,
            shuffle=True,
            num_workers=2,
            collate_fn=together,
            multiprocessing_context="spawn",
        )
    )


def of_grain(arrays: dict[str, np.ndarray], config: Config) -> Iterator[Any]:
    """Return the batches of a dataset of grain, read by two threads."""
    import grain  # type: ignore[import-not-found]

    examples = grain.MapDataset.source(Examples(arrays)).shuffle(seed=0).repeat()
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(examples.to_iter_dataset(options).batch(config.batch_size))


def feeds(folder: Path, config: Config) -> dict[str, Callable[[], Any]]:
    """Return what makes the data of each case."""
    n, b = config.examples, config.batch_size
    cases: dict[str, Callable[[], Any]] = {
        "in memory": lambda: fg.data.from_arrays(
            jax.tree.map(np.asarray, maps(folder)), b
        ),
        "8 ahead": lambda: fg.data.from_source(maps(folder), n, b),
        "16 ahead": lambda: fg.data.from_source(maps(folder), n, b, prefetch=16),
        "none ahead": lambda: fg.data.from_source(maps(folder), n, b, prefetch=0),
    }
    others = {"torch": of_torch, "grain": of_grain}
    for name, make in others.items():
        if importlib.util.find_spec(name):
            cases[name] = lambda make=make: make(maps(folder), config)
        else:
            print(f"{name} is not installed and takes no part")
    return cases


def models(config: Config) -> dict[str, fg.Layer]:
    """Return the models whose steps are timed."""
    cnn = fg.models.cnn(SHAPE, CLASSES, channels=(8, 16), hidden_size=32)
    mlps = {f"MLP of width {width}": mlp(width) for width in config.widths}
    return {**mlps, "CNN": cnn}


def mlp(width: int) -> fg.Layer:
    """Return a network with one hidden layer."""
    sizes = int(np.prod(SHAPE)), width, CLASSES
    return fg.layers.serial(fg.layers.flatten, fg.models.mlp(sizes))


def step_of(model: fg.Layer) -> tuple[fg.TrainState, Callable[..., Any]]:
    """Return the first state of a model, and its training step."""

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        images = batch["x"].astype(jnp.float32) / 255
        logits = fg.layers.batched(model)(params, images)
        return jnp.mean(
            fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        )

    optimizer = fg.momentum(0.01)
    state = fg.init_state(model.init(0), optimizer, key=0)
    return state, fg.make_step(loss_fn, optimizer)


def measure(step: Any, state: Any, data: Any, config: Config) -> tuple[Any, float]:
    """Return the losses of a run, and the seconds per step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # iterables cannot be resumed
        result = fg.fit(
            step, state, data, num_steps=config.steps, loop="python", progress=False
        )
    seconds = result.history.notes["seconds"]
    per_step = (seconds["data"] + seconds["stepping"]) / config.steps
    return result.history["loss"], per_step


def waiting(step: Any, state: Any, data: Any, config: Config) -> float:
    """Return which part of the time of a run its steps wait for their batches."""
    if isinstance(data, fg.data.Dataset):
        return 0.0
    is_source = isinstance(data, fg.data.Source)
    batches = data.batches() if is_source else put(data)
    with contextlib.closing(timed_waits(step, state, batches)) as times:
        next(times)  # it opens the source
        waits, wholes = np.transpose(list(itertools.islice(times, config.steps)))
    return float(np.sum(waits) / np.sum(wholes))


def put(data: Any) -> Generator[Any, None, None]:
    """Yield batches on the device."""
    for batch in data:
        yield jax.device_put(batch)


def timed_waits(
    step: Any, state: Any, batches: Generator[Any, None, None]
) -> Generator[tuple[float, float], None, None]:
    """Yield the seconds that each step waits for its batch, and those with the step."""
    with contextlib.closing(batches):
        while True:
            start = time.perf_counter()
            batch = jax.block_until_ready(next(batches))
            there = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            yield there - start, time.perf_counter() - start


def main(config: Config) -> dict[str, dict[str, float]]:
    """Print a table per model; return the fractions of the time that was waiting."""
    fractions: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, config)
        cases = feeds(folder, config)
        for title, model in models(config).items():
            fractions[title] = compare(title, step_of(model), cases, config)
    return fractions


def compare(
    title: str, start: tuple[Any, Any], cases: dict[str, Any], config: Config
) -> dict[str, float]:
    """Print the table of one model; the cases take turns."""
    state, step = start
    compiled = jax.jit(step)
    losses: dict[str, Any] = {}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(config.repeats + 1):
        for name, make in cases.items():
            losses[name], seconds = measure(step, state, make(), config)
            waited = waiting(compiled, state, make(), config)
            taken[name].append((seconds, waited))
    rows = [["", "ms per step", "over in memory", "waiting", "losses"]]
    fractions = {}
    # The first round compiles.
    times = {name: np.array(pairs[1:] or pairs) for name, pairs in taken.items()}
    for name, pairs in times.items():
        seconds, fractions[name] = map(float, np.median(pairs, 0))
        ratios = pairs[:, 0] / times["in memory"][:, 0]
        is_same = np.array_equal(losses[name], losses["in memory"])
        rows.append(
            [
                name,
                f"{seconds * 1e3:.2f}",
                f"{np.median(ratios):.2f}",
                f"{fractions[name]:.1%}",
                "equal" if is_same else "of another order",
            ]
        )
    print(f"\n{title}, batches of {config.batch_size}, on {jax.default_backend()}")
    print(text_tables.table(rows, left=1))
    return fractions


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))

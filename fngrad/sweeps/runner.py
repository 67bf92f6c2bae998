"""Many trainings as one program: `sweep`."""

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.logging import ProgressBar
from fngrad.sweeps.points import check_points
from fngrad.sweeps.program import Lanes, compile_block, outline, to_host
from fngrad.sweeps.record import Record
from fngrad.sweeps.result import (
    SweepResult,
    diverged_at,
    last_values,
    stack_histories,
)
from fngrad.types import Key

Mode = Literal["auto", "vmap", "map"] | int


def sweep(
    train_fn: Callable[..., tuple[Any, dict[str, jax.Array]]],
    points: Any,
    keys: int | Key = 20,
    *,
    args: tuple[Any, ...] = (),
    static: Mapping[str, Sequence[Any]] | None = None,
    metric: tuple[str, Literal["min", "max"]] = ("val/loss", "min"),
    mode: Mode = "auto",
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train at every point with every key, as one compiled program.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.sweeps import grid, sweep
        >>> def train_fn(point, key):
        ...     optimizer = fg.sgd(point["learning_rate"])
        ...     step = fg.make_step(lambda w, batch: (w - 3.0) ** 2, optimizer)
        ...     state = fg.init_state(jnp.array(0.0), optimizer, key)
        ...     return fg.run(step, state, lambda step: (), 10)
        >>> points = grid(learning_rate=[0.01, 0.1])
        >>> result = sweep(
        ...     train_fn, points, keys=2, metric=("loss", "min"), progress=False
        ... )
        >>> result.history["loss"].shape, result.diverged_at.tolist()
        ((2, 2, 10), [[-1, -1], [-1, -1]])
    """
    columns, count = check_points(points)
    keys = _keys(keys)
    devices = jax.local_devices() if devices is None else devices
    names = list(static or {})
    combinations = list(itertools.product(*(static or {}).values()))
    total = len(combinations) * count * len(keys)
    states, histories, at, values = [], [], [], []
    compile_seconds, begin = 0.0, time.perf_counter()
    with ProgressBar(total, description="sweep", enabled=progress, unit="lanes") as bar:
        for combination in combinations:
            chosen = dict(zip(names, combination, strict=True))
            lanes = Lanes(
                functools.partial(train_fn, **chosen), columns, keys, args, devices
            )
            shape = outline(lanes, metric[0])
            record = Record(shape.outputs, lanes.count)
            width = 1 if mode == "map" else -(-lanes.count // len(devices))
            block = compile_block(lanes, width)
            compile_seconds += block.compile_seconds
            for first in range(0, lanes.count, block.lanes):
                numbers = np.arange(first, first + block.lanes)
                outputs = block.run(np.minimum(numbers, lanes.count - 1))
                kept = numbers[numbers < lanes.count]
                record.put(kept, to_host(outputs))
                bar.advance(len(kept))
            state, history = record.outputs(count, len(keys))
            states.append(state)
            histories.append(history)
            at.append(diverged_at(history, metric[0]))
            values.append(last_values(history[metric[0]]))
    table = {
        path: np.concatenate([x] * len(combinations))
        for path, x in tree.leaf_paths(columns).items()
    }
    for i, name in enumerate(names):
        table[name] = np.repeat(_column([c[i] for c in combinations]), count)
    notes = {
        "metric": tuple(metric),
        "values": np.concatenate(values),
        "seconds": time.perf_counter() - begin,
        "compile_seconds": compile_seconds,
        "mode": mode,
        "keys": keys,
        "static": names,
    }
    return SweepResult(
        table,
        states if static else states[0],
        stack_histories(histories),
        np.concatenate(at),
        notes,
    )


def _column(values: list[Any]) -> np.ndarray:
    """Return values of any type as a column: numbers and text as such."""
    if all(isinstance(value, str) for value in values):
        return np.array(values)
    if all(isinstance(value, bool | int | float) for value in values):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _keys(keys: int | Key) -> Key:
    if isinstance(keys, int):
        numerics.check_count("keys", keys, low=1)
        return jax.random.split(jax.random.key(0), keys)
    return keys

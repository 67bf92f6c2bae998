"""Many trainings as one program: `sweep`."""

import contextlib
import functools
import inspect
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.sweeps.running.modes as modes
import fngrad.tree as tree
from fngrad.files.locks import Lock
from fngrad.logging import ProgressBar
from fngrad.metrics.directions import Metric, directed
from fngrad.sweeps.results.result import (
    SweepResult,
    diverged_at,
    last_values,
    stack_histories,
)
from fngrad.sweeps.running.blocks import Training
from fngrad.sweeps.running.program import Lanes, Outline, is_key, outline
from fngrad.sweeps.running.record import Record
from fngrad.sweeps.running.storage import Folder, describe_shapes, digest, machine
from fngrad.sweeps.searching.points import check_points
from fngrad.types import Key


def sweep(
    train_fn: Callable[..., tuple[Any, dict[str, jax.Array]]],
    points: Any,
    keys: int | Key = 20,
    *,
    args: tuple[Any, ...] = (),
    static: Mapping[str, Sequence[Any]] | None = None,
    metric: Metric = ("val/loss", "min"),
    mode: modes.Mode = "auto",
    chunk: int | None = None,
    folder: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train at every point with every key, as one compiled program.

    A *lane* is one training. Lanes are trained in blocks of one width, split over the
    devices; the width decides how a lane is rounded, and nothing else does: neither
    the length of a chunk, nor the number of devices, nor what the other lanes do. A
    lane equals the training alone, ``jax.jit(train_fn)(point, key)``, bit for bit in
    blocks of width 1, and to a few units in the last place of a step otherwise. What
    ``mode="auto"`` chooses depends on the machine and its mood: a number in its place
    gives the same bits again, and so does ``folder``, which keeps the choice.

    Let a lane that diverges rest with `fngrad.steps.freeze_diverged`.

    A sweep compiles under ``jax.disable_jit()`` too; to step through one training,
    call ``train_fn(point, key, *args)`` itself.

    Args:
        train_fn: a pure function ``train_fn(point, key, *args, **static_values) ->
            (state, history)``, usually `fngrad.init_state` and `fngrad.run` over
            ``data.reseed(key)``. A point is one entry of every column; the history is
            a dict of curves and scalars. Return ``()`` for a state that is not needed:
            the states of all lanes are kept.
        points: a pytree of numeric columns (P, ...), see `fngrad.sweeps.grid`.
        keys: how many seeds, or typed keys of shape (S,). Every point sees the same.
        args: what the lanes share, such as data: pytrees of arrays. What train_fn
            closes over instead becomes program text.
        static: name -> values of any type, for what decides the program: an optimizer,
            a batch size. Every combination is compiled on its own.
        metric: what lanes are compared by, and ``"min"`` or ``"max"``; or a name that
            tells, see `fngrad.metrics.directions`. Of a curve the last value counts.
        mode: the width of the blocks on each device. ``"map"`` is 1, ``"vmap"`` all
            lanes, a number so many, ``"auto"`` what is likely fast. Less where it
            would not fit in memory, which is said.
        chunk: how many lanes are kept at a time, rounded up to whole blocks; None
            keeps about a hundred times.
        folder: where chunks are kept, so that a killed sweep goes on where it was.
            One process at a time; it is locked while the sweep runs.
        devices: where lanes are trained, by default on all devices of this process.
        progress: whether to show a progress bar.

    Returns:
        The result. Its ``notes`` hold ``metric``; ``values``, float64 (P, S), what
        counts of the metric; ``keys``; ``static``, the names; ``modes``, one dict
        a combination with the ``width``, the ``reason`` for it, the number of
        ``devices`` and ``compile_seconds``; ``seconds`` of this call, compiling
        included; ``restored``, how many lanes the folder held.

    Raises:
        ValueError: an argument out of range; columns of unequal lengths; a train_fn
            that is not pure, or does not record the metric; a folder of another sweep.
        TypeError: points or args that are no numbers; static without names; a train_fn
            that returns another form, or whose structure depends on the point.
        LockError: another process sweeps in the folder, or it cannot be written.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.sweeps import grid, sweep
        >>> def train_fn(point, key):
        ...     optimizer = fg.sgd(point["learning_rate"])
        ...     step = fg.make_step(lambda w, batch: (w - 3.0) ** 2, optimizer)
        ...     step = fg.steps.freeze_diverged(step)
        ...     state = fg.init_state(jnp.array(0.0), optimizer, key)
        ...     return fg.run(step, state, lambda step: (), 100)
        >>> points = grid(learning_rate=[0.01, 0.1, 10.0])
        >>> result = sweep(
        ...     train_fn, points, keys=2, metric=("loss", "min"), progress=False
        ... )
        >>> result.history["loss"].shape, result.diverged_at[:, 0].tolist()
        ((3, 2, 100), [-1, -1, 15])
    """
    begin = time.perf_counter()
    metric = directed(metric)
    _check_options(mode, chunk)
    columns, _ = check_points(points)
    keys, devices = seed_keys(keys), _devices(devices)
    _check_args(args)
    combinations = _combinations({} if static is None else static, columns)
    _check_takes(train_fn, args, combinations[0])
    sweeps = [
        Lanes(functools.partial(train_fn, **values), columns, keys, args, devices)
        for values in combinations
    ]
    outlines = [outline(lanes, metric[0]) for lanes in sweeps]
    with contextlib.ExitStack() as stack:
        keeper = None
        if folder is not None:
            stack.enter_context(Lock(folder, purpose="this sweep"))
            keeper = Folder(folder, _description(sweeps[0], outlines, combinations))
        results, how = _train(sweeps, outlines, keeper, mode, chunk, progress)
    notes = {
        "metric": metric,
        "keys": keys,
        "static": list(static or {}),
        **how,
        "seconds": time.perf_counter() - begin,
    }
    return _gather(results, columns, combinations, notes)


def _train(
    sweeps: list[Lanes],
    outlines: list[Outline],
    folder: Folder | None,
    mode: modes.Mode,
    chunk: int | None,
    progress: bool,
) -> tuple[list[Any], dict[str, Any]]:
    """Train what the folder lacks; return the outputs of each sweep, and how."""
    records = [Record(out.outputs, sweeps[0].count) for out in outlines]
    for number, record in enumerate(records):
        if folder:
            folder.restore(number, record)
    restored = sum(int(record.done.sum()) for record in records)
    total = len(records) * sweeps[0].count
    bar = ProgressBar(total, restored, "sweep", enabled=progress, unit="lanes")
    with bar, _told(records, folder):
        used = [
            Training(number, lanes, out.jaxpr, record, folder, bar, chunk).run(mode)
            for number, (lanes, out, record) in enumerate(
                zip(sweeps, outlines, records, strict=True)
            )
        ]
    seeds = len(sweeps[0].keys)
    results = [record.outputs(record.done.size // seeds, seeds) for record in records]
    return results, {"modes": used, "restored": restored}


def seed_keys(keys: Any) -> Key:
    """Return the keys of the seeds that every point sees, typed, shape (S,).

    Args:
        keys: how many seeds, or typed keys (S,).

    Raises:
        ValueError: no seed, or keys that are not typed or not of shape (S,).
    """
    if numerics.as_int(keys) is not None or not hasattr(keys, "dtype"):
        keys = numerics.check_count("keys", keys, low=1)
        return jax.random.split(jax.random.key(0), keys)
    if not is_key(keys) or keys.ndim != 1 or not len(keys):
        raise ValueError(
            "need keys, a number of seeds or typed keys (S,) as jax.random.split "
            f"gives, got {keys.dtype}{list(keys.shape)}"
        )
    return keys


def _gather(
    results: list[Any],
    columns: Any,
    combinations: list[dict[str, Any]],
    notes: dict[str, Any],
) -> SweepResult:
    """Join what the combinations gave along the points."""
    states = [state for state, _ in results]
    histories = [history for _, history in results]
    name, _ = notes["metric"]
    table = {
        path: np.concatenate([column] * len(combinations))
        for path, column in tree.leaf_paths(columns).items()
    }
    count = len(next(iter(table.values()))) // len(combinations)
    for label in combinations[0]:
        values = [combination[label] for combination in combinations]
        table[label] = np.repeat(_column(values), count)
    notes["values"] = np.concatenate([last_values(h[name]) for h in histories])
    return SweepResult(
        points=table,
        state=states if combinations[0] else states[0],
        history=stack_histories(histories),
        diverged_at=np.concatenate([diverged_at(h, name) for h in histories]),
        notes=notes,
    )


def _column(values: list[Any]) -> np.ndarray:
    """Return values of any type as a column: numbers and text as such."""
    for kinds in (str, bool, int | float):
        if all(isinstance(value, kinds) for value in values):
            return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


@contextlib.contextmanager
def _told(records: list[Record], folder: Folder | None) -> Iterator[None]:
    """Say in an interrupt what was reached."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = sum(int(record.done.sum()) for record in records)
        total = sum(len(record.done) for record in records)
        kept = "lost: a folder would keep them"
        if folder:
            kept = f"kept in {folder.path}: the same call goes on from there"
        interrupt.add_note(f"{done} of {total} lanes are {kept}")
        raise


def _description(
    lanes: Lanes, outlines: list[Outline], combinations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what decides the outputs of a sweep, in JSON's types."""
    return {
        **machine(),
        "points": digest(lanes.points),
        "keys": digest(lanes.keys),
        "args": digest(lanes.args),
        "static": [
            {name: re.sub(r" at 0x\w+", "", repr(x)) for name, x in values.items()}
            for values in combinations
        ],
        "outputs": [describe_shapes(out.outputs) for out in outlines],
        "train_fn": [out.fingerprint for out in outlines],
    }


def _combinations(
    static: Mapping[str, Sequence[Any]], columns: Any
) -> list[dict[str, Any]]:
    if not isinstance(static, Mapping):
        raise TypeError(f"need static={{name: [values]}}, got {static!r}")
    for name, values in static.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(
                f"need a list of values, at least one, for each name in static, got "
                f"{name}={values!r}"
            )
        if name in tree.leaf_paths(columns):
            raise ValueError(f"need {name!r} in points or in static, got it in both")
    products = itertools.product(*static.values())
    return [dict(zip(static, values, strict=True)) for values in products]


def _devices(devices: Sequence[Any] | None) -> list[Any]:
    chosen = jax.local_devices() if devices is None else list(devices)
    if not chosen:
        raise ValueError("need at least one device, got none")
    return chosen


def _check_args(args: Any) -> None:
    if not isinstance(args, tuple):
        raise TypeError(f"need args, a tuple, got {type(args).__name__}: args=(data,)")
    for path, leaf in tree.leaf_paths(args).items():
        if not (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float)):
            raise TypeError(
                f"need arrays in args, got {type(leaf).__name__} at {path!r}: what is "
                "no array belongs into static, or into train_fn"
            )


def _check_takes(train_fn: Any, args: tuple[Any, ...], values: Any) -> None:
    try:
        inspect.signature(train_fn).bind(None, None, *args, **values)
    except TypeError as error:
        raise TypeError(
            "need train_fn(point, key, *args, **static_values) with "
            f"{len(args)} args and static {list(values)}, got one with {error}: what "
            "the lanes share is given as args=(data,)"
        ) from error
    except ValueError:  # a builtin without a signature
        return


def _check_options(mode: modes.Mode, chunk: int | None) -> None:
    modes.check_mode(mode)
    if chunk is not None:
        numerics.check_count("chunk", chunk, low=1)

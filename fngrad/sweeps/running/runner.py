"""`sweep`: many trainings as one compiled program."""

import contextlib
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.programs.signatures as signatures
import fngrad.sweeps.running.block_width as block_width
import fngrad.tree as tree
from fngrad.files.locks import Lock
from fngrad.logging import ProgressBar
from fngrad.metrics.directions import Metric, directed
from fngrad.programs.printed import recorded
from fngrad.sweeps.results.result import (
    SweepResult,
    diverged_at,
    last_values,
    stack_histories,
)
from fngrad.sweeps.results.saved import save
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.lane_training import Training
from fngrad.sweeps.running.program import Lanes, Outline, is_key, outline
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
    mode: block_width.Mode = "auto",
    chunk: int | None = None,
    folder: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train at every point with every key, as one compiled program.

    A *lane* is one training. Lanes are trained in blocks of one width, split over the
    devices. Only the width affects how a lane is rounded: neither the length of a
    chunk, nor the number of devices, nor the other lanes do. In blocks of width 1 a
    lane equals the training alone, ``jax.jit(train_fn)(point, key)``, bit for bit;
    otherwise it agrees to a few units in the last place per step. The choice of
    ``mode="auto"`` depends on the machine and its load. A number as the mode
    reproduces the bits, and so does ``folder``, which records the choice.

    `fngrad.steps.freeze_diverged` freezes a lane that diverges.

    A sweep compiles under ``jax.disable_jit()`` too; to step through one training,
    call ``train_fn(point, key, *args)`` directly.

    Args:
        train_fn: a pure function ``train_fn(point, key, *args, **static_values) ->
            (state, history)``, usually `fngrad.init_state` and `fngrad.run` over
            ``data.reseed(key)``. A point is one entry of every column; the history is
            a dict of curves and scalars. The states of all lanes are kept, so return
            ``()`` for a state that is not needed.
        points: a pytree of numeric columns (P, ...), see `fngrad.sweeps.grid`.
        keys: how many seeds, or typed keys of shape (S,). Every point sees the same.
        args: what the lanes share, such as data: pytrees of arrays. Arrays that
            train_fn closes over become constants of the program instead.
        static: name -> values of any type, for choices that change the program: an
            optimizer, a batch size. Every combination is compiled separately.
        metric: the name of the metric that ranks points, and ``"min"`` or ``"max"``;
            or a name that implies the direction, see `fngrad.metrics.directions`. Of
            a curve the last value counts.
        mode: the width of the blocks on each device: 1 for ``"map"``, all lanes for
            ``"vmap"``, a number of lanes, or ``"auto"`` for a width that is likely
            fast. A block that does not fit in memory is narrowed, with a warning.
        chunk: how many lanes are saved at a time, rounded up to whole blocks; ``None``
            saves about a hundred times.
        folder: where chunks are saved, so that the same call resumes a killed sweep,
            and the result, for `fngrad.sweeps.load`. The folder is locked while the
            sweep runs: one process at a time.
        devices: where lanes are trained; all devices of this process by default.
        progress: whether to show a progress bar.

    Returns:
        The result. Its ``notes`` hold ``metric``; ``values``, float64 (P, S), the
        metric of each lane; ``keys``; ``static``, the names; ``modes``, one dict per
        combination with the ``width``, the ``reason`` for it, the number of
        ``devices`` and ``compile_seconds``; ``seconds`` of this call, compilation
        included; ``restored``, how many lanes were read from the folder.

    Raises:
        ValueError: if an argument is out of range, columns differ in length,
            ``train_fn`` is not pure or does not record the metric, or the folder holds
            another sweep.
        TypeError: if points or args are not numeric, ``static`` is not a mapping, or
            ``train_fn`` does not return (state, history) or has a structure that
            depends on the point.
        LockError: if another process uses the folder, or it cannot be written.

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
        saved = None
        if folder is not None:
            stack.enter_context(Lock(folder, purpose="this sweep"))
            saved = Folder(folder, _description(sweeps[0], outlines, combinations))
        results, how = _train(
            sweeps, outlines, saved, mode=mode, chunk=chunk, progress=progress
        )
        notes = {
            "metric": metric,
            "keys": keys,
            "static": list(static or {}),
            **how,
            "seconds": time.perf_counter() - begin,
        }
        result = _gather(results, columns, combinations, notes)
        if saved is not None:
            save(saved.path, result)
    return result


def _train(
    sweeps: list[Lanes],
    outlines: list[Outline],
    folder: Folder | None,
    *,
    mode: block_width.Mode,
    chunk: int | None,
    progress: bool,
) -> tuple[list[Any], dict[str, Any]]:
    """Train the lanes that the folder lacks; return outputs per sweep, and notes."""
    collected = [LaneOutputs(out.outputs, sweeps[0].count) for out in outlines]
    for number, outputs in enumerate(collected):
        if folder:
            folder.restore(number, outputs)
    restored = sum(int(outputs.done.sum()) for outputs in collected)
    total = len(collected) * sweeps[0].count
    bar = ProgressBar(total, restored, "sweep", enabled=progress, unit="lanes")
    with bar, _interrupts_report(collected, folder):
        modes = [
            Training(
                number=number,
                lanes=lanes,
                jaxpr=outlines[number].jaxpr,
                collected=collected[number],
                folder=folder,
                bar=bar,
                chunk=chunk,
            ).run(mode)
            for number, lanes in enumerate(sweeps)
        ]
    seeds = len(sweeps[0].keys)
    results = [outputs.by_point(seeds) for outputs in collected]
    return results, {"modes": modes, "restored": restored}


def seed_keys(keys: Any) -> Key:
    """Return the typed keys of the seeds, shape (S,); all points share them.

    Args:
        keys: how many seeds, or typed keys (S,).

    Raises:
        ValueError: if there is no seed, or keys are not typed or not of shape (S,).
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
    """Concatenate the results of all combinations along the points."""
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
    """Return values of any type as a column; mixed types as objects."""
    for kinds in (str, bool, int | float):
        if all(isinstance(value, kinds) for value in values):
            return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


@contextlib.contextmanager
def _interrupts_report(
    collected: list[LaneOutputs], folder: Folder | None
) -> Iterator[None]:
    """Note on a KeyboardInterrupt how many lanes are done and where they are."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = np.concatenate([outputs.done for outputs in collected])
        fate = "lost: a folder would keep them"
        if folder:
            fate = f"kept in {folder.path}: the same call continues from there"
        interrupt.add_note(f"{done.sum()} of {done.size} lanes are {fate}")
        raise


def _description(
    lanes: Lanes, outlines: list[Outline], combinations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return everything that determines a sweep's outputs, as JSON values."""
    return {
        **machine(),
        "points": digest(lanes.points),
        "keys": digest(lanes.keys),
        "args": digest(lanes.args),
        "static": [
            {name: recorded(x) for name, x in values.items()} for values in combinations
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
                f"need arrays in args, got {type(leaf).__name__} at {path!r}: other "
                "values belong in static or train_fn"
            )


def _check_takes(train_fn: Any, args: tuple[Any, ...], values: Any) -> None:
    try:
        inspect.signature(train_fn).bind(None, None, *args, **values)
    except TypeError as error:
        names = list(signatures.parameters(train_fn))
        raise TypeError(
            "need train_fn(point, key, *args, **static_values) with "
            f"{len(args)} args and static {list(values)}, got "
            f"{signatures.name_of(train_fn)} with the arguments {names}, {error}: pass "
            "arrays that the lanes share as args=(data,), choices such as a width as "
            "static={'width': [64]}, and bind the rest by functools.partial"
        ) from error
    except ValueError:  # a builtin without a signature
        return


def _check_options(mode: block_width.Mode, chunk: int | None) -> None:
    block_width.check_mode(mode)
    if chunk is not None:
        numerics.check_count("chunk", chunk, low=1)

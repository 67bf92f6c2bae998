"""`sweep`: many trainings as one compiled program."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import fngrad.numerics as numerics
import fngrad.sweeps.running.block_width as block_width
import fngrad.tree as tree
from fngrad.files.locks import Lock
from fngrad.logging import ProgressBar
from fngrad.metrics.directions import Metric, directed
from fngrad.programs.keywords_elsewhere import OF_SWEEPS, explains_keywords
from fngrad.sweeps.results.assembly import Part, assemble
from fngrad.sweeps.results.result import SweepResult
from fngrad.sweeps.results.saved import save
from fngrad.sweeps.running.combinations import (
    Combination,
    by_point,
    combinations,
    count_done,
    describe,
    recorded_modes,
    restore,
    share_done,
    trace,
    train,
)
from fngrad.sweeps.running.extension import descriptions, earlier_sweep
from fngrad.sweeps.running.failures import Failures
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.peers import all_peers
from fngrad.sweeps.running.program import Lanes, is_key
from fngrad.sweeps.running.storage import Folder, digest
from fngrad.sweeps.searching.points import check_points
from fngrad.types import Key


@explains_keywords(OF_SWEEPS)
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
    extend: SweepResult | str | Path | None = None,
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

    In a program of several processes (`fngrad.distributed`) all call this function with
    the same arguments. Each trains its part of the lanes on its own devices and returns
    the whole result; the first one owns the folder and the progress bar. A training
    that raises in one process is recorded by all.

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
            optimizer, a batch size. Every combination is compiled separately. One
            that raises is left out with a warning, unless all do: its points are NaN
            in the history and last in a table.
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
        extend: an earlier sweep of the same ``train_fn`` and ``args``, its result or
            its folder, to which this one adds points, keys or static values. Pass all
            of them, the old ones included: a lane that both sweeps have is not
            trained again, and the result has the bits of one sweep over all in blocks
            of the recorded width.
        devices: where lanes are trained; all devices of this process by default.
        progress: whether to show a progress bar.

    Returns:
        The result, in every process. Its ``notes`` hold ``metric``; ``values``, float64
        (P, S), the metric of each lane; ``keys``; ``static``, the names; ``modes``, one
        dict per combination with the ``width``, the ``reason`` for it, the number of
        ``devices`` and ``compile_seconds``, None for one that failed; ``failures``, a
        `fngrad.sweeps.Failure` for each of those; ``seconds`` of this call,
        compilation included; ``restored``, how many lanes were read from the folder or
        from ``extend``; ``program``, what determined them besides point and key.

    Raises:
        ValueError: if an argument is out of range, columns differ in length,
            ``train_fn`` is not pure or does not record the metric, the folder holds
            another sweep, ``extend`` trained in another way or has none of the lanes,
            or processes of one program train different sweeps.
        TypeError: if points or args are not numeric, ``static`` is not a mapping,
            ``extend`` is neither a result nor a folder, or ``train_fn`` does not return
            (state, history) or has a structure that depends on the point.
        Exception: of the first combination of static values, if all of them fail.
        LockError: if another process uses the folder, or it cannot be written.
        RuntimeError: if another process of the program has ended.

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
    check_options(mode, args)
    if chunk is not None:
        numerics.check_count("chunk", chunk, low=1)
    columns, count = check_points(points)
    keys, devices = seed_keys(keys), training_devices(devices)
    statics = combinations(static, columns)
    peers = all_peers()
    failures = Failures(statics, peers)
    lanes = Lanes(train_fn, columns, keys, args, devices, peers)
    found = trace(train_fn, lanes, dict(enumerate(statics)), metric[0], failures)
    program = describe(digest(args), found)
    peers.check_same([*descriptions(program, lanes), len(devices)])
    take = _taking(extend, folder, program, lanes)
    with _opened(folder, program, lanes) as saved:
        options = {"mode": mode, "chunk": chunk, "progress": progress}
        outputs, how = _train(found, failures, saved, take, **options)
        notes = {
            "metric": metric,
            "keys": keys,
            "static": list(static or {}),
            **how,
            "program": program,
            "failures": failures.record(
                {n: list(range(n * count, (n + 1) * count)) for n in failures}
            ),
            "seconds": time.perf_counter() - begin,
        }
        parts = [Part(c.static, columns, outputs[n]) for n, c in found.items()]
        result = assemble(parts, len(keys), notes)
        if saved is not None:
            save(saved.path, result)
    return result


@contextlib.contextmanager
def _opened(
    folder: str | Path | None, program: dict[str, Any], lanes: Lanes
) -> Iterator[Folder | None]:
    """Lock the folder in the first process, and yield it; None in the others."""
    if folder is None or not lanes.peers.is_first:
        yield None
        return
    with Lock(folder, purpose="this sweep"):
        yield Folder(folder, *descriptions(program, lanes))


def _train(
    found: dict[int, Combination],
    failures: Failures,
    folder: Folder | None,
    take: Callable[[dict[int, LaneOutputs]], dict[int, Any]],
    *,
    mode: block_width.Mode,
    chunk: int | None,
    progress: bool,
) -> tuple[dict[int, Any], dict[str, Any]]:
    """Train the lanes that neither the folder nor an earlier sweep has.

    Returns:
        The outputs by combination, point and seed, and notes.
    """
    collected = restore(found, folder)
    peers = next(iter(found.values())).lanes.peers
    taken = take(collected) | recorded_modes(found, folder)
    taken = share_done(peers, collected, taken)
    done = count_done(collected)
    total = sum(outputs.done.size for outputs in collected.values())
    shown = progress and peers.is_first
    with ProgressBar(total, done, "sweep", enabled=shown, unit="lanes") as bar:
        modes = train(
            found,
            collected,
            failures,
            folder,
            bar=bar,
            mode=mode,
            chunk=chunk,
            known=taken,
        )
    outputs = by_point(found, collected, failures)
    return outputs, {"modes": list(modes.values()), "restored": done}


def _taking(
    extend: SweepResult | str | Path | None,
    folder: str | Path | None,
    program: dict[str, Any],
    lanes: Lanes,
) -> Callable[[dict[int, LaneOutputs]], dict[int, Any]]:
    """Return a function that takes over the lanes of an earlier sweep."""
    if not isinstance(extend, SweepResult | str | Path | None):
        raise TypeError(
            f"need as extend the result of a sweep or its folder, got {extend!r}"
        )
    if extend is None or not lanes.peers.is_first:
        return lambda collected: {}
    if (
        isinstance(extend, str | Path)
        and folder is not None
        and Path(folder).resolve() == Path(extend).resolve()
    ):
        raise ValueError(
            "need a folder for the whole sweep other than that of the sweep that it "
            f"extends, got {str(folder)!r} for both"
        )
    earlier = earlier_sweep(extend)
    return functools.partial(earlier.take, program, lanes)


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


def training_devices(devices: Sequence[Any] | None) -> list[Any]:
    """Return the devices to train on; ``None`` means all of this process.

    Raises:
        ValueError: if there are none, or one is another process's.
    """
    chosen = jax.local_devices() if devices is None else list(devices)
    if not chosen:
        raise ValueError("need at least one device, got none")
    if others := [d for d in chosen if d.process_index != jax.process_index()]:
        raise ValueError(
            f"need devices of this process, as jax.local_devices() gives, got {others}"
        )
    return chosen


def check_options(mode: block_width.Mode, args: Any) -> None:
    """Check what is asked of the lanes.

    Args:
        mode: the width of the blocks.
        args: what the lanes share.

    Raises:
        ValueError: if the mode is none.
        TypeError: if ``args`` is not a tuple of trees of arrays.
    """
    block_width.check_mode(mode)
    if not isinstance(args, tuple):
        raise TypeError(f"need args, a tuple, got {type(args).__name__}: args=(data,)")
    for path, leaf in tree.leaf_paths(args).items():
        if not (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float)):
            raise TypeError(
                f"need arrays in args, got {type(leaf).__name__} at {path!r}: other "
                "values belong in static or train_fn"
            )

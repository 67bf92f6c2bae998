"""The combinations of static values of a sweep: each is a program of its own."""

import contextlib
import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import fngrad.programs.signatures as signatures
import fngrad.sweeps.running.block_width as block_width
import fngrad.tree as tree
from fngrad.logging import ProgressBar
from fngrad.programs.printed import recorded
from fngrad.sweeps.running.block_width import Choice
from fngrad.sweeps.running.failures import Failures
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.lane_training import Training
from fngrad.sweeps.running.peers import Peers
from fngrad.sweeps.running.program import Block, Lanes, Outline, outline
from fngrad.sweeps.running.storage import (
    Folder,
    SavedLanes,
    describe_shapes,
    machine,
)


class Combination(NamedTuple):
    """The lanes of one combination of static values."""

    static: dict[str, Any]  # the values, by name
    lanes: Lanes
    outline: Outline | None  # None if tracing failed
    blocks: dict[int, Block] | None = None  # kept for other points, by width
    choice: Choice | None = None  # a width that is fixed, not chosen for these lanes


def combinations(
    static: Mapping[str, Sequence[Any]] | None, columns: Any
) -> list[dict[str, Any]]:
    """Return every combination of static values, the last name varying fastest.

    Args:
        static: name -> values, of any type; ``None`` has none.
        columns: of the points, whose names must be others.

    Raises:
        TypeError: if ``static`` is not a mapping.
        ValueError: if a name has no list of values, or is that of a column.
    """
    static = {} if static is None else static
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


def trace(
    train_fn: Callable[..., Any],
    lanes: Lanes,
    statics: Mapping[int, dict[str, Any]],
    metric: str,
    failures: Failures,
) -> dict[int, Combination]:
    """Trace the training with combinations of static values.

    Args:
        train_fn: of the sweep.
        lanes: with any ``train_fn``.
        statics: the combinations, by number.
        metric: which the history must hold.
        failures: records the combinations whose tracing raises, with warnings.

    Raises:
        TypeError: if ``train_fn`` does not take the arguments.
        Exception: as tracing, if all combinations have failed.
    """
    found = {}
    for number, values in statics.items():
        _check_takes(train_fn, lanes.args, values)
        own = lanes._replace(train_fn=functools.partial(train_fn, **values))
        traced = failures.attempt(number, outline, own, metric)
        found[number] = Combination(values, own, traced)
    for number in failures:
        if number in found:
            failures.warn(number)
    return found


def describe(args: str, found: Mapping[int, Combination]) -> dict[str, Any]:
    """Return what determines a lane's outputs besides its point and its key.

    Args:
        args: the digest of what the lanes share.
        found: the combinations; those values are lists, one entry for each.

    Returns:
        Name -> values of JSON.
    """
    outlines = [c.outline for c in found.values()]
    statics = [c.static for c in found.values()]
    return {
        **machine(),
        "args": args,
        "static": [{n: recorded(x) for n, x in values.items()} for values in statics],
        "outputs": [out and describe_shapes(out.outputs) for out in outlines],
        "train_fn": [out and out.fingerprint for out in outlines],
    }


def restore(
    found: Mapping[int, Combination], folder: SavedLanes | None
) -> dict[int, LaneOutputs]:
    """Return the outputs of the combinations that were traced, read from the folder."""
    collected = {
        number: LaneOutputs(c.outline.outputs, c.lanes.count)
        for number, c in found.items()
        if c.outline is not None
    }
    for number, outputs in collected.items():
        if folder:
            folder.restore(number, outputs)
    return collected


def share_done(
    peers: Peers, collected: Mapping[int, LaneOutputs], modes: Mapping[int, Any]
) -> dict[int, Any]:
    """Give all processes the lanes that the first one has.

    Args:
        peers: the processes.
        collected: the outputs; those of the other processes are replaced.
        modes: how the lanes were trained, by combination.

    Returns:
        The widths of the first one's modes.
    """
    if peers.count == 1:
        return dict(modes)
    widths = {str(number): mode["width"] for number, mode in modes.items()}
    known = json.loads(peers.from_first(json.dumps(widths)))
    for outputs in collected.values():
        if peers.first(int(outputs.done.any())):
            leaves = [outputs.done, *outputs.leaves]
            done, *first = peers.share(leaves, leaves)[0]
            lanes = np.flatnonzero(done)
            outputs.put(lanes, [leaf[lanes] for leaf in first])
    return {int(number): {"width": width} for number, width in known.items()}


def recorded_modes(
    found: Mapping[int, Combination], folder: SavedLanes | None
) -> dict[int, Any]:
    """Return how the lanes in the folder were trained, by combination."""
    modes = {number: folder and folder.mode(number) for number in found}
    return {number: mode for number, mode in modes.items() if mode}


def count_done(collected: Mapping[int, LaneOutputs]) -> int:
    """Return how many lanes are done."""
    return sum(int(outputs.done.sum()) for outputs in collected.values())


def train(
    found: Mapping[int, Combination],
    collected: Mapping[int, LaneOutputs],
    failures: Failures,
    folder: Folder | None,
    *,
    bar: ProgressBar,
    mode: block_width.Mode,
    chunk: int | None = None,
    known: Mapping[int, Any] | None = None,
) -> dict[int, dict[str, Any] | None]:
    """Train the lanes that are not done.

    Args:
        found: the combinations, by number.
        collected: their outputs, to which those of the lanes are added.
        failures: records the combinations whose training raises, with warnings.
        folder: where chunks of lanes are saved.
        bar: shows the progress.
        mode: the width of the blocks.
        chunk: how many lanes are saved at a time.
        known: how the lanes that are done were trained, by combination.

    Returns:
        How each combination was trained, None for one that failed.

    Raises:
        Exception: as training, if all combinations have failed.
        OSError: if the folder cannot be written.
    """
    modes: dict[int, dict[str, Any] | None] = dict.fromkeys(found)
    with _interrupts_report(collected, folder):
        for number, outputs in collected.items():
            then = (known or {}).get(number)
            traced = found[number].outline
            assert traced is not None
            training = Training(
                number=number,
                lanes=found[number].lanes,
                jaxpr=traced.jaxpr,
                blocks=found[number].blocks,
                collected=outputs,
                folder=folder,
                bar=bar,
                chunk=chunk,
                recorded=then,
            )
            fixed = None if then else found[number].choice
            choice = (fixed, False) if fixed else training.choose(mode)
            modes[number] = failures.attempt(
                number, training.run, *choice, fatal=(OSError,)
            )
            if number in failures:
                failures.warn(number)
    return modes


def by_point(
    found: Mapping[int, Combination],
    collected: Mapping[int, LaneOutputs],
    failures: Failures,
) -> dict[int, Any]:
    """Return the outputs of each combination by point and seed, None if it failed."""
    return {
        number: None
        if number in failures
        else collected[number].by_point(len(combination.lanes.keys))
        for number, combination in found.items()
    }


@contextlib.contextmanager
def _interrupts_report(
    collected: Mapping[int, LaneOutputs], folder: Folder | None
) -> Iterator[None]:
    """Note on a KeyboardInterrupt how many lanes are done and where they are."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = count_done(collected)
        count = sum(outputs.done.size for outputs in collected.values())
        fate = "lost: a folder would keep them"
        if folder:
            fate = f"kept in {folder.path}: the same call continues from there"
        interrupt.add_note(f"{done} of {count} lanes are {fate}")
        raise


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

"""The combinations of static values of a sweep: each is a program of its own."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import fngrad.programs.signatures as signatures
import fngrad.sweeps.running.block_width as block_width
import fngrad.tree as tree
from fngrad.logging import ProgressBar
from fngrad.programs.printed import recorded
from fngrad.sweeps.running.failures import Failures
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.lane_training import Training
from fngrad.sweeps.running.program import Lanes, Outline, outline
from fngrad.sweeps.running.storage import Folder, describe_shapes, digest, machine


class Combination(NamedTuple):
    """The lanes of one combination of static values."""

    static: dict[str, Any]  # the values, by name
    lanes: Lanes
    outline: Outline | None  # None if tracing failed


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


def trace_all(
    train_fn: Callable[..., Any],
    lanes: Lanes,
    statics: Sequence[dict[str, Any]],
    metric: str,
    failures: Failures,
) -> list[Combination]:
    """Trace the training with each combination of static values.

    Args:
        train_fn: of the sweep.
        lanes: with any ``train_fn``.
        statics: the combinations.
        metric: which the history must hold.
        failures: records the combinations whose tracing raises.

    Raises:
        TypeError: if ``train_fn`` does not take the arguments.
        Exception: as tracing, if it fails for all combinations.
    """
    _check_takes(train_fn, lanes.args, statics[0])
    found = []
    for number, values in enumerate(statics):
        own = lanes._replace(train_fn=functools.partial(train_fn, **values))
        traced = failures.attempt(number, outline, own, metric)
        found.append(Combination(values, own, traced))
    for number in failures:
        failures.warn(number)
    return found


def describe(found: Sequence[Combination]) -> dict[str, Any]:
    """Return what determines a lane's outputs besides its point and its key.

    The values are those of JSON, lists of one value per combination.
    """
    lanes = found[0].lanes
    outlines = [c.outline for c in found]
    return {
        **machine(),
        "args": digest(lanes.args),
        "static": [{n: recorded(x) for n, x in c.static.items()} for c in found],
        "outputs": [out and describe_shapes(out.outputs) for out in outlines],
        "train_fn": [out and out.fingerprint for out in outlines],
    }


def train_all(
    found: Sequence[Combination],
    failures: Failures,
    folder: Folder | None,
    earlier: Callable[[dict[int, LaneOutputs]], dict[int, Any]],
    *,
    mode: block_width.Mode,
    chunk: int | None,
    progress: bool,
) -> tuple[list[Any], dict[str, Any]]:
    """Train the lanes that neither the folder nor an earlier sweep has.

    Args:
        found: the combinations.
        failures: records those whose training raises.
        folder: where chunks of lanes are read and saved.
        earlier: puts the lanes that an earlier sweep trained into the outputs, and
            returns how, by combination.
        mode: the width of the blocks.
        chunk: how many lanes are saved at a time.
        progress: whether to show a bar.

    Returns:
        The outputs of each combination, None for one that failed, and notes.

    Raises:
        Exception: as training, if it fails for all combinations.
        OSError: if the folder cannot be written.
    """
    collected = {
        number: LaneOutputs(c.outline.outputs, c.lanes.count)
        for number, c in enumerate(found)
        if c.outline is not None
    }
    for number, outputs in collected.items():
        if folder:
            folder.restore(number, outputs)
    modes_then = earlier(collected)
    restored = sum(int(outputs.done.sum()) for outputs in collected.values())
    total = sum(c.lanes.count for c in found if c.outline is not None)
    bar = ProgressBar(total, restored, "sweep", enabled=progress, unit="lanes")
    modes: list[dict[str, Any] | None] = [None] * len(found)
    with bar, _interrupts_report(collected, folder):
        for number, outputs in collected.items():
            lanes, traced = found[number].lanes, found[number].outline
            assert traced is not None
            training = Training(
                number=number,
                lanes=lanes,
                jaxpr=traced.jaxpr,
                collected=outputs,
                folder=folder,
                bar=bar,
                chunk=chunk,
                recorded=(folder and folder.mode(number)) or modes_then.get(number),
            )
            choice = training.choose(mode)
            modes[number] = failures.attempt(
                number, training.run, *choice, fatal=(OSError,)
            )
            if number in failures:
                failures.warn(number)
    results = [
        None
        if number in failures
        else collected[number].by_point(len(combination.lanes.keys))
        for number, combination in enumerate(found)
    ]
    return results, {"modes": modes, "restored": restored}


@contextlib.contextmanager
def _interrupts_report(
    collected: dict[int, LaneOutputs], folder: Folder | None
) -> Iterator[None]:
    """Note on a KeyboardInterrupt how many lanes are done and where they are."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = np.concatenate([outputs.done for outputs in collected.values()])
        fate = "lost: a folder would keep them"
        if folder:
            fate = f"kept in {folder.path}: the same call continues from there"
        interrupt.add_note(f"{done.sum()} of {done.size} lanes are {fate}")
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

"""Which width of blocks is fastest, by timing the first steps of a training.

The first steps are cut out of the training's program: the operations before its
heaviest loop, and a few rounds of that loop.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.programs.equations as equations
import fngrad.programs.jaxprs as jaxprs
from fngrad.sweeps.running.program import Block, Lanes, compile_block

REPEATS = 3
MAX_SHARE = 0.1  # of the time of the rest of a sweep, for timing other widths
TIMED_SHARE = 0.01  # of a sweep's steps, timed in one repeat
GAIN = 0.95  # another width must take less than this share of the first one's time


class Trial(NamedTuple):
    """The fastest width, and how it was found."""

    width: int
    reason: str
    compile_seconds: float = 0.0


def try_widths(
    lanes: Lanes,
    jaxpr: Any,
    block: Block,
    *,
    seconds: float,
    budget: int,
) -> Trial:
    """Time the widths 1, that of a block, and four times that.

    Args:
        lanes: the trainings.
        jaxpr: the program of one, see `fngrad.sweeps.running.program.Outline`.
        block: a compiled block of the present width.
        seconds: the rest of the sweep takes at that width.
        budget: bytes of a device that a block may take.
    """
    width = block.width
    widths = sorted({1, width, min(4 * width, lanes.share)})
    if seconds * MAX_SHARE < (len(widths) + 1) * block.compile_seconds:
        return Trial(width, "the sweep is too short to pay for trying other widths")
    loop = heaviest_loop(jaxpr)
    if loop is None:
        return Trial(width, "the program has no loop whose first steps could be timed")
    steps = int(TIMED_SHARE * lanes.count * loop.length / sum(widths))
    first_steps = shortened(jaxpr, max(1, min(steps, loop.length)))
    few = lanes._replace(train_fn=lambda *inputs: first_steps(inputs))
    blocks = [compile_block(few, w) for w in widths]
    blocks = [b for b in blocks if b.bytes <= budget]
    # The first repeat finishes compiling. A block that is partly padding costs as much
    # as a full one.
    times = [[_seconds(b) for b in blocks] for _ in range(REPEATS + 1)]
    totals = {
        b.width: min(own) * -(-lanes.count // b.lanes)
        for b, own in zip(blocks, zip(*times[1:], strict=True), strict=True)
    }
    fastest = min(totals, key=totals.__getitem__)
    if totals[fastest] > GAIN * totals.get(width, float("inf")):
        fastest = width
    shown = ", ".join(f"{w}: {t / totals[fastest]:.2f}" for w, t in totals.items())
    compiling = sum(b.compile_seconds for b in blocks)
    return Trial(fastest, f"relative times of the first steps: {shown}", compiling)


class Loop(NamedTuple):
    """A loop of known length in a program."""

    length: int
    carry_bytes: int  # of the values carried from round to round


def heaviest_loop(jaxpr: Any) -> Loop | None:
    """Return the loop with the most operations, if there is one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.sweeps.running.width_timing import heaviest_loop
        >>> def train(x):
        ...     return jax.lax.scan(lambda x, _: (x * 2, x), x, None, 7)
        >>> heaviest_loop(jax.make_jaxpr(train)(jnp.ones(3)))
        Loop(length=7, carry_bytes=12)
    """
    equation = _heaviest(jaxpr)
    if equation is None:
        return None
    if equation.primitive.name != "scan":
        return heaviest_loop(_inner(equation))
    body = _inner(equation).outvars
    carry = body[: _stacked(equation.outvars, body).count(False)]
    return Loop(equation.params["length"], sum(_size(x.aval) for x in carry))


def shortened(jaxpr: Any, steps: int) -> Callable[[Any], Any]:
    """Return a program as a function that ends after some rounds of its heaviest loop.

    Args:
        jaxpr: a program with a loop.
        steps: how many rounds of the loop to run, at most its length.

    Returns:
        A function of the program's inputs, a pytree, that returns the loop's outputs.
    """
    return lambda inputs: _evaluate(jaxpr, jax.tree.leaves(inputs), steps)


def _evaluate(closed: Any, inputs: list[Any], steps: int) -> list[Any]:
    program, loop = jaxprs.called(closed), _heaviest(closed)
    known = program.constants | dict(zip(program.inputs, inputs, strict=True))
    for equation, run, _ in jaxprs.operations(program):
        values = [jaxprs.read(known, x) for x in equation.invars]
        if equation is loop:
            break
        known |= zip(equation.outvars, run(values), strict=True)
    if loop.primitive.name != "scan":
        return _evaluate(_inner(loop), values, steps)
    stacked = _stacked(loop.invars, _inner(loop).invars)
    cut = [
        x[:steps] if is_stacked else x
        for x, is_stacked in zip(values, stacked, strict=True)
    ]
    return loop.primitive.bind(*cut, **loop.params | {"length": steps})


def _heaviest(closed: Any) -> Any:
    """Return the equation with the most operations in loops, or None."""
    return max(filter(_holds_loop, closed.eqns), key=_weight, default=None)


def _holds_loop(equation: Any) -> bool:
    if equation.primitive.name == "scan":
        return True
    inner = _inner(equation)
    return inner is not None and any(_holds_loop(e) for e in inner.eqns)


def _weight(equation: Any) -> int:
    inner = _inner(equation)
    if inner is None:
        return 1
    rounds = equation.params.get("length", 1)
    return rounds * sum(_weight(e) for e in inner.eqns)


def _inner(equation: Any) -> Any:
    """Return the program inside a scan or a call, else None."""
    if equation.primitive.name == "scan":
        return equation.params["jaxpr"]
    return equations.program_called(equation)


def _stacked(outer: Any, inner: Any) -> list[bool]:
    """Return which values a loop slices round by round, by their numbers of axes.

    The names of the loop's parameters depend on the version of jax.
    """
    pairs = zip(outer, inner, strict=True)
    return [x.aval.ndim > y.aval.ndim for x, y in pairs]


def _size(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize


def _seconds(block: Block) -> float:
    lanes = np.zeros(block.lanes, int)
    begin = time.perf_counter()
    jax.block_until_ready(block.run(lanes))
    return time.perf_counter() - begin

"""The first steps of a training, to time blocks of several widths.

A training is a loop, so its first steps tell what all cost. They are found in the
training's program: all that comes before its heaviest loop, and a few rounds of that.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.sweeps.running.program as program

ROUNDS = 3
SHARE = 0.1  # of the rest of a sweep, what trying other widths may cost
PROBED = 0.01  # of a sweep's steps, what is made in one round
WORTH = 0.95  # of the time of the first width, below which another is taken


class Trial(NamedTuple):
    """Which width is fastest, and how that was found."""

    width: int
    reason: str
    compile_seconds: float = 0.0


def try_widths(
    lanes: program.Lanes,
    jaxpr: Any,
    block: program.Block,
    seconds: float,
    budget: int,
) -> Trial:
    """Time blocks of one lane, and of four times as many, beside those of a block.

    Args:
        lanes: the trainings.
        jaxpr: the program of one, `fngrad.sweeps.running.program.Outline`.
        block: blocks of the width that is there.
        seconds: what the rest of the sweep takes with it.
        budget: bytes of a device that a block may take.
    """
    width = block.width
    share = -(-lanes.count // len(lanes.devices))
    widths = sorted({1, width, min(4 * width, share)})
    if seconds * SHARE < (len(widths) + 1) * block.compile_seconds:
        return Trial(width, "the sweep is too short to pay for trying other widths")
    loop = heaviest_loop(jaxpr)
    if loop is None:
        return Trial(width, "there is no loop whose first steps could be timed")
    steps = int(PROBED * lanes.count * loop.length / sum(widths))
    first_steps = shortened(jaxpr, max(1, min(steps, loop.length)))
    few = lanes._replace(train_fn=lambda *inputs: first_steps(inputs))
    blocks = [program.compile_block(few, w) for w in widths]
    blocks = [b for b in blocks if b.bytes <= budget]
    times = {b.width: [] for b in blocks}
    for _ in range(ROUNDS + 1):
        for b in blocks:
            times[b.width].append(_seconds(b))
    # A round compiles what is left to compile, and a partly empty block costs a whole.
    totals = {
        b.width: min(times[b.width][1:]) * -(-lanes.count // b.lanes) for b in blocks
    }
    fastest = min(totals, key=totals.__getitem__)
    if totals[fastest] > WORTH * totals.get(width, float("inf")):
        fastest = width
    shown = ", ".join(f"{w}: {t / totals[fastest]:.2f}" for w, t in totals.items())
    compiling = sum(b.compile_seconds for b in blocks)
    return Trial(fastest, f"relative times of the first steps: {shown}", compiling)


class Loop(NamedTuple):
    """A loop of known length in a program."""

    length: int
    carry_bytes: int  # of what goes from round to round


def heaviest_loop(jaxpr: Any) -> Loop | None:
    """Return the loop in which most is computed, if there is one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.sweeps.running.probes import heaviest_loop
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
    body = _open(_inner(equation)).outvars
    carry = body[: _stacked(equation.outvars, body).count(False)]
    return Loop(equation.params["length"], sum(_size(x.aval) for x in carry))


def shortened(jaxpr: Any, steps: int) -> Callable[[Any], Any]:
    """Return the function of a program's inputs that ends in its heaviest loop.

    Args:
        jaxpr: a program with a loop.
        steps: how many rounds of the loop are made, at most its length.

    Returns:
        A function of the inputs, a pytree, that returns what the loop does.
    """
    return lambda inputs: _evaluate(jaxpr, jax.tree.leaves(inputs), steps)


def _evaluate(closed: Any, inputs: list[Any], steps: int) -> list[Any]:
    jaxpr, loop = _open(closed), _heaviest(closed)
    known = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def values(equation: Any) -> list[Any]:
        return [x.val if hasattr(x, "val") else known[x] for x in equation.invars]

    for equation in itertools.takewhile(lambda e: e is not loop, jaxpr.eqns):
        bound = equation.primitive.get_bind_params(equation.params)
        # jax 0.7 gives the functions among the parameters apart.
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        outputs = equation.primitive.bind(*functions, *values(equation), **params)
        many = outputs if equation.primitive.multiple_results else [outputs]
        known |= dict(zip(equation.outvars, many, strict=True))
    if loop.primitive.name != "scan":
        return _evaluate(_inner(loop), values(loop), steps)
    stacked = _stacked(loop.invars, _open(_inner(loop)).invars)
    given = [
        x[:steps] if is_stacked else x
        for x, is_stacked in zip(values(loop), stacked, strict=True)
    ]
    return loop.primitive.bind(*given, **loop.params | {"length": steps})


def _heaviest(closed: Any) -> Any:
    """Return the equation that holds most rounds of most operations, or None."""
    equations = [e for e in _open(closed).eqns if _holds_loop(e)]
    return max(equations, key=_weight, default=None)


def _holds_loop(equation: Any) -> bool:
    if equation.primitive.name == "scan":
        return True
    inner = _inner(equation)
    return inner is not None and any(_holds_loop(e) for e in _open(inner).eqns)


def _weight(equation: Any) -> int:
    inner = _inner(equation)
    if inner is None:
        return 1
    rounds = equation.params.get("length", 1)
    return rounds * sum(_weight(e) for e in _open(inner).eqns)


def _inner(equation: Any) -> Any:
    """Return the program inside of a scan or of a jitted function, else None."""
    is_plain = equation.primitive.name in ("scan", "jit", "pjit", "closed_call")
    return equation.params.get("jaxpr") if is_plain else None


def _stacked(outer: Any, inner: Any) -> list[bool]:
    """Return which values a loop cuts into rounds, by their axes in and out of it.

    The names of its parameters change with the version of jax.
    """
    pairs = zip(outer, inner, strict=True)
    return [x.aval.ndim > y.aval.ndim for x, y in pairs]


def _open(closed: Any) -> Any:
    return getattr(closed, "jaxpr", closed)


def _size(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize


def _seconds(block: program.Block) -> float:
    lanes = np.zeros(block.lanes, int)
    begin = time.perf_counter()
    jax.block_until_ready(block.run(lanes))
    return time.perf_counter() - begin

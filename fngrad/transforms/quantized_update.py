"""An update of moments in codes that holds few of them in float32 at a time.

The inner update is cut into slices (`fngrad.programs.jaxprs`). A slice decodes what it
reads and encodes what it makes, so a rule that treats its leaves apart has one leaf's
moments in float32 at a time. A rule that mixes them, by a norm over all, has them all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

import fngrad.numerics.low_bit_codes as low_bit_codes
import fngrad.programs.jaxprs as jaxprs
import fngrad.tree as tree
from fngrad.types import OptState, Params, Reported, Updates


def is_coded(x: Any) -> bool:
    """Say whether x is an array in codes."""
    return isinstance(x, low_bit_codes.Coded)


def decode(state: Any) -> Any:
    """Return a state with arrays for all codes in it."""
    return jax.tree.map(
        lambda x: low_bit_codes.decode(x) if is_coded(x) else x, state, is_leaf=is_coded
    )


def update_coded(
    run: Callable[[Updates, OptState, Params], Reported],
    updates: Updates,
    state: OptState,
    params: Params,
    step: jax.Array,
) -> Reported:
    """Return an update made from a state with codes, the next state, and the metrics.

    Args:
        run: ``(updates, state, params) -> (updates, state, metrics)``, the transform's
            update, which takes and gives states without codes.
        updates: what it is given, with ``params``.
        state: its state with a `fngrad.numerics.low_bit_codes.Coded` in place of some
            arrays; the new state has them in the same places.
        params: see ``updates``.
        step: int32, shape (); chooses the rounding.
    """
    old, structure = jax.tree.flatten(state, is_leaf=is_coded)

    def flat(updates: Updates, moments: list[Any], params: Params) -> Any:
        updates, new, told = run(updates, structure.unflatten(moments), params)
        return updates, structure.flatten_up_to(new), told

    abstract = jax.eval_shape(decode, old)
    program, result = jaxprs.trace(flat, updates, abstract, params)
    given = jax.tree.leaves((updates, old, params), is_leaf=is_coded)
    values = dict(zip(program.inputs, given, strict=True)) | program.constants
    count = len(jax.tree.leaves(updates))
    heads, rest = program.outputs[:count], program.outputs[count:]
    new, metrics = rest[: len(old)], rest[len(old) :]
    encoders = {
        variable: functools.partial(_encode, leaf, step, stream)
        for stream, (variable, leaf) in enumerate(zip(new, old, strict=True))
        if is_coded(leaf)
    }
    asked_for = set(filter(jaxprs.is_variable, heads + metrics))
    encoded: dict[Any, low_bit_codes.Coded] = {}
    for piece in jaxprs.slices(program):
        as_arrays = piece.passed_on | asked_for
        arrays, moments = _run(piece, values, encoders, as_arrays, step)
        values |= arrays
        encoded |= moments

    def kept(variable: Any, before: Any) -> Any:
        if not is_coded(before):
            return decode(jaxprs.read(values, variable))
        if variable in encoded:
            return encoded[variable]
        given = values[variable]  # no slice made it
        return given if given is before else encoders[variable](decode(given))

    moments = list(map(kept, new, old))
    made, told = (
        [decode(jaxprs.read(values, v)) for v in some] for some in (heads, metrics)
    )
    told = [jnp.asarray(x) for x in told]  # Python's numbers are traced too
    updates, _, told = result.unflatten([*made, *moments, *told])
    return updates, structure.unflatten(moments), told


def _encode(
    before: low_bit_codes.Coded, step: jax.Array, stream: int, moment: jax.Array
) -> low_bit_codes.Coded:
    dither = low_bit_codes.dither_like(before, step, stream)
    return low_bit_codes.encode_like(before, moment, dither)


def _run(
    piece: jaxprs.Slice,
    values: dict[Any, Any],
    encoders: dict[Any, Callable[[jax.Array], low_bit_codes.Coded]],
    as_arrays: set[Any],
    step: jax.Array,
) -> tuple[dict[Any, jax.Array], dict[Any, low_bit_codes.Coded]]:
    """Return what a slice makes, by variable: arrays, and moments in codes."""
    moments = [v for v in piece.outputs if v in encoders]
    arrays = [v for v in piece.outputs if v not in encoders or v in as_arrays]

    def run(inputs: list[Any]) -> list[Any]:
        made = dict(zip(piece.outputs, piece.run(*decode(inputs)), strict=True))
        return [made[v] for v in arrays] + [encoders[v](made[v]) for v in moments]

    inputs = [values[v] for v in piece.inputs]
    has_codes = bool(moments) or any(map(is_coded, inputs))
    made = _confined(run, inputs, step) if has_codes else run(inputs)
    count = len(arrays)
    named = dict(zip(arrays, made[:count], strict=True))
    return named, dict(zip(moments, made[count:], strict=True))


def _confined(
    fn: Callable[[list[Any]], list[Any]], inputs: list[Any], step: jax.Array
) -> list[Any]:
    """Call a function so that what it holds for a while is not held for longer.

    On CPU XLA orders instructions for speed, and would hold the float32 moments of
    all leaves at once. It finishes a conditional before it goes on; elsewhere one
    would cost a wait for its predicate. Outside of jit all of it is let go anyway.
    """
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(inputs)):
        return fn(inputs)
    results = jax.eval_shape(fn, inputs)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(results)]
    if any(jnp.issubdtype(dtype, jax.dtypes.extended) for dtype in dtypes):
        return fn(inputs)  # keys have no zeros

    def confine(inputs: list[Any]) -> list[Any]:
        return lax.cond(step >= 0, fn, lambda _: tree.zeros_like(results), inputs)

    return lax.platform_dependent(inputs, cpu=confine, default=fn)

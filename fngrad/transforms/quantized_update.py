"""An update of moments in codes that holds few of them in float32 at a time.

The inner update is cut into slices (`fngrad.programs.jaxprs`). Each slice decodes its
inputs and encodes its outputs, so a rule that treats its leaves separately has one
leaf's moments in float32 at a time. A rule that mixes them, as by a norm over all
leaves, has all of them in float32.

Moments in bfloat16 need no memory for decoding, since a loop converts entries where it
reads them. There the slices put the rounded moments in the place of the computed ones
in the rest of the update, so that it reads 16 bits per entry.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

import fngrad.numerics.low_bit_codes as low_bit_codes
import fngrad.numerics.stochastic_rounding as stochastic_rounding
import fngrad.programs.jaxprs as jaxprs
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.programs.equations import is_variable
from fngrad.types import OptState, Params, Reported, Updates

Short: TypeAlias = low_bit_codes.Coded | stochastic_rounding.Rounded


def is_short(x: Any) -> bool:
    """Return whether x is an array in codes or in bfloat16."""
    return isinstance(x, low_bit_codes.Coded | stochastic_rounding.Rounded)


def decode(state: Any) -> Any:
    """Return a state with all its short arrays in their full dtypes."""
    return queries.replace(state, is_short, _decoded)


def _decoded(x: Short) -> jax.Array:
    if isinstance(x, stochastic_rounding.Rounded):
        return x.widened()
    return low_bit_codes.decode(x)


def _encode(before: Short, step: jax.Array, stream: int, moment: jax.Array) -> Short:
    """Return the next moment as the one before it is stored."""
    if isinstance(before, stochastic_rounding.Rounded):
        dither = stochastic_rounding.spread_dither(before.shape, step, stream)
        rounded = stochastic_rounding.round_by_dither(moment, dither)
        return dataclasses.replace(rounded, dtype=before.dtype)
    dither = low_bit_codes.dither_like(before, step, stream)
    return low_bit_codes.encode_like(before, moment, dither)


def _encoders(
    new: list[Any], old: list[Any], step: jax.Array
) -> dict[Any, Callable[[jax.Array], Short]]:
    """Return by variable how the new moments are stored, as the old ones are."""
    return {
        variable: functools.partial(_encode, leaf, step, stream)
        for stream, (variable, leaf) in enumerate(zip(new, old, strict=True))
        if is_short(leaf)
    }


def update_rounded(
    update_fn: Callable[[Updates, OptState, Params], Reported],
    updates: Updates,
    state: OptState,
    params: Params,
    step: jax.Array,
) -> Reported:
    """Return the updates, the next state and the metrics, from a state in bfloat16.

    The updates are those of the rounded moments.

    Args:
        update_fn: as in `update_coded`.
        updates: its first argument.
        state: its state with a `fngrad.numerics.stochastic_rounding.Rounded` in place
            of some arrays; the new state has them in the same places.
        params: its last argument.
        step: int32, shape (); selects the draws of the rounding.
    """
    old, structure = jax.tree.flatten(state, is_leaf=is_short)

    def flat(updates: Updates, moments: list[Any], params: Params) -> Any:
        updates, new, metrics = update_fn(updates, structure.unflatten(moments), params)
        return structure.flatten_up_to(new), updates, metrics

    arguments = updates, decode(old), params
    program, result = jaxprs.trace(flat, *arguments)
    leaves = jax.tree.leaves(arguments)
    values = dict(zip(program.inputs, leaves, strict=True)) | program.constants
    new = program.outputs[: len(old)]
    encoders = _encoders(new, old, step)
    rounded: dict[Any, Short] = {}
    for piece in jaxprs.slices(program):
        made = piece.run(*(values[v] for v in piece.inputs))
        values |= zip(piece.outputs, made, strict=True)
        for variable in filter(encoders.__contains__, piece.outputs):
            rounded[variable] = encoders[variable](values[variable])
            values[variable] = decode(rounded[variable])

    def kept(variable: Any, before: Any) -> Any:
        value = jaxprs.read(values, variable)
        if not is_short(before):
            return value
        # No slice computes an array that is passed on.
        return rounded.get(variable) or encoders[variable](value)

    moments = structure.unflatten(map(kept, new, old))
    made = [jnp.asarray(jaxprs.read(values, v)) for v in program.outputs[len(old) :]]
    _, updates, metrics = result.unflatten([*([None] * len(old)), *made])
    return updates, moments, metrics


def update_coded(
    update_fn: Callable[[Updates, OptState, Params], Reported],
    updates: Updates,
    state: OptState,
    params: Params,
    step: jax.Array,
) -> Reported:
    """Return the updates, the next state and the metrics, from a state with codes.

    Args:
        update_fn: ``(updates, state, params) -> (updates, state, metrics)``, the
            transform's update, on states without codes.
        updates: its first argument.
        state: its state with a `fngrad.numerics.low_bit_codes.Coded` in place of some
            arrays; the new state has them in the same places.
        params: its last argument.
        step: int32, shape (); selects the draws of the rounding.
    """
    old, structure = jax.tree.flatten(state, is_leaf=is_short)

    def flat(updates: Updates, moments: list[Any], params: Params) -> Any:
        updates, new, metrics = update_fn(updates, structure.unflatten(moments), params)
        return updates, structure.flatten_up_to(new), metrics

    abstract = jax.eval_shape(decode, old)
    program, result = jaxprs.trace(flat, updates, abstract, params)
    leaves = jax.tree.leaves((updates, old, params), is_leaf=is_short)
    values = dict(zip(program.inputs, leaves, strict=True)) | program.constants
    count = len(jax.tree.leaves(updates))
    heads, rest = program.outputs[:count], program.outputs[count:]
    new, reported = rest[: len(old)], rest[len(old) :]
    encoders = _encoders(new, old, step)
    returned = set(filter(is_variable, heads + reported))
    encoded: dict[Any, Short] = {}
    for piece in jaxprs.slices(program):
        as_arrays = piece.passed_on | returned
        arrays, moments = _run(piece, values, encoders, as_arrays, step)
        values |= arrays
        encoded |= moments

    def kept(variable: Any, before: Any) -> Any:
        if not is_short(before):
            return decode(jaxprs.read(values, variable))
        if variable in encoded:
            return encoded[variable]
        value = values[variable]  # no slice computes it
        return value if value is before else encoders[variable](decode(value))

    moments = list(map(kept, new, old))
    made, scalars = (
        [decode(jaxprs.read(values, v)) for v in some] for some in (heads, reported)
    )
    scalars = [jnp.asarray(x) for x in scalars]  # a constant one is a Python number
    updates, _, metrics = result.unflatten([*made, *moments, *scalars])
    return updates, structure.unflatten(moments), metrics


def _run(
    piece: jaxprs.Slice,
    values: dict[Any, Any],
    encoders: dict[Any, Callable[[jax.Array], Short]],
    as_arrays: set[Any],
    step: jax.Array,
) -> tuple[dict[Any, jax.Array], dict[Any, Short]]:
    """Return the outputs of a slice by variable: arrays, and moments in codes."""
    moments = [v for v in piece.outputs if v in encoders]
    arrays = [v for v in piece.outputs if v not in encoders or v in as_arrays]

    def run(inputs: list[Any]) -> list[Any]:
        made = dict(zip(piece.outputs, piece.run(*decode(inputs)), strict=True))
        return [made[v] for v in arrays] + [encoders[v](made[v]) for v in moments]

    inputs = [values[v] for v in piece.inputs]
    has_codes = bool(moments) or any(map(is_short, inputs))
    made = _confined(run, inputs, step) if has_codes else run(inputs)
    count = len(arrays)
    named = dict(zip(arrays, made[:count], strict=True))
    return named, dict(zip(moments, made[count:], strict=True))


def _confined(
    fn: Callable[[list[Any]], list[Any]], inputs: list[Any], step: jax.Array
) -> list[Any]:
    """Call a function so that its temporaries are freed when it returns.

    On CPU XLA orders instructions for speed, and would hold the float32 moments of
    all leaves at once. It finishes a conditional before it continues. On other devices
    a conditional would wait for its predicate. Outside of jit memory is freed anyway.
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

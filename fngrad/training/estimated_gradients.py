"""Losses that cannot be differentiated, with an estimate in place of the gradient.

The loss keeps its value, and its derivative with respect to the parameters is the
estimate, which `jax.grad` returns. So everything that takes a loss takes one of these:
`fngrad.make_step` with all of its arguments, `fngrad.steps`, every optimizer.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.losses.core import is_moving
from fngrad.losses.weighted_sums import WeightedSum
from fngrad.programs.signatures import OF_A_LOSS, operands, parameters
from fngrad.training.loss_forms import FORMS, check_loss, read_value
from fngrad.types import Key, LossFn, Params

# The leaves that are differentiated, as real arrays; a complex one is two of them.
Reals: TypeAlias = Sequence[jax.Array]
# (f, x, key) -> the gradient of f at x, for f(x) -> scalar.
Estimate: TypeAlias = Callable[[Callable[[Reals], jax.Array], Reals, Any], Reals]


def with_estimate(loss_fn: LossFn, estimate: Estimate, *, needs_key: bool) -> LossFn:
    """Return a loss whose derivative is an estimate.

    Args:
        loss_fn: any of the accepted forms. All evaluations for one gradient get the
            same key.
        estimate: of the gradient with respect to the leaves that are differentiated.
        needs_key: whether the estimate needs a key. The loss returned then has an
            argument named ``key``.

    Raises:
        TypeError: if the loss has another signature.
    """
    check_loss(loss_fn)
    params_name, _ = operands(loss_fn, OF_A_LOSS, FORMS)
    arguments = parameters(loss_fn)
    theirs = inspect.Signature(list(arguments.values()))
    signature, takes_key = theirs, "key" in arguments
    if needs_key and not takes_key:
        key = inspect.Parameter("key", inspect.Parameter.KEYWORD_ONLY)
        signature = inspect.Signature([*arguments.values(), key])

    def call(params: Params, given: dict[str, Any]) -> Any:
        ordered = {n: (given | {params_name: params}).get(n) for n in arguments}
        kept = {n: ordered[n] for n in ordered if n in given or n == params_name}
        bound = inspect.BoundArguments(theirs, kept)  # type: ignore[arg-type]
        return loss_fn(*bound.args, **bound.kwargs)

    def loss_of(out: Any, given: dict[str, Any]) -> jax.Array:
        return read_value(
            out, given.get("model_state", ()), "model_state" in arguments
        ).loss

    slope = _slope(lambda p, given: loss_of(call(p, given), given), estimate)

    @functools.wraps(loss_fn, updated=())
    def estimated(*args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(*args, **kwargs).arguments)
        params, key = given.pop(params_name), None
        if needs_key:
            key = given.pop("key")
            if takes_key:
                key, given["key"] = jax.random.split(key)
        out = call(jax.tree.map(jax.lax.stop_gradient, params), given)
        zero = jnp.zeros_like(loss_of(out, given))
        return _plus(out, slope(params, given, key, zero))

    estimated.__signature__ = signature  # type: ignore[attr-defined]
    return estimated


def _slope(
    loss_at: Callable[[Params, Any], jax.Array], estimate: Estimate
) -> Callable[[Params, Any, Key | None, jax.Array], jax.Array]:
    """Return ``slope(params, given, key, zero)``: zero, with the estimated slope."""

    @jax.custom_jvp
    def slope(params: Params, given: Any, key: Any, zero: jax.Array) -> jax.Array:
        return zero

    def rule(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        params, given, key, zero = primals
        leaves, structure = jax.tree.flatten(params)
        moves = jax.tree.leaves(tangents[0])
        moving = [i for i, t in enumerate(moves) if is_moving(t) and _is_inexact(t)]

        def at(reals: Reals) -> jax.Array:
            rest, moved = list(reals), list(leaves)
            for i in moving:
                moved[i] = _joined(rest, like=leaves[i])
            return loss_at(structure.unflatten(moved), given)

        reals = [part for i in moving for part in _real_parts(leaves[i])]
        along = [part for i in moving for part in _real_parts(moves[i])]
        grads = estimate(at, reals, key) if moving else []
        return zero, tree.vdot(list(grads), along).astype(zero.dtype)

    slope.defjvp(rule, symbolic_zeros=True)
    return slope


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _real_parts(x: Any) -> list[jax.Array]:
    """Return an array as real arrays of at least float32."""
    parts = [jnp.real(x), jnp.imag(x)] if jnp.iscomplexobj(x) else [x]
    return [tree.widen(jnp.asarray(part)) for part in parts]


def _joined(rest: list[jax.Array], like: jax.Array) -> jax.Array:
    """Take the parts of one array from the list, and return it."""
    if jnp.iscomplexobj(like):
        return jax.lax.complex(rest.pop(0), rest.pop(0)).astype(like.dtype)
    return rest.pop(0).astype(like.dtype)


def _plus(out: Any, slope: jax.Array) -> Any:
    """Return what a loss function gave, with the slope added to the loss."""
    if isinstance(out, tuple):
        return (_plus(out[0], slope), *out[1:])
    if isinstance(out, WeightedSum):
        rise = slope.astype(out.total.dtype) * jnp.asarray(out.weight).astype(
            out.total.dtype
        )
        return dataclasses.replace(out, total=out.total + rise)
    loss = jnp.asarray(out)
    return loss + slope.astype(loss.dtype)

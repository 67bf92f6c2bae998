"""Layers whose activations are computed again in the backward pass."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, overload

import jax

from fngrad.layers.core import Layer, StatefulLayer
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.programs.signatures import name_of, parameters

_L = TypeVar("_L", bound=Layer | StatefulLayer)

# One of jax.checkpoint_policies, or what one of its makers returns.
CheckpointPolicy: TypeAlias = Callable[..., Any]


@overload
def remat(layer: Layer, policy: CheckpointPolicy | None = ...) -> Layer: ...
@overload
def remat(
    layer: StatefulLayer, policy: CheckpointPolicy | None = ...
) -> StatefulLayer: ...
def remat(
    layer: Layer | StatefulLayer, policy: CheckpointPolicy | None = None
) -> Layer | StatefulLayer:
    """Return a layer that the backward pass computes again, to keep less in memory.

    It is the same function with the same gradient. Between the passes only the layer's
    parameters, its input, and what ``policy`` names are kept.

    Args:
        layer: parameters and state stay at their paths.
        policy: one of `jax.checkpoint_policies`, by default one that keeps nothing.

    Raises:
        TypeError: if ``layer`` is not a layer, or the policy not a function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> block = layers.serial(layers.linear(4, 64), jax.nn.gelu)
        >>> deep = layers.serial(layers.remat(block), layers.linear(64, 1))
        >>> params = deep.init(jax.random.key(0))
        >>> jax.jit(deep.apply)(params, jnp.ones(4)).shape
        (1,)

    References:
        Chen et al. 2016, "Training deep nets with sublinear memory cost",
        https://arxiv.org/abs/1604.06174
    """
    check_layer(layer, "for remat; a function has jax.checkpoint")
    return rematerialized(layer, True if policy is None else policy)


def rematerialized(
    layer: _L, remat: bool | CheckpointPolicy, *, in_loop: bool = False
) -> _L:
    """Return a layer as ``remat`` asks: as it is, or computed again.

    Args:
        layer: what to compute again.
        remat: whether, or a policy that says what is kept.
        in_loop: whether a loop applies it. The passes of a loop stay apart, so that
            nothing has to prevent XLA from merging them.

    Raises:
        TypeError: if ``remat`` is neither a bool nor a policy.
    """
    policy = None if isinstance(remat, bool) else remat
    check_policy(policy)
    if not remat:
        return layer
    again = jax.checkpoint(layer.apply, policy=policy, prevent_cse=not in_loop)
    parts = Parts(
        "remat",
        inner=layer,
        rebuilt=lambda change: rematerialized(change(layer), remat, in_loop=in_loop),
    )
    return type(layer)(layer.init, made_of(again, parts))


def check_layer(layer: Any, purpose: str) -> None:
    """Raise unless a layer is given.

    Raises:
        TypeError: if it is anything else.
    """
    if not isinstance(layer, Layer | StatefulLayer):
        raise TypeError(f"need a layer {purpose}, got {type(layer).__name__}")


def check_policy(policy: Any) -> None:
    """Raise unless a checkpoint policy is given, or None.

    Raises:
        TypeError: if it is anything else, such as the maker of a policy.
    """
    if policy is None:
        return
    # JAX calls a policy with the parameters of a primitive, by name.
    kinds = {a.kind for a in parameters(policy).values()} if callable(policy) else set()
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        got = f"{name_of(policy)}, a function" if callable(policy) else repr(policy)
        raise TypeError(
            "need one of jax.checkpoint_policies, such as dots_saveable, or what one "
            f'of its makers returns, such as save_only_these_names("x"), got {got}'
        )

"""Weights divided by their largest singular value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.combinators import lift
from fngrad.layers.core import REMEDY, Layer, StatefulLayer
from fngrad.layers.layer_tree import Parts, full_name, made_of
from fngrad.layers.one_program import plain
from fngrad.layers.rematerialization import check_layer
from fngrad.layers.selected_weights import check_matrix, selected_weights
from fngrad.types import Key, ModelState, Params, Selector

_FIRST_ITERATIONS = 15  # at init, as in torch
_VECTORS = 2**31 - 1  # their part of the key, beyond those of a combinator's children


class SpectralNormState(NamedTuple):
    """State of a `spectral_norm`."""

    inner: ModelState  # of the inner layer
    singular: Any  # right singular vectors, shape (outputs,), as the selected weights


def spectral_norm(
    inner: Layer | StatefulLayer,
    select: Selector = "**/weight",
    *,
    iterations: int = 1,
) -> StatefulLayer:
    r"""Divide each weight by its largest singular value, which bounds the gradient.

    All axes of $W$ but the last count as one. With a key, $u$ makes ``iterations`` of

    $$v \leftarrow W u / \lVert W u \rVert, \quad
    u \leftarrow W^\top v / \lVert W^\top v \rVert$$

    and the inner layer gets $W / \sigma$ with $\sigma = v^\top W u$, for whose gradient
    $u$ and $v$ are constants. Without a key $u$ stays and gives $v$. A weight of 0
    stays 0.

    Parameters are those of ``inner``, at the same paths. The model state is
    ``inner``, that of the inner layer, and ``singular/.../weight``, the $u$ of each
    selected weight, in at least float32.

    Args:
        inner: a layer. Layers in a loop are wrapped one by one:
            ``repeat(spectral_norm(block), n)``.
        select: which leaves, all called ``weight`` by default; a glob over paths, or
            ``(path, leaf) -> bool``.
        iterations: of the power method, each time there is a key.

    Raises:
        TypeError: if ``inner`` is not a layer.
        ValueError: if ``iterations`` is below 1; at ``init``, if no leaf is selected,
            or one with fewer than two axes; at ``apply``, if the model state is not
            that of ``init``, and from ``inner``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.spectral_norm(layers.linear(2, 2, bias=False))
        >>> _, state = layer.init(jax.random.key(0))
        >>> params = {"weight": jnp.diag(jnp.array([4.0, 1.0]))}
        >>> for i in range(5):
        ...     y, state = layer.apply(params, state, jnp.ones(2), key=i)
        >>> print(y.round(2))
        [1.   0.25]

    References:
        Miyato et al. 2018, "Spectral normalization for generative adversarial
        networks", algorithm 1, https://arxiv.org/abs/1802.05957. Differs from it in: 15
        iterations at ``init``, as in torch, which keeps $v$ too.
    """
    check_layer(inner, "for spectral_norm")
    numerics.check_count("iterations", iterations, 1)
    lifted = lift(inner)

    def init(key: Key) -> tuple[Params, SpectralNormState]:
        key = numerics.key(key)
        params, state = plain(lifted.init)(key)
        chosen = selected_weights(params, select)
        # The inner layer gets the whole key, and so the parameters that it has alone.
        keys = jax.random.split(jax.random.fold_in(key, _VECTORS), len(chosen))
        by_path = dict(zip(sorted(chosen), keys, strict=True))

        def first(path: str, leaf: jax.Array) -> jax.Array | None:
            return _first(path, leaf, by_path[path]) if path in chosen else None

        return params, SpectralNormState(state, tree.map_with_path(first, params))

    def apply(
        params: Params,
        model_state: ModelState,
        x: Any,
        *,
        key: Key | None = None,
        **arguments: Any,
    ) -> tuple[Any, ModelState]:
        if not isinstance(model_state, SpectralNormState):
            raise ValueError(
                "need the model state of spectral_norm, got "
                f"{type(model_state).__name__}{REMEDY}"
            )
        singular = model_state.singular
        if key is not None:
            singular = _for_each(
                lambda w, u: _iterated(w, u, iterations), params, singular
            )
        bounded = jax.tree.map(
            lambda w, u: w if u is None else _bounded(w, u), params, singular
        )
        args = (bounded, model_state.inner) if lifted is inner else (bounded,)
        y = inner.apply(*args, x, key=key, **arguments)
        y, state = y if lifted is inner else (y, ())
        return y, SpectralNormState(state, singular)

    made_of(apply, Parts(f"spectral_norm({full_name(inner)})"))
    return StatefulLayer(init, apply)


def _for_each(fn: Any, params: Params, singular: Any) -> Any:
    return jax.tree.map(lambda w, u: None if u is None else fn(w, u), params, singular)


def _first(path: str, weight: jax.Array, key: Key) -> jax.Array:
    check_matrix(path, weight)
    drawn = jax.random.normal(key, weight.shape[-1:], tree.wide_dtype(weight.dtype))
    return _iterated(weight, _unit(drawn), _FIRST_ITERATIONS)


def _matrix(weight: jax.Array) -> jax.Array:
    return tree.widen(weight).reshape(-1, weight.shape[-1])


def _iterated(weight: jax.Array, u: jax.Array, iterations: int) -> jax.Array:
    """Return u after so many iterations, in its dtype; as it was for a weight of 0."""
    matrix = lax.stop_gradient(_matrix(weight))
    begin = u.astype(matrix.dtype)

    def once(_: Any, u: jax.Array) -> jax.Array:
        moved = _unit(matrix.T @ _unit(matrix @ u))
        return jnp.where(jnp.any(moved != 0), moved, u)

    return lax.fori_loop(0, iterations, once, begin).astype(u.dtype)


def _unit(x: jax.Array) -> jax.Array:
    return numerics.divide(x, numerics.norm(x)[None])


def _bounded(weight: jax.Array, u: jax.Array) -> jax.Array:
    """Return the weight over its largest singular value, in its dtype."""
    matrix = _matrix(weight)
    u = lax.stop_gradient(u).astype(matrix.dtype)
    v = _unit(matrix @ u)
    sigma = jnp.vdot(lax.stop_gradient(v), matrix @ u)
    scaled = numerics.divide(matrix, sigma[None, None])
    return scaled.reshape(weight.shape).astype(weight.dtype)

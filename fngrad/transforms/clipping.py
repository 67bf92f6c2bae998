r"""Bounds on the size of updates, and the centralization of gradients.

A clip keeps updates within its bound, bit for bit, and scales others to the bound; a
second clip by the same bound has no effect beyond rounding. NaN passes, so that later
parts detect it. Clips have no state, and so take no schedules.

A *unit* of a parameter is the set of weights of one output: all of a vector, a column
of a matrix (in, out), and the entries of a kernel (width, ..., in, out) with one index
of its last axis.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.stateless import stateless
from fngrad.types import Params, Reported, Scalar, Updates


def clip(max_delta: Scalar) -> Transform:
    r"""Clip each entry: $u_i \leftarrow u_i \min(1, \delta / |u_i|)$.

    Args:
        max_delta: $\delta$ >= 0, in units of the updates.

    Raises:
        ValueError: if a number is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> bound = fg.clip(1.0)
        >>> params = jnp.zeros(2)
        >>> print(bound.update(jnp.array([0.5, -3.0]), bound.init(params), params)[0])
        [ 0.5 -1. ]
    """
    numerics.check_number("max_delta", max_delta, low=0.0)

    return stateless(
        lambda updates, params: clip_entries(updates, numerics.hyper(max_delta)), "clip"
    )


def clip_by_norm(max_norm: Scalar) -> Transform:
    r"""Clip the norm of each leaf: $u \leftarrow u \min(1, c / \|u\|)$.

    Args:
        max_norm: $c$ >= 0, in units of the updates.

    Raises:
        ValueError: if a number is negative.
    """
    numerics.check_number("max_norm", max_norm, low=0.0)

    def shrink(u: jax.Array) -> jax.Array:
        bound = numerics.hyper(max_norm)
        return shrink_onto(bound, u, *numerics.fitting_norm(tree.norm, u))

    return stateless(
        lambda updates, params: tree.map_leaves(shrink, updates), "clip_by_norm"
    )


@explains_keywords()
def clip_by_global_norm(max_norm: Scalar) -> Transform:
    r"""Clip the norm over all leaves: $u \leftarrow u \min(1, c / \|u\|)$.

    It reports ``norm_before`` and ``norm_after``.

    Args:
        max_norm: $c$ >= 0, in units of the updates.

    Raises:
        ValueError: if a number is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> bound = fg.clip_by_global_norm(1.0)
        >>> params = jnp.zeros(2)
        >>> print(bound.update(jnp.array([0.0, 4.0]), bound.init(params), params)[0])
        [0. 1.]

    References:
        Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural
        networks, 2013, algorithm 1, https://arxiv.org/abs/1211.5063.
    """
    numerics.check_number("max_norm", max_norm, low=0.0)

    def report(updates: Updates, state: tuple, params: Params) -> Reported:
        fitting, rate = numerics.fitting_norm(tree.norm, updates)
        bound = numerics.hyper(max_norm)
        shrunk = jax.tree.map(lambda u: shrink_onto(bound, u, fitting, rate), updates)
        norm = fitting / rate  # infinite where it overflows
        after = jnp.minimum(norm, bound.astype(norm.dtype))
        return shrunk, state, {"norm_before": norm, "norm_after": after}

    return chain(from_report(lambda params: (), report, "clip_by_global_norm"))


def adaptive_clip(
    clipping: Scalar,
    eps: Scalar = 1e-3,
    axis: int | Sequence[int] | None = None,
) -> Transform:
    r"""Clip each unit's norm in proportion to its parameters' norm.

    For every unit with parameters $w$ and update $u$

    $$u \leftarrow u \min\Big(1, \lambda\,\frac{\max(\|w\|, \epsilon)}{\|u\|}\Big)$$

    Args:
        clipping: $\lambda$ >= 0, a ratio.
        eps: $\epsilon$ >= 0, in units of the parameters: the least norm of a unit.
        axis: the axes that a unit's norm sums over; ``None`` means all axes but the
            last, or all axes if at most one is longer than 1.

    Raises:
        ValueError: if a number is negative.

    References:
        Brock et al., High-performance large-scale image recognition without
        normalization, 2021, equation 3, https://arxiv.org/abs/2102.06171. Differs from
        optax in: a unit of a three-axis array is one index of its last axis, as in a
        1-D convolution; ``axis=0`` gives optax's units.
    """
    numerics.check_number("clipping", clipping, low=0.0)
    numerics.check_number("eps", eps, low=0.0)

    def unit_norm(x: jax.Array) -> jax.Array:
        axes = _unit_axes(x) if axis is None else axis
        axes = axes if isinstance(axes, int | np.integer) else tuple(axes)
        return numerics.norm(x, axes, keepdims=True)

    def clip_leaf(u: jax.Array, w: jax.Array) -> jax.Array:
        norm, ratio, floor = unit_norm(w), numerics.hyper(clipping), numerics.hyper(eps)
        bound = numerics.scaled(ratio, jnp.maximum(norm, floor.astype(norm.dtype)))
        return shrink_onto(bound, u, *numerics.fitting_norm(unit_norm, u))

    return stateless(
        lambda updates, params: tree.map_leaves(clip_leaf, updates, tree.widen(params)),
        "adaptive_clip",
    )


def centralize() -> Transform:
    r"""Subtract its mean from each unit's update; vectors and scalars stay.

    References:
        Yong et al., Gradient centralization: a new optimization technique for deep
        neural networks, 2020, equation 1, https://arxiv.org/abs/2004.01461. The mean
        is over the weights of one output, all axes but the last; optax takes all axes
        but the first.
    """

    def center(u: jax.Array) -> jax.Array:
        if u.ndim < 2:
            return u
        axes = tuple(range(u.ndim - 1))
        mean = jnp.mean(u, axis=axes, keepdims=True)
        if not jnp.iscomplexobj(u):  # the sum might overflow
            share = u / max(math.prod(u.shape[:-1]), 1)
            mean_of_shares = jnp.sum(share, axis=axes, keepdims=True)
            mean = jnp.where(jnp.isfinite(mean), mean, mean_of_shares)
        return numerics.bounded(u - mean, u)

    return stateless(
        lambda updates, params: tree.map_leaves(center, updates), "centralize"
    )


def clip_entries(updates: Updates, bound: jax.Array) -> Updates:
    """Return updates with each entry clipped, a complex one in modulus."""

    def clip_leaf(u: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(u):
            return shrink_onto(bound, u, jnp.abs(u))
        return jnp.clip(u, -bound.astype(u.dtype), bound.astype(u.dtype))

    return jax.tree.map(clip_leaf, updates)


def shrink_onto(
    bound: jax.Array, u: jax.Array, norm: jax.Array, rate: Scalar = 1.0
) -> jax.Array:
    """Return u if its norm is at most the bound, else u bound / norm.

    Args:
        bound: in units of u.
        u: floats.
        norm: that of ``rate`` * u.
        rate: a power of two below 1 where the norm of u itself overflows, else 1.
    """
    bound = bound.astype(norm.dtype)
    is_large = (norm > bound) | (rate < 1)
    one = jnp.ones_like(norm)
    bound, norm = (jnp.where(is_large, x, one) for x in (bound, norm))
    return numerics.times_ratio(u, bound, norm, jnp.asarray(rate))


def _unit_axes(x: jax.Array) -> tuple[int, ...]:
    is_vector = sum(size > 1 for size in x.shape) <= 1
    return tuple(range(x.ndim if is_vector else x.ndim - 1))

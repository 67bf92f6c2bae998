r"""Each leaf as one vector, a *block*, measured by its root mean square.

$\operatorname{rms}(x) = \|x\| / \sqrt n$ for a block with n entries.
"""

import math

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform
from fngrad.transforms.stateless import stateless
from fngrad.types import Scalar


def clip_by_block_rms(threshold: Scalar) -> Transform:
    r"""Clip each block's root mean square: $u \leftarrow u / \max(1, rms(u) / d)$.

    It counts no steps and takes no schedule.

    Args:
        threshold: $d$ > 0, in units of the updates.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> bound, params = fg.clip_by_block_rms(1.0), jnp.zeros(4)
        >>> updates = jnp.array([2.0, -2.0, 2.0, 2.0])
        >>> print(bound.update(updates, bound.init(params), params)[0])
        [ 1. -1.  1.  1.]

    References:
        Section 6 of the paper cited in `fngrad.adafactor`.
    """
    numerics.check_positive("threshold", threshold)

    def clip(u: jax.Array) -> jax.Array:
        return clip_rms(u, numerics.hyper(threshold))

    return stateless(
        lambda updates, params: tree.map_leaves(clip, updates), "clip_by_block_rms"
    )


def clip_rms(u: jax.Array, bound: jax.Array) -> jax.Array:
    """Return a block with its root mean square clipped to a bound > 0."""
    rms, rate = numerics.fitting_norm(_root_mean_square, u)
    excess = rms / bound.astype(rms.dtype)
    is_far = excess > numerics.FAR
    scale = jnp.where(is_far, numerics.power_of_two_below(rms), 1)
    excess = rms / scale / bound.astype(rms.dtype)
    excess = jnp.where(is_far, excess, jnp.maximum(excess, rate))
    u = numerics.divided(u * rate.astype(u.dtype), scale.astype(rms.dtype))
    return u / excess.astype(u.dtype)


def scale_by_param_block_rms(min_scale: Scalar = 1e-3) -> Transform:
    r"""Measure updates in units of the block: $u \leftarrow u \max(rms(w), \epsilon)$.

    It counts no steps and takes no schedule.

    Args:
        min_scale: $\epsilon$ >= 0, in units of the parameters: the size of a block of
            zeros.

    Raises:
        ValueError: if a number is negative.

    References:
        Section 8 of the paper cited in `fngrad.adafactor`.
    """
    numerics.check_number("min_scale", min_scale, low=0.0)

    def scale(u: jax.Array, w: jax.Array) -> jax.Array:
        size, floor = _root_mean_square(w), numerics.hyper(min_scale)
        return numerics.scaled(jnp.maximum(size, floor.astype(size.dtype)), u)

    return stateless(
        lambda updates, params: tree.map_leaves(scale, updates, tree.widen(params)),
        "scale_by_param_block_rms",
    )


def _root_mean_square(x: jax.Array) -> jax.Array:
    return tree.norm(x) / math.sqrt(max(x.size, 1))

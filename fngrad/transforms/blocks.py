r"""Rules that see each leaf as one vector, a *block*, and measure it by one number.

The measure is the norm $\|x\|$, or the root mean square
$\operatorname{rms}(x) = \|x\| / \sqrt n$ of a block with n entries.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.leaves as leaves
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.roots import check_decay, divide_by_root, shrink
from fngrad.types import Hyper, Params, Scalar, Updates


class ScaleByBlockNormState(NamedTuple):
    """State of `scale_by_block_norm`."""

    step: jax.Array  # int32, shape ()
    nu: Updates  # average of ||g||**2, one number a block


def clip_by_block_rms(threshold: Scalar) -> Transform:
    r"""Clip each block's root mean square: $u \leftarrow u / \max(1, rms(u) / d)$.

    It counts no steps and takes no schedule.

    Args:
        threshold: $d$ > 0, in units of the updates.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> bound, params = fg.clip_by_block_rms(1.0), jnp.zeros(4)
        >>> updates = jnp.array([2.0, -2.0, 2.0, 2.0])
        >>> print(bound.update(updates, bound.init(params), params)[0])
        [ 1. -1.  1.  1.]

    References:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory
        cost, 2018, section 6, https://arxiv.org/abs/1804.04235.
    """
    numerics.check_positive("threshold", threshold)

    def update(updates: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
        bound = numerics.hyper(threshold)

        def clip(u: jax.Array) -> jax.Array:
            rms, rate = numerics.fitting_norm(_root_mean_square, u)
            excess = rms / bound.astype(rms.dtype)
            is_far = excess > 2.0**96
            scale = jnp.where(is_far, numerics.power_of_two_below(rms), 1)
            excess = rms / scale / bound.astype(rms.dtype)
            excess = jnp.where(is_far, excess, jnp.maximum(excess, rate))
            u = numerics.divided(u * rate.astype(u.dtype), scale.astype(rms.dtype))
            return u / excess.astype(u.dtype)

        return leaves.map_leaves(clip, updates), state

    return chain(Transform(lambda params: (), update, name="clip_by_block_rms"))


def scale_by_param_block_rms(min_scale: Scalar = 1e-3) -> Transform:
    r"""Measure updates in units of the block: $u \leftarrow u \max(rms(w), \epsilon)$.

    It counts no steps and takes no schedule.

    Args:
        min_scale: $\epsilon$ >= 0, in units of the parameters: what a block of zeros
            counts.

    Raises:
        ValueError: a negative number.

    References:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory
        cost, 2018, section 8, https://arxiv.org/abs/1804.04235.
    """
    numerics.check_number("min_scale", min_scale, low=0.0)

    def update(updates: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
        floor = numerics.hyper(min_scale)

        def scale(u: jax.Array, w: jax.Array) -> jax.Array:
            size = _root_mean_square(w)
            return numerics.scaled(jnp.maximum(size, floor.astype(size.dtype)), u)

        return leaves.map_leaves(scale, updates, tree.widen(params)), state

    return chain(Transform(lambda params: (), update, name="scale_by_param_block_rms"))


def scale_by_block_norm(
    b2: Hyper = 0.25, eps: Hyper = 1e-8, eps_root: Hyper = 0.0
) -> Transform:
    r"""Divide each block by the root of its averaged squared norm, as NovoGrad does.

    $$\nu_1 = \|g_1\|^2, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,\|g_t\|^2, \qquad
      u_t = \frac{g_t}{\sqrt{\nu_t + \bar\epsilon} + \epsilon}$$

    The average begins at the first square and needs no correction for bias.

    Args:
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.

    Raises:
        ValueError: a number out of range.

    References:
        Ginsburg et al., Stochastic gradient methods with layer-wise adaptive moments
        for training of deep networks, 2019, algorithm 1,
        https://arxiv.org/abs/1905.11286. Differs from it in: $\epsilon$ counts at the
        first step too. Optax's ``scale_by_novograd`` is this, weight decay and `trace`
        in one.
    """
    check_decay("b2", b2, corrected=False)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("eps_root", eps_root, low=0.0)

    def init(params: Params) -> ScaleByBlockNormState:
        nu = leaves.map_leaves(_real_zero, params)
        return ScaleByBlockNormState(numerics.first_step(), nu)

    def update(
        updates: Updates, state: ScaleByBlockNormState, params: Params
    ) -> tuple[Updates, ScaleByBlockNormState]:
        beta_2 = numerics.hyper(b2, state.step)
        beta_2 = jnp.where(state.step == 0, 0, beta_2)
        inside = numerics.hyper(eps_root, state.step)
        outside = numerics.hyper(eps, state.step)

        def normalize(g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
            square = jnp.sum(tree.abs_square(g))
            factor, square = shrink(square, g)
            g = numerics.scaled(factor, g)
            nu = tree.average(beta_2, nu, square)
            whole = jnp.broadcast_to(nu, g.shape)
            return divide_by_root(g, whole, inside, outside), nu

        new_updates, nu = leaves.map_leaves(normalize, updates, state.nu, outputs=2)
        return new_updates, ScaleByBlockNormState(numerics.next_step(state.step), nu)

    return chain(Transform(init, update, name="scale_by_block_norm"))


def _root_mean_square(x: jax.Array) -> jax.Array:
    return tree.norm(x) / math.sqrt(max(x.size, 1))


def _real_zero(p: jax.Array) -> jax.Array:
    return jnp.zeros((), jnp.finfo(tree.wide_dtype(p.dtype)).dtype)

"""ADOPT: normalize each gradient by the second moment of those before it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.clipping import clip_entries
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
from fngrad.transforms.moment_arithmetic import (
    check_moments,
    divide_by_root,
    look_ahead,
    squarable,
    zero_moment,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByAdoptState(NamedTuple):
    """State of `scale_by_adopt`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of normalized gradients
    nu: Updates  # average of |g|**2 that begins at the first, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def fourth_root(step: jax.Array) -> jax.Array:
    r"""Return $\sqrt[4]{t}$: the bound that ADOPT's authors clip at."""
    return jnp.sqrt(jnp.sqrt(step.astype(jnp.result_type(float))))


def scale_by_adopt(
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Hyper = fourth_root,
) -> Transform:
    r"""Average gradients that the past second moment normalizes: ADOPT's direction.

    Returns $u_t$ of `adopt`; see there for the equations and the reference. A complex
    entry is clipped in modulus. Where the denominator is zero, $n_t$ is zero.

    Args:
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        nesterov: whether to look ahead.
        use_clipping: whether to clip.
        clip_value_fn: $c$ >= 0, a schedule (or a number); step 0 is the first gradient.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, corrected=False)
    numerics.check_number("clip_value_fn", clip_value_fn, low=0.0)

    def init(params: Params) -> ScaleByAdoptState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByAdoptState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdoptState, params: Params
    ) -> tuple[Updates, ScaleByAdoptState]:
        is_first = state.step == 0
        beta_1 = jnp.where(is_first, 1, numerics.hyper(b1, state.step))
        beta_2 = jnp.where(is_first, 0, numerics.hyper(b2, state.step))
        floor = numerics.hyper(eps, state.step) ** 2

        updates = squarable(updates)
        squares = jax.tree.map(tree.abs_square, updates)
        past = tree.where(is_first, squares, state.nu)
        past = jax.tree.map(lambda v: jnp.maximum(v, floor.astype(v.dtype)), past)
        normal = divide_by_root(updates, past, inside=0.0, outside=0.0)
        if use_clipping:
            normal = clip_entries(normal, numerics.hyper(clip_value_fn, state.step))

        mu = tree.average(beta_1, state.mu, normal)
        nu = tree.average(beta_2, state.nu, squares)
        new_updates = look_ahead(
            mu, normal, beta_1, state.step, nesterov=nesterov, debias=False
        )
        return new_updates, ScaleByAdoptState(numerics.next_step(state.step), mu, nu)

    return chain(Transform(init, update, name="scale_by_adopt"))


def adopt(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Hyper = fourth_root,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""ADOPT: average gradients, each normalized by the second moment before it.

    The first gradient only sets $\nu_0 = |g_0|^2$; its update is zero. Then, for
    $t = 1, 2, \dots$, with $c_t = t^{1/4}$

    $$n_t = \operatorname{clip}\left(
      \frac{g_t}{\max(\sqrt{\nu_{t-1}}, \epsilon)},\ -c_t,\ c_t\right)$$
    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,n_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$u_t = \mu_t, \qquad w_{t+1} = w_t - \alpha_t\,u_t$$

    or, with ``nesterov``, $u_t = \beta_1\,\mu_t + (1 - \beta_1)\,n_t$. Because
    $\nu_{t-1}$ does not depend on $g_t$, the rule converges for any $\beta_2$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a schedule;
            the zero update counts as step 0.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        nesterov: whether to look ahead.
        use_clipping: whether to clip.
        clip_value_fn: $c$ >= 0, a schedule (or a number); step 0 is the first gradient.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. The authors' code defaults to L2 regularization,
            ``chain(add_decayed_weights(l), adopt(a))``. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adopt(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(params, state, params)
        >>> print(updates.round(6))  # of the second gradient
        [-0.0001  0.0001]

    References:
        Taniguchi et al., ADOPT: modified Adam can converge with any beta2 with the
        optimal rate, 2024, https://arxiv.org/abs/2411.02853. The clipping is that of
        the authors' later code. Weights decay in
        ``chain(scale_by_adopt(), add_decayed_weights(l), scale_by_learning_rate(a))``.
    """
    rule = scale_by_adopt(
        b1,
        b2,
        eps,
        nesterov=nesterov,
        use_clipping=use_clipping,
        clip_value_fn=clip_value_fn,
    )
    decay = optional_decay(weight_decay, mask)
    return chain(rule, *decay, scale_by_learning_rate(learning_rate))

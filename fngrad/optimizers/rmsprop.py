"""RMSProp, plain and centered."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.moment_arithmetic import (
    bounded_squares,
    check_moments,
    divide_by_root,
    full_moment,
    place_eps,
    remove_bias,
    squarable,
    weight_seen,
)
from fngrad.transforms.momentum_buffers import descending
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`."""

    step: jax.Array  # int32, shape ()
    nu: Updates  # average of |g|**2, real

    non_negative = ("nu",)  # type: tuple[str, ...]


class ScaleByStddevState(NamedTuple):
    """State of `scale_by_stddev`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    variance: Updates  # average of |g|**2 minus |average of g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("variance",)  # type: tuple[str, ...]


def scale_by_rms(
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    r"""Divide by the root of the averaged square: RMSProp's direction.

    Returns $u_t$ of `rmsprop`; see there for the equations and the references. Where
    the denominator is zero, the update is zero.

    Args:
        decay: $\rho$ in [0, 1]; in [0, 1) with ``bias_correction``.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        initial_scale: $\nu_0$ >= 0; 1 is TensorFlow's, 0 that of all others.
        eps_in_sqrt: whether $u_t$ has the first form or the second.
        bias_correction: whether $\nu_t / (1 - \rho^t)$ takes the place of $\nu_t$.
            The state is the same either way.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(decay=decay, eps=eps, corrected=bias_correction)
    numerics.check_number("initial_scale", initial_scale, low=0.0)

    def init(params: Params) -> ScaleByRmsState:
        nu = full_moment(params, initial_scale)
        return ScaleByRmsState(numerics.first_step(), nu)

    def update(
        updates: Updates, state: ScaleByRmsState, params: Params
    ) -> tuple[Updates, ScaleByRmsState]:
        beta = numerics.hyper(decay, state.step)
        nu = tree.average(beta, state.nu, bounded_squares(updates))
        nu_hat = remove_bias(nu, beta, state.step) if bias_correction else nu
        inside, outside = place_eps(numerics.hyper(eps, state.step), eps_in_sqrt)
        new_updates = divide_by_root(squarable(updates), nu_hat, inside, outside)
        return new_updates, ScaleByRmsState(numerics.next_step(state.step), nu)

    return chain(Transform(init, update, name="scale_by_rms"))


def scale_by_stddev(
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    r"""Divide by the running standard deviation: centered RMSProp's direction.

    Returns $u_t$ of `rmsprop` with ``centered``; see there for the equations and the
    references.

    The state carries the variance instead of $\nu$, by
    $s_t = \rho\,s_{t-1} + \rho\,(1 - \rho)\,|g_t - \mu_{t-1}|^2$: the difference of two
    moments can be negative in floating point, and its root NaN, once the gradient
    settles.

    Args:
        decay: $\rho$ in [0, 1]; in [0, 1) with ``bias_correction``.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        initial_scale: $\nu_0$ >= 0.
        eps_in_sqrt: whether $u_t$ has the first form or the second.
        bias_correction: whether both moments in $s_t$ are divided by $1 - \rho^t$.
            $s_1$ is then zero (up to ``initial_scale``), so that only ``eps`` bounds
            the first update. The state has the same structure either way.

    Raises:
        ValueError: if a number is out of range.

    References:
        West, Updating mean and variance estimates, 1979,
        https://doi.org/10.1145/359146.359153.
    """
    check_moments(decay=decay, eps=eps, corrected=bias_correction)
    numerics.check_number("initial_scale", initial_scale, low=0.0)

    def init(params: Params) -> ScaleByStddevState:
        variance = full_moment(params, initial_scale)
        zero = tree.wide_zeros_like(params)
        return ScaleByStddevState(numerics.first_step(), zero, variance)

    def update(
        updates: Updates, state: ScaleByStddevState, params: Params
    ) -> tuple[Updates, ScaleByStddevState]:
        updates = squarable(updates, count=4)  # differences are up to twice as large
        beta = numerics.hyper(decay, state.step)
        before = after = jnp.ones_like(beta)
        if bias_correction:
            after = weight_seen(beta, state.step)
            earlier = jnp.maximum(state.step, 1) - 1
            weight = weight_seen(beta, earlier)
            before = jnp.where(state.step == 0, 0, weight)
        gain = beta * (1 - beta) * before / after
        per_weight = numerics.divide(jnp.ones_like(beta), before)

        def advance(s: jax.Array, mu: jax.Array, g: jax.Array) -> jax.Array:
            square = tree.abs_square(g - numerics.scaled(per_weight, mu))
            return numerics.scaled(beta, s) + numerics.scaled(gain, square)

        variance = jax.tree.map(advance, state.variance, state.mu, updates)
        mu = tree.average(beta, state.mu, updates)
        corrected = tree.scale(1 / after, variance)
        inside, outside = place_eps(numerics.hyper(eps, state.step), eps_in_sqrt)
        new_updates = divide_by_root(updates, corrected, inside, outside)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByStddevState(step, mu, variance)

    return chain(Transform(init, update, name="scale_by_stddev"))


def rmsprop(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    learning_rate_first: bool = True,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""RMSProp: each coordinate's step over its gradient's recent root mean square.

    $$\nu_t = \rho\,\nu_{t-1} + (1 - \rho)\,|g_t|^2, \qquad \nu_0 = \text{scale}$$
    $$u_t = g_t / \sqrt{\nu_t + \epsilon}
      \quad\text{or}\quad u_t = g_t / (\sqrt{\nu_t} + \epsilon)$$
    $$w_{t+1} = w_t - \alpha_t\,u_t$$

    With ``centered``, $s_t = \nu_t - |\mu_t|^2$ takes the place of $\nu_t$ in $u_t$,
    where $\mu_t = \rho\,\mu_{t-1} + (1 - \rho)\,g_t$. With ``momentum`` $\beta$,
    $\alpha_t u_t$ is replaced by $b_t = \beta\,b_{t-1} + \alpha_t\,u_t$, or with
    ``nesterov`` by $\beta\,b_t + \alpha_t\,u_t$.

    The defaults are optax's. Other conventions: PyTorch is ``decay=0.99,
    eps_in_sqrt=False, learning_rate_first=False``, Keras ``eps=1e-7``, TensorFlow 1
    ``eps=1e-10, initial_scale=1.0``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        decay: $\rho$ in [0, 1]; in [0, 1) with ``bias_correction``.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        initial_scale: $\nu_0$ >= 0.
        eps_in_sqrt: whether $u_t$ has the first form or the second.
        centered: whether to divide by the standard deviation.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no buffer; any number, also 0, keeps
            one.
        nesterov: whether to look ahead; it needs a momentum.
        bias_correction: whether the averages are divided by $1 - \rho^t$.
        learning_rate_first: whether $\alpha_t$ enters the buffer, as above, or scales
            what leaves it: $b_t = \beta\,b_{t-1} + u_t$,
            $w_{t+1} = w_t - \alpha_t\,b_t$. The two differ only if the learning rate
            changes.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. PyTorch's is L2 regularization:
            ``chain(add_decayed_weights(l), rmsprop(a))``. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range, or ``nesterov`` has no momentum; or
            there is a mask but no decay; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.rmsprop(1e-2, decay=0.75)
        >>> params = jnp.array([1.0, -2.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))  # the first step is learning_rate / sqrt(1 - decay)
        [-0.02  0.02]

    References:
        Tieleman and Hinton, Lecture 6.5 - RMSProp, 2012,
        https://www.cs.toronto.edu/~hinton/coursera/lecture6/lec6.pdf. Centered, with
        momentum: Graves, Generating sequences with recurrent neural networks, 2013,
        equations 38 to 41, https://arxiv.org/abs/1308.0850.
    """
    rule = scale_by_stddev if centered else scale_by_rms
    return chain(
        rule(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        *descending(
            learning_rate, momentum, nesterov, learning_rate_first, weight_decay, mask
        ),
    )

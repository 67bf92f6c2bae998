"""RAdam: Adam corrected for the variance of its denominator.

The root of an average of few squares varies a lot: until there are enough of them,
RAdam steps along plain momentum.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    look_ahead,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.types import Hyper, Metrics, Params, Selector, Updates

Unrectified: TypeAlias = Literal["momentum", "skip"]
BERNOULLI = (  # minus B(2k) / (2k)!
    -1 / 12,
    1 / 720,
    -1 / 30240,
    1 / 1209600,
    -1 / 47900160,
    691 / 1307674368000,
    -1 / 74724249600,
    3617 / 10670622842880000,
    -43867 / 5109094217170944000,
    174611 / 802857662698291200000,
)


class ScaleByRadamState(NamedTuple):
    """State of `scale_by_radam`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_radam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Hyper = 5.0,
    *,
    nesterov: bool = False,
    unrectified: Unrectified = "momentum",
) -> Transform:
    r"""Scale Adam's direction by how little its denominator varies: RAdam's direction.

    Returns $u_t$ of `radam`; see there for the equations and the reference. It reports
    ``rectification``, $r_t$, and 0 while nothing is rectified.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        threshold: the least $\rho_t$ that is rectified, >= 4, below which the variance
            is infinite; a lower value of an array or schedule counts as 4.
        nesterov: whether $\hat\mu_t$ looks ahead, as in `scale_by_adam`.
        unrectified: ``"momentum"`` or ``"skip"``, see `radam`.

    Raises:
        ValueError: if a number is out of range, or ``unrectified`` is neither of the
            two.
    """
    numerics.check_choice("unrectified", unrectified, get_args(Unrectified))
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    numerics.check_number("threshold", threshold, low=4.0)

    def init(params: Params) -> ScaleByRadamState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByRadamState(numerics.first_step(), mu, nu)

    def report(
        updates: Updates, state: ScaleByRadamState, params: Params
    ) -> tuple[Updates, ScaleByRadamState, Metrics]:
        beta_1, beta_2 = numerics.hypers(state.step, b1, b2)
        updates = squarable(updates)
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, updates)
        mu_hat = look_ahead(mu, updates, beta_1, state.step, nesterov=nesterov)
        adaptive = divide_by_root(
            mu_hat,
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        r = rectification(beta_2, state.step, numerics.hyper(threshold, state.step))
        first = mu_hat if unrectified == "momentum" else tree.zeros_like(mu_hat)
        new_updates = tree.where(r > 0, tree.scale(r, adaptive), first)
        new_state = ScaleByRadamState(numerics.next_step(state.step), mu, nu)
        return new_updates, new_state, {"rectification": r}

    return chain(from_report(init, report, "scale_by_radam"))


def radam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Hyper = 5.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    nesterov: bool = False,
    unrectified: Unrectified = "momentum",
    decoupled_weight_decay: bool = True,
) -> Transform:
    r"""RAdam: Adam with steps rectified for the variance of the denominator.

    An exponential average of squares varies about as much as a simple average of length
    $\rho_t$. With Adam's debiased averages $\hat\mu_t, \hat\nu_t$ and

    $$\rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
      \rho_\infty = \frac{2}{1 - \beta_2} - 1, \qquad
      r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\,\rho_\infty}
      {(\rho_\infty - 4)(\rho_\infty - 2)\,\rho_t}}$$
    $$u_t = r_t\,\frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}
      \quad \text{once } \rho_t \ge \text{threshold}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    Before that, for some five steps, $u_t = \hat\mu_t$: momentum with steps of the
    gradient's size (PyTorch, optax). With ``unrectified="skip"`` $u_t = 0$ then, as in
    the authors' code by default. It reports ``rectification``: $r_t$, or 0 before.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1); up to 0.6 nothing is ever rectified.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        threshold: >= 4, the least $\rho_t$ that is rectified.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether $\hat\mu_t$ looks ahead, as in `adam`.
        unrectified: ``"momentum"`` or ``"skip"``, what the first steps do.
        decoupled_weight_decay: whether decay is decoupled, as above, or $\lambda\,w_t$
            is added to the gradient, PyTorch's default.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range, or ``unrectified`` is neither of the
            two; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.radam(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))  # of the gradient's size at first
        [-0.003  0.004]

    References:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020,
        algorithm 2, https://arxiv.org/abs/1908.03265. Differs from it in: the
        threshold, which is 4 there. PyTorch adds $\epsilon$ before bias correction;
        ``eps=lambda t: 1e-8 / jnp.sqrt(1 - b2 ** (t + 1.0))`` is the same.
    """
    rule = scale_by_radam(
        b1, b2, eps, eps_root, threshold, nesterov=nesterov, unrectified=unrectified
    )
    return decaying(
        rule, learning_rate, weight_decay, mask, decoupled=decoupled_weight_decay
    )


def rectification(beta: jax.Array, step: jax.Array, least: jax.Array) -> jax.Array:
    """Return r, and 0 where the average is still too short."""
    # Beyond 80 exp(-rate) is below rounding; the bound keeps beta = 0 finite.
    rate = jnp.minimum(-jnp.log(beta), 80.0)
    t = step.astype(beta.dtype) + 1
    rho = 1 + 2 * (_filled(t * rate) - _filled(rate)) / rate
    is_long = (rho >= least) & (rho > 4)
    rho = jnp.where(is_long, rho, 5.0)
    rho_inf = jnp.where(is_long, 2 / (1 - beta) - 1, 5.0)
    gain = (rho - 4) / (rho_inf - 4) * ((rho - 2) / (rho_inf - 2)) * (rho_inf / rho)
    return jnp.where(is_long, jnp.sqrt(gain), 0.0)


def _filled(x: jax.Array) -> jax.Array:
    r"""Return $1 - x / (e^x - 1)$ for x > 0, also where the two terms nearly cancel.

    With $h = -\log \beta_2$, $\rho_t = 1 + 2\,(f(th) - f(h)) / h$ for this function
    $f$: the textbook form is the difference of two numbers near $2 / (1 - \beta_2)$ and
    loses three digits of seven. Below 1 it is the series of the Bernoulli numbers.
    """
    small = jnp.minimum(x, 1.0)
    y = small * small
    tail = jnp.zeros_like(y)
    for coefficient in reversed(BERNOULLI):
        tail = y * (coefficient + tail)
    large = jnp.maximum(x, 1.0)
    return jnp.where(x < 1, small / 2 + tail, 1 - large / jnp.expm1(large))

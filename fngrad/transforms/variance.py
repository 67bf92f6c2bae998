r"""Two rules about a variance: of Adam's step, and of the gradient about its average.

RAdam knows that the root of an average of few squares varies a lot, and takes plain
momentum until there are enough of them. AdaBelief divides by how far gradients lie
from where their average expected them.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, telling
from fngrad.transforms.roots import (
    check_decay,
    debiased,
    divide_by_root,
    full_moment,
    remove_bias,
    squarable,
)
from fngrad.types import Hyper, Metrics, Params, Updates

UNRECTIFIED = ("momentum", "skip")
BERNOULLI = (  # minus B(2k) / (2k)!
    *(-1 / 12, 1 / 720, -1 / 30240, 1 / 1209600, -1 / 47900160),
    *(691 / 1307674368000, -1 / 74724249600, 3617 / 10670622842880000),
    *(-43867 / 5109094217170944000, 174611 / 802857662698291200000),
)


class ScaleByRadamState(NamedTuple):
    """State of `scale_by_radam`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)
    non_negative = ("nu",)


class ScaleByBeliefState(NamedTuple):
    """State of `scale_by_belief`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g - mu|**2, real

    signed = ("mu",)
    non_negative = ("nu",)


def scale_by_radam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Hyper = 5.0,
    *,
    nesterov: bool = False,
    unrectified: Literal["momentum", "skip"] = "momentum",
) -> Transform:
    r"""Adam's direction, times how far its denominator can be trusted: RAdam's.

    An exponential average of squares has seen about as much as a simple average of
    length $\rho_t$ has,

    $$\rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
      \rho_\infty = \frac{2}{1 - \beta_2} - 1$$

    and with the debiased averages $\hat\mu_t, \hat\nu_t$ of `scale_by_adam`

    $$u_t = r_t\,\frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\,\rho_\infty}
      {(\rho_\infty - 4)(\rho_\infty - 2)\,\rho_t}}
      \qquad \text{if } \rho_t \ge \text{threshold}$$

    Before that $u_t = \hat\mu_t$, whose size is the gradient's, or $u_t = 0$ with
    ``unrectified="skip"``. It reports ``rectification``, $r_t$, 0 before. With
    $\beta_2 \le 0.6$ nothing is ever rectified.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        threshold: the least length that is trusted, >= 4, below which the variance is
            infinite; as data, a lower one counts as 4.
        nesterov: whether $\hat\mu_t$ looks ahead, as in `scale_by_adam`.
        unrectified: what the first steps take.

    Raises:
        ValueError: a number out of range, or another kind of first step.

    References:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020,
        algorithm 2, https://arxiv.org/abs/1908.03265. Differs from it in: the
        threshold, which is 4 there.
    """
    if unrectified not in UNRECTIFIED:
        raise ValueError(
            f"need unrectified to be one of {UNRECTIFIED}, got {unrectified=}"
        )
    check_decay("b1", b1, corrected=True)
    check_decay("b2", b2, corrected=True)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("eps_root", eps_root, low=0.0)
    numerics.check_number("threshold", threshold, low=4.0)

    def init(params: Params) -> ScaleByRadamState:
        mu, nu = tree.wide_zeros_like(params), full_moment(params, 0.0)
        return ScaleByRadamState(numerics.first_step(), mu, nu)

    def report(
        updates: Updates, state: ScaleByRadamState, params: Params
    ) -> tuple[Updates, ScaleByRadamState, Metrics]:
        beta_1 = numerics.hyper(b1, state.step)
        beta_2 = numerics.hyper(b2, state.step)
        updates = squarable(updates)
        mu = tree.average(beta_1, state.mu, updates)
        nu = tree.average(beta_2, state.nu, jax.tree.map(tree.abs_square, updates))
        mu_hat = debiased(mu, updates, beta_1, state.step, nesterov)
        adaptive = divide_by_root(
            mu_hat,
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        r = _rectification(beta_2, state.step, numerics.hyper(threshold, state.step))
        first = mu_hat if unrectified == "momentum" else tree.zeros_like(mu_hat)
        new_updates = tree.where(r > 0, tree.scale(r, adaptive), first)
        new_state = ScaleByRadamState(numerics.next_step(state.step), mu, nu)
        return new_updates, new_state, {"rectification": r}

    return chain(telling(init, report, "scale_by_radam"))


def scale_by_belief(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
    accumulate_eps: bool = True,
) -> Transform:
    r"""Divide by the root of the averaged squared surprise: AdaBelief's direction.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t - \mu_t|^2 + \bar\epsilon$$
    $$u_t = \frac{\mu_t / (1 - \beta_1^t)}
      {\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon}$$

    so that $\bar\epsilon$ builds up to $\bar\epsilon / (1 - \beta_2)$ in $\nu$. With
    ``accumulate_eps=False`` it stays out of the average, and the root is that of
    $(\nu_t + \bar\epsilon) / (1 - \beta_2^t)$. Where the denominator is zero, the
    update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether the numerator looks ahead, as in `scale_by_adam`.
        accumulate_eps: the first or the second place of $\bar\epsilon$.

    Raises:
        ValueError: a number out of range.

    References:
        Zhuang et al., AdaBelief optimizer: adapting stepsizes by the belief in
        observed gradients, 2020, algorithm 2, https://arxiv.org/abs/2010.07468, where
        $\epsilon = \bar\epsilon$.
    """
    check_decay("b1", b1, corrected=True)
    check_decay("b2", b2, corrected=True)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("eps_root", eps_root, low=0.0)

    def init(params: Params) -> ScaleByBeliefState:
        mu, nu = tree.wide_zeros_like(params), full_moment(params, 0.0)
        return ScaleByBeliefState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByBeliefState, params: Params
    ) -> tuple[Updates, ScaleByBeliefState]:
        beta_1 = numerics.hyper(b1, state.step)
        beta_2 = numerics.hyper(b2, state.step)
        extra = numerics.hyper(eps_root, state.step)
        updates = squarable(updates, count=4)  # differences are up to twice as large
        mu = tree.average(beta_1, state.mu, updates)
        surprise = jax.tree.map(tree.abs_square, tree.sub(updates, mu))
        nu = tree.average(beta_2, state.nu, surprise)
        raised = jax.tree.map(lambda v: v + extra.astype(v.dtype), nu)
        new_updates = divide_by_root(
            debiased(mu, updates, beta_1, state.step, nesterov),
            remove_bias(raised, beta_2, state.step),
            inside=0.0,
            outside=numerics.hyper(eps, state.step),
        )
        kept = raised if accumulate_eps else nu
        return new_updates, ScaleByBeliefState(numerics.next_step(state.step), mu, kept)

    return chain(Transform(init, update, name="scale_by_belief"))


def _rectification(beta: jax.Array, step: jax.Array, least: jax.Array) -> jax.Array:
    """Return r, and 0 where the average is still too short."""
    # 80 stands for every -log(beta) above it: exp(-80) is no share of anything.
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

    With $h = -\log \beta_2$, $\rho_t = 1 + 2\,(f(th) - f(h)) / h$: the textbook form is
    the difference of two numbers near $2 / (1 - \beta_2)$ and loses three digits of
    seven. Below 1 it is the series of the Bernoulli numbers.
    """
    small = jnp.minimum(x, 1.0)
    y = small * small
    tail = jnp.zeros_like(y)
    for coefficient in reversed(BERNOULLI):
        tail = y * (coefficient + tail)
    large = jnp.maximum(x, 1.0)
    return jnp.where(x < 1, small / 2 + tail, 1 - large / jnp.expm1(large))

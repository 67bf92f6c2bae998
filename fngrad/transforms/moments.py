"""Exponential averages of the gradient, and of its square.

A *trace* sums past gradients with decaying weights (momentum), an *average* weighs
them to one. A *moment* is an average of the gradient (`mu`) or of its squared
modulus (`nu`, real also for complex parameters, whose gradients are taken to be
conjugated already, so that they point uphill). Averages begin at zero; what they lack
at first is divided out by a *bias correction*.

All parts here count steps, so every hyperparameter may be a schedule. A scheduled
decay is corrected for bias as if its present value had always held.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.roots import (
    check_decay,
    debiased,
    divide_by_root,
    full_moment,
    place_eps,
    remove_bias,
    squarable,
)
from fngrad.types import Hyper, Params, Scalar, Updates


class TraceState(NamedTuple):
    """State of `trace`."""

    step: jax.Array  # int32, shape ()
    trace: Updates  # decayed sum of gradients

    signed = ("trace",)


class EmaState(NamedTuple):
    """State of `ema`."""

    step: jax.Array  # int32, shape ()
    ema: Updates  # average of the updates, biased towards zero

    signed = ("ema",)


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`."""

    step: jax.Array  # int32, shape ()
    nu: Updates  # average of |g|**2, real

    non_negative = ("nu",)


class ScaleByStddevState(NamedTuple):
    """State of `scale_by_stddev`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    variance: Updates  # average of |g|**2 minus |average of g|**2, real

    signed = ("mu",)
    non_negative = ("variance",)


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)
    non_negative = ("nu",)


def trace(
    decay: Hyper,
    nesterov: bool = False,
    *,
    dampening: Hyper = 0.0,
    damp_first: bool = True,
) -> Transform:
    r"""Replace the gradient by a decayed sum of gradients: momentum.

    $$b_t = \beta\,b_{t-1} + (1 - \delta)\,g_t, \qquad b_0 = 0$$

    and the update is $b_t$, or $\beta\,b_t + (1 - \delta)\,g_t$ with Nesterov's
    look-ahead. Three forms are in use:

    - heavy ball, $\delta = 0$: weights grow to a sum of $1 / (1 - \beta)$;
    - exponential average, ``dampening=decay``: weights grow to a sum of one;
    - PyTorch's: the first gradient enters with weight one (``damp_first=False``).

    Args:
        decay: $\beta$ in [0, 1].
        nesterov: whether to look ahead.
        dampening: $\delta$ in [0, 1], the share of each gradient that is dropped.
        damp_first: whether $\delta$ holds for the first gradient too.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> heavy_ball = fg.trace(0.5)
        >>> params = jnp.zeros(2)
        >>> state = heavy_ball.init(params)
        >>> for _ in range(2):
        ...     updates, state = heavy_ball.update(jnp.array([1.0, 2.0]), state, params)
        >>> print(updates)
        [1.5 3. ]

    References:
        Polyak, Some methods of speeding up the convergence of iteration methods,
        1964, https://doi.org/10.1016/0041-5553(64)90137-5. Sutskever et al., On the
        importance of initialization and momentum in deep learning, 2013,
        https://proceedings.mlr.press/v28/sutskever13.html. Differs from it in: the
        look-ahead is written for the parameters at which the gradient was taken, as
        in PyTorch.
    """
    numerics.check_number("decay", decay, 0.0, 1.0)
    numerics.check_number("dampening", dampening, 0.0, 1.0)

    def init(params: Params) -> TraceState:
        return TraceState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: TraceState, params: Params
    ) -> tuple[Updates, TraceState]:
        beta = numerics.hyper(decay, state.step)
        weight = 1 - numerics.hyper(dampening, state.step)
        if not damp_first:
            weight = jnp.where(state.step == 0, jnp.ones_like(weight), weight)

        def advance(buffer: jax.Array, g: jax.Array) -> jax.Array:
            total = numerics.scaled(beta, buffer) + numerics.scaled(weight, g)
            return numerics.bounded(total, buffer, g)

        buffer = jax.tree.map(advance, state.trace, updates)
        new_updates = jax.tree.map(advance, buffer, updates) if nesterov else buffer
        return new_updates, TraceState(numerics.next_step(state.step), buffer)

    return chain(Transform(init, update, name="trace"))


def ema(decay: Hyper, debias: bool = True) -> Transform:
    r"""Replace updates by their exponential average.

    $$m_t = \beta\,m_{t-1} + (1 - \beta)\,g_t, \qquad m_0 = 0$$

    and the update is $m_t / (1 - \beta^t)$ if ``debias``, else $m_t$.

    Args:
        decay: $\beta$, in [0, 1) if ``debias``, else in [0, 1].
        debias: whether to correct for the start at zero.

    Raises:
        ValueError: a number out of range.
    """
    check_decay("decay", decay, corrected=debias)

    def init(params: Params) -> EmaState:
        return EmaState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: EmaState, params: Params
    ) -> tuple[Updates, EmaState]:
        beta = numerics.hyper(decay, state.step)
        mean = tree.average(beta, state.ema, updates)
        new_state = EmaState(numerics.next_step(state.step), mean)
        return remove_bias(mean, beta, state.step) if debias else mean, new_state

    return chain(Transform(init, update, name="ema"))


def scale_by_rms(
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    r"""Divide by the root of the averaged square: RMSProp's direction.

    $$\nu_t = \beta\,\nu_{t-1} + (1 - \beta)\,|g_t|^2, \qquad \nu_0 = \text{scale}$$
    $$u_t = g_t / \sqrt{\nu_t + \epsilon}
      \quad\text{or}\quad u_t = g_t / (\sqrt{\nu_t} + \epsilon)$$

    Where the denominator is zero, the update is zero.

    Args:
        decay: $\beta$ in [0, 1]; in [0, 1) with ``bias_correction``.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        initial_scale: $\nu_0$ >= 0; 1 is TensorFlow's, 0 everyone else's.
        eps_in_sqrt: the first or the second form.
        bias_correction: whether $\nu_t / (1 - \beta^t)$ takes the place of $\nu_t$.
            The state is the same either way.

    Raises:
        ValueError: a number out of range.

    References:
        Tieleman and Hinton, Lecture 6.5 - RMSProp, 2012,
        https://www.cs.toronto.edu/~hinton/coursera/lecture6/lec6.pdf.
    """
    check_decay("decay", decay, corrected=bias_correction)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("initial_scale", initial_scale, low=0.0)

    def init(params: Params) -> ScaleByRmsState:
        nu = full_moment(params, initial_scale)
        return ScaleByRmsState(numerics.first_step(), nu)

    def update(
        updates: Updates, state: ScaleByRmsState, params: Params
    ) -> tuple[Updates, ScaleByRmsState]:
        updates = squarable(updates)
        beta = numerics.hyper(decay, state.step)
        nu = tree.average(beta, state.nu, jax.tree.map(tree.abs_square, updates))
        nu_hat = remove_bias(nu, beta, state.step) if bias_correction else nu
        placed = place_eps(numerics.hyper(eps, state.step), eps_in_sqrt)
        new_updates = divide_by_root(updates, nu_hat, *placed)
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

    With the averages $\mu_t$ of $g_t$ and $\nu_t$ of $|g_t|^2$ and their variance
    $s_t = \nu_t - |\mu_t|^2$,

    $$u_t = g_t / \sqrt{s_t + \epsilon}
      \quad\text{or}\quad u_t = g_t / (\sqrt{s_t} + \epsilon)$$

    The variance is carried instead of $\nu$, by
    $s_t = \beta\,s_{t-1} + \beta (1 - \beta)\,|g_t - \mu_{t-1}|^2$: the difference of
    two moments can come out negative, and its root NaN, once the gradient settles.

    Args:
        decay: $\beta$ in [0, 1]; in [0, 1) with ``bias_correction``.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        initial_scale: $\nu_0$ >= 0.
        eps_in_sqrt: the first or the second form.
        bias_correction: whether $s_t$ is made of both moments divided by
            $1 - \beta^t$. It is zero at the first step then (up to ``initial_scale``),
            so that ``eps`` alone bounds the first update. The state has the same
            structure either way.

    Raises:
        ValueError: a number out of range.

    References:
        Graves, Generating sequences with recurrent neural networks, 2013, equations
        38 to 41, https://arxiv.org/abs/1308.0850. The recurrence of the variance:
        West, Updating mean and variance estimates, 1979,
        https://doi.org/10.1145/359146.359153.
    """
    check_decay("decay", decay, corrected=bias_correction)
    numerics.check_number("eps", eps, low=0.0)
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
            after = numerics.bias_correction(beta, state.step)
            earlier = jnp.maximum(state.step, 1) - 1
            weight = numerics.bias_correction(beta, earlier)
            before = jnp.where(state.step == 0, 0, weight)
        gain = beta * (1 - beta) * before / after
        per_weight = numerics.divide(jnp.ones_like(beta), before)

        def advance(s: jax.Array, mu: jax.Array, g: jax.Array) -> jax.Array:
            square = tree.abs_square(g - numerics.scaled(per_weight, mu))
            return numerics.scaled(beta, s) + numerics.scaled(gain, square)

        variance = jax.tree.map(advance, state.variance, state.mu, updates)
        mu = tree.average(beta, state.mu, updates)
        debiased = tree.scale(1 / after, variance)
        placed = place_eps(numerics.hyper(eps, state.step), eps_in_sqrt)
        new_updates = divide_by_root(updates, debiased, *placed)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByStddevState(step, mu, variance)

    return chain(Transform(init, update, name="scale_by_stddev"))


def scale_by_adam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Divide the debiased average by the debiased root mean square: Adam's direction.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$u_t = \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      \hat\mu_t = \frac{\mu_t}{1 - \beta_1^t}, \qquad
      \hat\nu_t = \frac{\nu_t}{1 - \beta_2^t}$$

    With Nesterov's look-ahead
    $\hat\mu_t = \beta_1 \mu_t / (1 - \beta_1^{t+1})
    + (1 - \beta_1) g_t / (1 - \beta_1^t)$. Where the denominator is zero, the update is
    zero; its gradient is finite there also without ``eps_root``.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether to look ahead.

    Raises:
        ValueError: a number out of range.

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1,
        https://arxiv.org/abs/1412.6980. Dozat, Incorporating Nesterov momentum into
        Adam, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Differs from
        it in: $\hat\nu$ lacks the factor $\beta_2$ that Dozat's algorithm 2 has, and
        $\beta_1$ is constant.
    """
    check_decay("b1", b1, corrected=True)
    check_decay("b2", b2, corrected=True)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("eps_root", eps_root, low=0.0)

    def init(params: Params) -> ScaleByAdamState:
        nu = full_moment(params, 0.0)
        return ScaleByAdamState(numerics.first_step(), tree.wide_zeros_like(params), nu)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params
    ) -> tuple[Updates, ScaleByAdamState]:
        updates = squarable(updates)
        beta_1 = numerics.hyper(b1, state.step)
        beta_2 = numerics.hyper(b2, state.step)
        mu = tree.average(beta_1, state.mu, updates)
        nu = tree.average(beta_2, state.nu, jax.tree.map(tree.abs_square, updates))
        new_updates = divide_by_root(
            debiased(mu, updates, beta_1, state.step, nesterov),
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        return new_updates, ScaleByAdamState(numerics.next_step(state.step), mu, nu)

    return chain(Transform(init, update, name="scale_by_adam"))

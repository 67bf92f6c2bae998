r"""Schedule-free learning: averaging in place of a schedule that decays.

Three sequences: $z$ takes the optimizer's steps, $x$ averages $z$, and $y$, between
the two, is where gradients are taken. The parameters are $y$; the state keeps $z$ and
$x$, both in at least float32, so that parameters in bfloat16 lose nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.optimizers.radam import rectification
from fngrad.optimizers.rmsprop import ScaleByRmsState, scale_by_rms
from fngrad.optimizers.sgd import sgd
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    trainable_leaves,
    unwrap,
    wrapper,
)
from fngrad.transforms.decay import add_decayed_weights, decaying
from fngrad.transforms.moment_arithmetic import check_decay, squarable
from fngrad.transforms.scaling import (
    check_learning_rate,
    scale_by_learning_rate,
    scale_by_schedule,
)
from fngrad.types import Hyper, Metrics, OptState, Params, Selector, Updates


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`; leaves that the inner transform freezes are absent."""

    step: jax.Array  # int32, shape ()
    max_learning_rate: jax.Array  # shape (); the largest so far
    weight_sum: jax.Array  # shape ()
    z: Params  # moved by the inner transform's updates
    x: Params  # the weighted average of z
    inner: OptState

    def eval_params(self, params: Params) -> Params:
        """Return x, which evaluation uses."""
        return self.x


def schedule_free(
    inner: TransformLike,
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    weight_lr_power: Hyper = 2.0,
) -> Transform:
    r"""Replace an optimizer's momentum and decaying schedule by an average of iterates.

    With the inner optimizer's update $u_t$ for the gradient at $y_t$ and
    $\gamma_t = \max_{s \le t} \alpha_s$, from $z_1 = x_1 = y_1$,

    $$z_{t+1} = z_t + u_t, \qquad
      x_{t+1} = (1 - c_t)\,x_t + c_t\,z_{t+1}, \qquad
      c_t = \gamma_t^p \Big/ \sum_{s \le t} \gamma_s^p$$
    $$y_{t+1} = (1 - \beta_1)\,z_{t+1} + \beta_1\,x_{t+1}$$

    The parameters are $y$. Evaluate at $x$: `fngrad.eval_params`. While every learning
    rate so far is zero, $c_t = 0$ (unless $p = 0$). It reports ``averaging_weight``,
    $c_t$, beside what the inner optimizer reports.

    Args:
        inner: an optimizer without momentum, e.g. ``sgd`` or ``rmsprop``.
        learning_rate: $\alpha$, the inner optimizer's own: a number >= 0, a scalar
            array or tracer, or a schedule, which may warm up but need not decay. Here
            it only weighs the average.
        b1: $\beta_1$ in [0, 1]: how far $y$ is from $z$ towards $x$; 0 is the inner
            optimizer with an average beside it (Polyak and Ruppert's), 1 primal
            averaging.
        weight_lr_power: $p$ >= 0; 0 weighs all iterates alike.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range.

    Example:
        >>> import fngrad as fg
        >>> warmup = fg.schedules.linear(0.0, 0.1, 100)
        >>> optimizer = fg.schedule_free(fg.sgd(warmup), warmup, b1=0.95)

    References:
        Defazio et al., The road less scheduled, 2024, equations 2 to 4 and algorithm 1,
        https://arxiv.org/abs/2405.15682. Differs from it in: any optimizer may be
        inside, and $\gamma_t$ is the largest learning rate so far, as in the authors'
        code. optax recovers $x$ from $y$ and $z$ by a division by $\beta_1$; here the
        state keeps it, which costs one copy of the parameters and holds at
        $\beta_1 = 0$ too.
    """
    check_learning_rate(learning_rate)
    check_decay("b1", b1, corrected=False)
    numerics.check_number("weight_lr_power", weight_lr_power, low=0.0)
    bare = unwrap(inner)

    def init(params: Params) -> ScheduleFreeState:
        highest, weight_sum = numerics.scalar(0.0), numerics.scalar(0.0)
        held = tree.keep(trainable_leaves(bare, params), params)
        z, x = (tree.wide_copy(held) for _ in range(2))
        step = numerics.first_step()
        return ScheduleFreeState(step, highest, weight_sum, z, x, bare.init(params))

    def advance(
        update_fn: UpdateFn, updates: Updates, state: ScheduleFreeState, params: Params
    ) -> tuple[Updates, ScheduleFreeState, Metrics]:
        steps, inner_state, metrics = update_fn(bare, updates, state.inner, params)
        rate = numerics.hyper(learning_rate, state.step)
        highest = jnp.maximum(state.max_learning_rate, rate)
        weight = numerics.power_or_one(
            highest, numerics.hyper(weight_lr_power, state.step)
        )
        weight_sum = state.weight_sum + weight
        share = numerics.divide(weight, weight_sum)
        trainable = trainable_leaves(bare, params)
        z = tree.add(state.z, tree.keep(trainable, steps))
        x = tree.lerp(state.x, z, share)
        y = tree.average(numerics.hyper(b1, state.step), x, z)
        moves = tree.difference(y, tree.keep(trainable, params))
        step = numerics.next_step(state.step)
        new_state = ScheduleFreeState(step, highest, weight_sum, z, x, inner_state)
        new_updates = tree.merge(moves, tree.zeros_like(updates))
        return new_updates, new_state, {"averaging_weight": share} | metrics

    return chain(wrapper(init, advance, "schedule_free", bare.trainable))


def schedule_free_sgd(
    learning_rate: Hyper = 1.0,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    *,
    mask: Selector | None = None,
) -> Transform:
    r"""Gradient descent without a schedule: gradients between iterate and average.

    This is `schedule_free` (see there for the equations and the paper) around the
    optimizer

    $$z_{t+1} = z_t - \alpha_t\,(g_t + \lambda\,y_t)$$

    $g_t$ is the gradient at the parameters, $y_t$; evaluate at $x$:
    `fngrad.eval_params`, which `fngrad.fit` and `fngrad.evaluate` use. The end of the
    run need not be known.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a schedule;
            1 to 10 times that of SGD with a schedule. $c_t$ takes its largest value so
            far.
        warmup_steps: n in the factor $\min(1, t / n)$, t = 1, 2, ... on the learning
            rate; ``None`` means no warmup.
        b1: $\beta_1$ in [0, 1]; 0.9 to 0.98 are useful.
        weight_decay: $\lambda$, taken at $y$.
        weight_lr_power: $p$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.schedule_free_sgd(0.5, warmup_steps=10)

    References:
        Differs from optax in: its warmup begins at zero, $(t - 1) / n$, and lets $c_t$
        run one step ahead of it.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    inner = chain(add_decayed_weights(weight_decay, mask), sgd(rate))
    return schedule_free(inner, rate, b1, weight_lr_power)


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    *,
    mask: Selector | None = None,
) -> Transform:
    r"""AdamW without a schedule, an average of iterates in place of its momentum.

    This is `schedule_free` (see there for the equations and the paper) around the
    optimizer

    $$\nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2, \qquad
      z_{t+1} = z_t - \alpha_t \left(
      \frac{g_t}{\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon} + \lambda\,y_t \right)$$

    The parameters are $y$; evaluate at $x$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a schedule.
            $c_t$ takes its largest value so far.
        warmup_steps: n in the factor $\min(1, t / n)$, t = 1, 2, ... on the learning
            rate; ``None`` means no warmup.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, taken at $y$.
        weight_lr_power: $p$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.schedule_free_adamw(warmup_steps=100, weight_decay=0.1)

    References:
        Differs from the paper's algorithm 1 in: $\sqrt{1 - \beta_2^t}$ corrects the
        second moment, not the learning rate, and so stays out of $c_t$ (as in optax and
        Keras). Keras weighs all iterates alike (``weight_lr_power=0.0``).
    """
    check_decay("b2", b2, corrected=True)
    rate = _warmed_up(learning_rate, warmup_steps)
    rule = scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    inner = decaying(rule, rate, weight_decay, mask)
    return schedule_free(inner, rate, b1, weight_lr_power)


def schedule_free_radam(
    learning_rate: Hyper = 0.0025,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    *,
    mask: Selector | None = None,
    silent_sgd_phase: bool = True,
) -> Transform:
    r"""RAdam without a schedule and without a warmup: rectified steps, averaged.

    This is `schedule_free` (see there for the equations and the paper) around the
    optimizer, with $\nu_t$ as in `schedule_free_adamw` and the rectification $r_t$ of
    `radam`, where $\rho_t$ is defined,

    $$z_{t+1} = z_t - r_t\,\alpha_t \left(
      \frac{g_t}{\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon} + \lambda\,y_t \right)
      \quad\text{once } \rho_t > 4$$

    and $c_t$ takes the largest $r_t\,\alpha_t$ so far. Before that, for some four
    steps, nothing moves; without ``silent_sgd_phase`` the steps are then
    $\alpha_t\,(g_t + \lambda\,y_t)$, of the gradient's size. $r_t$ rises slowly, over
    about $1 / (1 - \beta_2)$ steps, in place of a warmup.

    The parameters are $y$; evaluate at $x$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a schedule.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1); up to 0.6 nothing is ever rectified.
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, taken at $y$.
        weight_lr_power: $p$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        silent_sgd_phase: whether nothing moves before the first rectified step.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.schedule_free_radam(0.0025, weight_decay=0.1)

    References:
        ``RAdamScheduleFree`` of the authors' code,
        https://github.com/facebookresearch/schedule_free. Differs from it in: the
        weights of the average have no further power of t.
    """
    check_decay("b2", b2, corrected=True)
    check_learning_rate(learning_rate)

    def share(step: jax.Array) -> jax.Array:
        r = _rectified(b2, step)
        return jnp.where(r > 0, r, 0.0 if silent_sgd_phase else 1.0)

    def rate(step: jax.Array) -> jax.Array:
        return numerics.hyper(learning_rate, step) * share(step)

    inner = chain(
        _gradients_at_first(b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_schedule(share),
        scale_by_learning_rate(learning_rate),
    )
    return schedule_free(inner, rate, b1, weight_lr_power)


def _gradients_at_first(b2: Hyper, eps: Hyper) -> Transform:
    """Return Adam's direction without momentum, or the gradient until it is rectified.

    The state is that of `scale_by_rms`.
    """
    normalize = scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    (rule,) = normalize.parts

    def update(
        updates: Updates, state: ScaleByRmsState, params: Params
    ) -> tuple[Updates, ScaleByRmsState]:
        normal, new_state = rule.update(updates, state, params)
        is_rectified = _rectified(b2, state.step) > 0
        return tree.where(is_rectified, normal, squarable(updates)), new_state

    return Transform(rule.init, update, name="scale_by_rms")


def _rectified(b2: Hyper, step: jax.Array) -> jax.Array:
    """Return RAdam's factor, and 0 where the variance is infinite."""
    beta = numerics.hyper(b2, step)
    return rectification(beta, step, jnp.full((), 4.0, beta.dtype))


def _warmed_up(learning_rate: Hyper, warmup_steps: int | None) -> Hyper:
    if warmup_steps is None:
        return learning_rate
    warmup_steps = numerics.check_count("warmup_steps", warmup_steps, 1)
    check_learning_rate(learning_rate)

    def rate(step: jax.Array) -> jax.Array:
        peak = numerics.hyper(learning_rate, step)
        begun = (step.astype(peak.dtype) + 1) / warmup_steps
        return peak * jnp.minimum(begun, 1)

    return rate

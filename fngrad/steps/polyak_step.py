"""The Polyak step size: the distance of the loss from its minimum, over ||g||^2."""

from typing import Literal

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.training.loss_forms as loss_forms
import fngrad.tree as tree
from fngrad.optimizers.sgd import sgd
from fngrad.sharding.constraints import placing
from fngrad.steps.core import displace
from fngrad.training import Step, TrainState, begin, finish, with_gradients
from fngrad.training.step_metrics import Move, WhichMetrics, check_metrics
from fngrad.transforms.core import TransformLike, chain, update_and_report
from fngrad.types import Batch, Hyper, LossFn, Metrics


def polyak(
    loss_fn: LossFn,
    optimizer: TransformLike | None = None,
    f_min: Hyper = 0.0,
    max_learning_rate: Hyper = 1.0,
    eps: Hyper = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
    *,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""Multiply the optimizer's update by Polyak's step size.

    $$\gamma_t = \min\Big(
        \frac{L(w_t) - L^\ast}{\|g_t\|^2 + \epsilon}, \gamma_{\max}\Big), \qquad
      w_{t+1} = w_t + \gamma_t\,u_t$$

    Where the gradient and $\epsilon$ are zero, $\gamma_t$ is zero. On convex losses
    with known $L^\ast$ gradient descent needs no learning rate; with a wrong one it
    diverges or stalls.

    Args:
        loss_fn: as for `fngrad.make_step`.
        optimizer: a transform; ``None`` means ``sgd(1.0)``, $u_t = -g_t$.
        f_min: $L^\ast$, in units of the loss.
        max_learning_rate: $\gamma_{\max}$ > 0.
        eps: $\epsilon$ >= 0, in squared gradient units.
        variant: below $L^\ast$ ``"sps+"`` takes no step and ``"sps"``
            a step uphill.
        metrics: as for `fngrad.make_step`.

    Returns:
        A step; its metrics are those of `fngrad.make_step` and ``step_length``,
        $\gamma_t$. Hyperparameters may be schedules of ``state.step``.

    Raises:
        TypeError: if ``loss_fn`` has another signature, or ``metrics`` another type.
        ValueError: if a number is out of range, the variant is unknown, or ``metrics``
            is unknown or empty; while tracing, as for `fngrad.make_step`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> step = fg.steps.polyak(lambda w, batch: jnp.sum(w**2))
        >>> state = fg.init_state(jnp.array([1.0, -2.0]), fg.sgd(1.0), key=0)
        >>> state, metrics = step(state, None)
        >>> print(state.params, metrics["step_length"])
        [ 0.5 -1. ] 0.25

    References:
        Loizou et al., Stochastic Polyak step-size for SGD, 2021, equation 3 with
        c = 1, https://arxiv.org/abs/2002.10542.
    """
    if variant not in ("sps", "sps+"):
        raise ValueError(f'need variant="sps" or "sps+", got {variant=}')
    numerics.check_number("f_min", f_min)
    numerics.check_positive("max_learning_rate", max_learning_rate)
    numerics.check_number("eps", eps, low=0.0)
    metrics = check_metrics(metrics)
    transform = chain(sgd(1.0) if optimizer is None else optimizer)
    gradient = loss_forms.gradient_fn(loss_fn)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        loss, grads = start.value.loss, tree.keep(start.trainable, start.grads)
        lowest, most, floor = (
            numerics.hyper(x, state.step).astype(loss.dtype)
            for x in (f_min, max_learning_rate, eps)
        )
        gap = loss - lowest if variant == "sps" else jnp.maximum(loss - lowest, 0)
        square = tree.vdot(grads, grads).astype(loss.dtype)
        norm, rate = (
            x.astype(loss.dtype) for x in numerics.fitting_norm(tree.norm, grads)
        )
        length, shrinks = _length(gap, square + floor, most=most, norm=norm, rate=rate)
        updates, opt_state, reports = update_and_report(
            transform, start.grads, state.opt_state, state.params
        )
        updates = tree.widen(updates)
        for factor in (*shrinks, length):  # their product may overflow
            updates = tree.scale(factor, updates)
        for factor in shrinks:
            length = length * factor
        params = displace(state.params, start.trainable, updates)
        move = Move(params, opt_state, updates, reports)
        more = {"step_length": length}
        return finish(transform, state, start, move, more, metrics=metrics)

    return placing(with_gradients(step, transform, gradient), loss_fn)


def _length(
    gap: jax.Array,
    square: jax.Array,
    *,
    most: jax.Array,
    norm: jax.Array,
    rate: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return gap / square, at most ``most``, without two factors, and these factors.

    The factors are 1, or powers of two where the length might overflow. Where the
    square overflows or vanishes, norm and rate (see `numerics.fitting_norm`) replace
    it.
    """
    is_far = ~jnp.isfinite(square) | (square == 0)
    unit = jnp.where(norm > numerics.LARGE, numerics.power_of_two_below(norm), 1)
    rate, unit = (jnp.where(is_far, x, 1) for x in (rate, unit))
    divisor = jnp.where(norm > 0, norm, 1)
    by_norm = numerics.divide(gap * rate / divisor, norm / unit)
    ratio = jnp.where(is_far, by_norm, numerics.divide(gap, square))
    return jnp.minimum(ratio, most * unit / rate), (rate, 1 / unit)

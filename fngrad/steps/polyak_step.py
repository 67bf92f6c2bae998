"""Steps as long as the loss is far from its minimum."""

from typing import Literal

import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.objective as objective
import fngrad.tree as tree
from fngrad.measures import Move
from fngrad.optimizers.gradient_descent import sgd
from fngrad.steps.core import displace
from fngrad.training import Step, TrainState, begin, finish
from fngrad.transforms.core import TransformLike, chain, update_and_report
from fngrad.types import Batch, Hyper, LossFn, Metrics


def polyak(
    loss_fn: LossFn,
    optimizer: TransformLike | None = None,
    f_min: Hyper = 0.0,
    max_learning_rate: Hyper = 1.0,
    eps: Hyper = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> Step:
    r"""Multiply the optimizer's update by Polyak's step size.

    $$\gamma_t = \min\!\Big(
        \frac{L(w_t) - L^*}{\|g_t\|^2 + \epsilon}, \gamma_{\max}\Big), \qquad
      w_{t+1} = w_t + \gamma_t\,u_t$$

    Where gradient and $\epsilon$ are zero, $\gamma_t$ is. On convex losses with
    $L^*$ known, gradient descent needs no learning rate; a wrong $L^*$ diverges or
    stalls.

    Args:
        loss_fn: as for `fngrad.make_step`.
        optimizer: a transform; ``None`` means ``sgd(1.0)``, $u_t = -g_t$.
        f_min: $L^*$, in units of the loss.
        max_learning_rate: $\gamma_{\max}$ > 0.
        eps: $\epsilon$ >= 0, in squared gradient units.
        variant: ``"sps+"`` takes no step where the loss is below $L^*$; ``"sps"``
            climbs back to it.

    Returns:
        A step; its metrics are those of `fngrad.make_step` and ``step_length``,
        $\gamma_t$. Hyperparameters may be schedules of ``state.step``.

    Raises:
        TypeError: ``loss_fn`` has another signature.
        ValueError: a number out of range, another variant.

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
    transform = chain(sgd(1.0) if optimizer is None else optimizer)
    gradient = objective.gradient_fn(loss_fn)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        loss, grads = start.value.loss, tree.keep(start.learned, start.grads)
        lowest, most, floor = (
            numerics.hyper(x, state.step).astype(loss.dtype)
            for x in (f_min, max_learning_rate, eps)
        )
        gap = loss - lowest if variant == "sps" else jnp.maximum(loss - lowest, 0)
        square = tree.vdot(grads, grads).astype(loss.dtype)
        norm = tree.norm(grads).astype(loss.dtype)
        # Without squares where these do not fit.
        by_norm = numerics.divide(gap / jnp.where(norm > 0, norm, 1), norm)
        plain = numerics.divide(gap, square + floor)
        is_far = ~jnp.isfinite(square) | (square + floor == 0)
        ratio = jnp.where(is_far, by_norm, plain)
        length = jnp.minimum(ratio, most)
        updates, opt_state, told = update_and_report(
            transform, start.grads, state.opt_state, state.params
        )
        updates = tree.scale(length, tree.widen(updates))
        params = displace(state.params, start.learned, updates)
        move = Move(params, opt_state, updates, told)
        return finish(state, start, move, {"step_length": length})

    return step

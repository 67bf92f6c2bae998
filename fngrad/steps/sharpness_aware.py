"""Sharpness-aware minimization: the gradient at the worst point nearby."""

from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.training.loss_forms as loss_forms
import fngrad.tree as tree
from fngrad.sharding.constraints import placing
from fngrad.steps.core import displace, move_by
from fngrad.training import Step, TrainState, begin, finish, with_gradients
from fngrad.training.step_metrics import WhichMetrics, check_metrics
from fngrad.transforms.core import TransformLike, chain
from fngrad.types import Batch, Hyper, LossFn, Metrics, Params, Updates


def sam(
    loss_fn: LossFn,
    optimizer: TransformLike,
    rho: Hyper = 0.05,
    adaptive: bool = False,
    *,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""Sharpness-aware minimization: step by the gradient at a point uphill.

    $$\epsilon_t = \rho\,\frac{g_t}{\|g_t\|}, \qquad
      \hat g_t = \nabla L(w_t + \epsilon_t)$$

    The optimizer receives $\hat g_t$. With ``adaptive`` the ball is relative to each
    weight: $\epsilon_t = \rho\,w_t^2 g_t / \|\,|w_t|\,g_t\|$. The loss is evaluated
    twice per step, with the same key; metrics and model state are those of the first
    evaluation. $\rho = 0$ is the plain step.

    Args:
        loss_fn: as for `fngrad.make_step`.
        optimizer: a transform.
        rho: $\rho$ >= 0, in units of the parameters (without a unit if adaptive); a
            number, a scalar array, or a schedule of ``state.step``.
        adaptive: whether the ball scales with the weights (ASAM).
        metrics: as for `fngrad.make_step`.

    Returns:
        A step; its metrics are those of `fngrad.make_step` (``grad_norm`` is that of
        $g_t$) and ``sharpness``, $L(w_t + \epsilon_t) - L(w_t)$.

    Raises:
        TypeError: if ``loss_fn`` has another signature, or ``metrics`` another type.
        ValueError: if ``rho`` is negative, or ``metrics`` is unknown or empty; while
            tracing, as for `fngrad.make_step`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sgd(0.1)
        >>> step = fg.steps.sam(lambda w, batch: jnp.sum(w**2), optimizer, rho=0.5)
        >>> state = fg.init_state(jnp.array([1.0, 0.0]), optimizer, key=0)
        >>> state, metrics = step(state, None)
        >>> print(state.params, metrics["sharpness"])  # the gradient at 1.5
        [0.7 0. ] 1.25

    References:
        Foret et al., Sharpness-aware minimization for efficiently improving
        generalization, 2021, algorithm 1, https://arxiv.org/abs/2010.01412. Kwon et
        al., ASAM, 2021, equation 7, https://arxiv.org/abs/2102.11600. Differs from it
        in: no $\eta$ is added to $|w|$, and biases are treated as weights.
    """
    numerics.check_number("rho", rho, low=0.0)
    metrics = check_metrics(metrics)
    transform = chain(optimizer)
    gradient = loss_forms.gradient_fn(loss_fn)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        radius = numerics.hyper(rho, state.step)
        uphill = _ascent(state.params, start.grads, start.trainable, radius, adaptive)
        params = displace(state.params, start.trainable, uphill)
        value, grads = gradient(
            params, start.trainable, batch, start.key, state.model_state, start.scale
        )
        move = move_by(transform, state, start.trainable, grads)
        more = {"sharpness": value.loss - start.value.loss}
        return finish(transform, state, start, move, more, metrics=metrics)

    return placing(with_gradients(step, transform, gradient), loss_fn)


def _ascent(
    params: Params, grads: Updates, trainable: Any, radius: jax.Array, adaptive: bool
) -> Updates:
    """Return the step uphill; zero where the gradient is zero."""
    held, grads = (tree.widen(tree.keep(trainable, x)) for x in (params, grads))
    size = jax.tree.map(jnp.abs, held) if adaptive else None
    relative = _times(grads, size)
    norm, rate = numerics.fitting_norm(tree.norm, relative)
    is_flat = norm == 0
    radius = jnp.where(is_flat, 0, radius.astype(norm.dtype))
    norm = jnp.where(is_flat, 1, norm)
    uphill = jax.tree.map(
        lambda x: numerics.times_ratio(x, radius, norm, rate), _times(relative, size)
    )
    return tree.merge(uphill, tree.zeros_like(params))


def _times(a: Updates, size: Updates | None) -> Updates:
    if size is None:
        return a
    return jax.tree.map(lambda x, t: x * t.astype(x.dtype), a, size)

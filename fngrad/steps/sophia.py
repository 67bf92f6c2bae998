"""Sophia: estimates of the Hessian's diagonal on the way."""

from typing import Literal

import jax

import fngrad.numerics as numerics
import fngrad.training.loss_forms as loss_forms
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.optimizers.sophia import ScaleBySophiaState, add_estimate
from fngrad.sharding.constraints import placing
from fngrad.steps.core import move_by
from fngrad.training import Step, TrainState, begin, finish, with_gradients
from fngrad.training.loss_forms import Gradient
from fngrad.training.step_metrics import LossAtStart, WhichMetrics, check_metrics
from fngrad.transforms.core import TransformLike, chain
from fngrad.types import Batch, Key, LossFn, Metrics, OptState, Params, Updates

_PROBE = 0x50F1A  # folded into the key, apart from the draws of the loss


def sophia(
    loss_fn: LossFn,
    optimizer: TransformLike,
    update_interval: int = 10,
    distribution: Literal["normal", "rademacher"] = "normal",
    *,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""Give `fngrad.sophia` its estimates of the Hessian's diagonal (Sophia-H).

    At step 0 and every k-th after it, with a random vector $u$ of unit covariance,

    $$\hat h = u \odot \nabla^2 L(w_t)\,u, \qquad
      \mathrm{E}\,\hat h = \mathrm{diag}\,\nabla^2 L(w_t)$$

    at about the cost of two gradients; the other steps are plain steps. The Hessian is
    that of the same batch and key. An estimate that is not finite is ignored.

    Args:
        loss_fn: as for `fngrad.make_step`.
        optimizer: a transform with the part `fngrad.scale_by_sophia`.
        update_interval: k >= 1.
        distribution: of the entries of $u$; ``"rademacher"`` ($\pm 1$) has the lower
            variance, which is zero if the Hessian is diagonal.
        metrics: as for `fngrad.make_step`.

    Returns:
        A step; its metrics are those of `fngrad.make_step`.

    Raises:
        TypeError: if ``loss_fn`` has another signature, or ``metrics`` another type.
        ValueError: if ``update_interval`` is below 1, the distribution is unknown, or
            ``metrics`` is unknown or empty; while tracing, as for `fngrad.make_step`,
            or if the optimizer has no part ``scale_by_sophia``, or one for other
            leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sophia(0.1)
        >>> step = fg.steps.sophia(lambda w, batch: jnp.sum(w**2), optimizer)
        >>> state = fg.init_state(jnp.array([1.0, -2.0]), optimizer, key=0)
        >>> state, metrics = step(state, None)

    References:
        Algorithms 1 and 3 of the paper cited in `fngrad.sophia`.
    """
    update_interval = numerics.check_count("update_interval", update_interval, 1)
    if distribution not in ("normal", "rademacher"):
        raise ValueError(
            f'need distribution="normal" or "rademacher", got {distribution=}'
        )
    metrics = check_metrics(metrics)
    transform = chain(optimizer)
    gradient = loss_forms.gradient_fn(loss_fn)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)

        def refresh(opt_state: OptState) -> OptState:
            k_probe = jax.random.fold_in(start.key, _PROBE)
            kept = tree.keep(start.trainable, state.params)
            probe = _draw(distribution, k_probe, kept)
            estimate = _estimate(gradient, start, state, batch, probe)
            return queries.replace(
                opt_state,
                ScaleBySophiaState,
                lambda node: add_estimate(node, estimate),
                part="scale_by_sophia",
            )

        is_due = state.step % update_interval == 0
        seen = jax.lax.cond(is_due, refresh, lambda s: s, state.opt_state)
        estimated = state._replace(opt_state=seen)
        move = move_by(transform, estimated, start.trainable, start.grads)
        return finish(transform, state, start, move, metrics=metrics)

    return placing(with_gradients(step, transform, gradient), loss_fn)


def _draw(distribution: str, key: Key, like: Params) -> Updates:
    """Return a random vector shaped like the parameters."""
    draw = jax.random.normal if distribution == "normal" else jax.random.rademacher
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [draw(keys[i], x.shape, x.dtype) for i, x in enumerate(leaves)]
    return structure.unflatten(drawn)


def _estimate(
    gradient: Gradient,
    start: LossAtStart,
    state: TrainState,
    batch: Batch,
    probe: Updates,
) -> Updates:
    """Return u * (H u), zero for leaves that are not trained."""

    def slope(trained: Params) -> Updates:
        params = tree.merge(trained, state.params)
        _, grads = gradient(
            params, start.trainable, batch, start.key, state.model_state, start.scale
        )
        return tree.keep(start.trainable, grads)

    point = tree.keep(start.trainable, state.params)
    _, product = jax.jvp(slope, (point,), (probe,))
    estimate = jax.tree.map(lambda u, v: u * v, tree.widen(probe), tree.widen(product))
    return tree.merge(estimate, tree.wide_zeros_like(state.params))

"""Gradients of losses that cannot be differentiated, one coordinate at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.training.estimated_gradients import Reals, with_estimate
from fngrad.types import LossFn


def central_differences(loss_fn: LossFn, relative_step: float | None = None) -> LossFn:
    r"""Return a loss whose gradient is computed by central differences.

    $$\hat g_j = \frac{L(\theta + h_j e_j) - L(\theta - h_j e_j)}{2 h_j}, \qquad
      h_j = h \max(1, |\theta_j|)$$

    The error is about $h_j^2$ times a third derivative, plus the rounding of $L$ over
    $h_j$. One gradient of $d$ parameters takes $2 d + 1$ evaluations of the loss, one
    coordinate after another, and none of its derivative: for a few parameters of a
    simulator behind `jax.pure_callback`, say. For many see `fngrad.evolution_strategy`.
    Only leaves that are trained are moved.

    Value, metrics and model state are those at $\theta$; a loss with a key gets the
    same one in all evaluations. `fngrad.gradcheck.finite_difference_gradient` computes
    in float64 to check a gradient; this one trains in the precision of the loss.

    Args:
        loss_fn: as for `fngrad.make_step`.
        relative_step: $h$ > 0; None means the cube root of the machine epsilon, 0.005
            in float32 and 6e-6 in float64.

    Returns:
        A loss function with the arguments of ``loss_fn``.

    Raises:
        TypeError: if ``loss_fn`` has another signature.
        ValueError: if ``relative_step`` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):  # whose derivative JAX does not know
        ...     shape = jax.ShapeDtypeStruct((), w.dtype)
        ...     return jax.pure_callback(lambda w: (w**2).sum(), shape, w)
        >>> step = fg.make_step(fg.central_differences(loss_fn), fg.sgd(0.25))
        >>> state = fg.init_state(jnp.array([1.0, -2.0]), fg.sgd(0.25), key=0)
        >>> state, metrics = step(state, None)
        >>> print(state.params.round(3), metrics["loss"])
        [ 0.5 -1. ] 5.0

    References:
        Nocedal and Wright, Numerical optimization, 2006, section 8.1.
    """
    if relative_step is not None:
        numerics.check_positive("relative_step", relative_step)

    def estimate(f: Callable[[Reals], jax.Array], x: Reals, key: Any) -> Reals:
        grads = []
        for i, leaf in enumerate(x):

            def at(flat: jax.Array, i: int = i) -> jax.Array:
                return f([*x[:i], flat.reshape(x[i].shape), *x[i + 1 :]])

            flat = _slopes(at, leaf.reshape(-1), relative_step)
            grads.append(flat.reshape(leaf.shape))
        return grads

    return with_estimate(loss_fn, estimate, needs_key=False)


def _slopes(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, relative_step: float | None
) -> jax.Array:
    """Return the slopes of f along the coordinates of a vector."""
    h = float(jnp.finfo(x.dtype).eps) ** (1 / 3)
    h = h if relative_step is None else relative_step

    def slope(j: jax.Array) -> jax.Array:
        width = h * jnp.maximum(1, jnp.abs(x[j]))
        high, low = x.at[j].add(width), x.at[j].add(-width)
        rise = (f(high) - f(low)).astype(x.dtype)
        return rise / (high[j] - low[j])  # what the points are apart, as rounded

    return jax.lax.map(slope, jnp.arange(x.size))

"""Log-probabilities without cancellation where one class is almost certain."""

import jax
import jax.numpy as jnp
from jax import lax


def surprise(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    r"""Return $-\log \mathrm{softmax}(x)$, accurate also for almost certain classes.

    With $m = \max_k x_k$ and s the sum of $e^{x_k - m}$ over all classes but the
    largest, it is $(m - x_k) + \log(1 + s)$.
    """
    below = x - lax.stop_gradient(jnp.max(x, axis=axes, keepdims=True))
    return jnp.log1p(exponentials(below, axes)[1]) - below


def exponentials(
    below: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return exp of numbers whose largest is 0, and the sum of these minus 1.

    The largest contributes 0 to the second, but keeps its gradient.
    """
    e, is_top = jnp.exp(below), below == 0
    rest = jnp.sum(jnp.where(is_top, 0, e), axis=axes, keepdims=True)
    tops = jnp.sum(jnp.where(is_top, e, 0), axis=axes, keepdims=True)
    return e, rest + (tops - 1)

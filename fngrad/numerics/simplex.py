"""What the nearest point of a simplex subtracts from a vector."""

import jax
import jax.numpy as jnp
from jax import lax


def above_threshold(x: jax.Array, total: float | jax.Array = 1.0) -> jax.Array:
    r"""Return $x - \tau$, whose positive entries sum to the total, by sorting.

    $\max(x - \tau, 0)$ is the point nearest to x of those whose entries are >= 0 and
    sum to the total. It is computed relative to the largest entry, so that nothing
    cancels, and is not to be differentiated.

    Args:
        x: at least float32, shape ``(..., n)`` with n >= 1; ``-inf`` stays.
        total: >= 0, of the dtype of x if it is an array.

    References:
        Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high
        dimensions", figure 1, https://doi.org/10.1145/1390156.1390191.
    """
    x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    falling = -jnp.sort(-x, axis=-1)
    sums = jnp.cumsum(falling, axis=-1)
    rank = 1 + lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1)
    size = jnp.sum(total + rank * falling > sums, axis=-1, keepdims=True)
    size = jnp.maximum(size, 1)  # 0 where the total is 0
    of_support = jnp.take_along_axis(sums, size - 1, axis=-1)
    return x - (of_support - total) / size.astype(x.dtype)

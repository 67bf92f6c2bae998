"""Attention with linear biases: a head prefers what is near, each by its own slope."""

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.layers.core import check_sizes


def alibi_slopes(num_heads: int) -> np.ndarray:
    r"""Return the slopes of ALiBi, one for each head.

    $$m_h = 2^{-8 h / n}, \quad h = 1, \dots, n$$

    for $n$ heads, a power of two. For other numbers the slopes are those of the largest
    power of two below, followed by every other slope of twice as many heads.

    Args:
        num_heads: $n$.

    Returns:
        float64, shape ``(num_heads,)``.

    Raises:
        ValueError: if num_heads is below 1.

    Example:
        >>> import fngrad.layers as layers
        >>> print(layers.alibi_slopes(4))
        [0.25       0.0625     0.015625   0.00390625]

    References:
        Press, Smith and Lewis 2022, "Train short, test long: attention with linear
        biases enables input length extrapolation", section 3,
        https://arxiv.org/abs/2108.12409; for other numbers of heads the authors' code,
        https://github.com/ofirpress/attention_with_linear_biases
    """
    check_sizes(num_heads=num_heads)
    power = 1 << (int(num_heads).bit_length() - 1)
    between = _of_a_power(2 * power)[::2]
    return np.concatenate([_of_a_power(power), between[: num_heads - power]])


def alibi_biases(
    num_heads: int, positions: jax.Array, context_positions: jax.Array
) -> jax.Array:
    r"""Return what ALiBi adds to the logits of attention: $-m_h\, |t - s|$.

    ``multi_head_attention(alibi=True)`` adds it.

    Args:
        num_heads: number of heads, each with its slope $m_h$ of `alibi_slopes`.
        positions: $t$ of the queries, int, shape ``(length,)``.
        context_positions: $s$ of the keys, int, shape ``(context_length,)``.

    Returns:
        Shape ``(num_heads, length, context_length)``, in the default float dtype.

    Raises:
        ValueError: if num_heads is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> print(layers.alibi_biases(1, jnp.arange(2), jnp.arange(2)) * 256)
        [[[ 0. -1.]
          [-1.  0.]]]
    """
    slopes = jnp.asarray(alibi_slopes(num_heads), jnp.result_type(float))
    distances = jnp.abs(positions[:, None] - context_positions[None, :])
    return slopes[:, None, None] * (-distances).astype(slopes.dtype)[None]


def _of_a_power(count: int) -> np.ndarray:
    return 2.0 ** (-8 / count * np.arange(1, count + 1))

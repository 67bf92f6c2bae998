"""Rotary position embeddings: queries and keys turn with their positions."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.core import with_narrow_residuals
from fngrad.types import Scalar

Pairing = Literal["half_split", "interleaved"]


def rotary(
    base: Scalar = 10000.0,
    *,
    fraction: float = 1.0,
    pairing: Pairing = "half_split",
) -> "Rotary":
    r"""Return a rotation of queries and keys by their positions, RoPE.

    Of a head's vector, $d$ entries are taken in $d / 2$ pairs. At position $p$ the pair
    $(a, b)$ with the number $i$ becomes

    $$(a \cos p \theta_i - b \sin p \theta_i,\; a \sin p \theta_i + b \cos p \theta_i),
    \qquad \theta_i = \text{base}^{-2 i / d},$$

    so that the product of a query and a key depends on the distance of their positions
    alone. ``multi_head_attention(rotary=rotary())`` uses it. It is a function of arrays
    too: ``rotary()(x, positions)`` with x of shape ``(length, heads, head_size)`` and
    positions of shape ``(length,)``. Angles are in at least float32; y has the dtype of
    x.

    Args:
        base: of the angles, positive; may be a tracer. Long contexts take 500,000 or
            more.
        fraction: of the head size that is turned, in [0, 1], rounded down to an even
            number $d$; the entries after the first $d$ stay. GPT-NeoX has 0.25.
        pairing: which entries are a pair: ``"half_split"`` $(x_i, x_{i + d/2})$, as in
            GPT-NeoX and the LLaMA of Hugging Face, or ``"interleaved"``
            $(x_{2i}, x_{2i + 1})$, as in the paper, GPT-J and Meta's LLaMA. Weights
            trained with one do not fit the other.

    Raises:
        ValueError: if base is not positive, fraction is outside [0, 1], or the pairing
            is unknown; at the call, if x and positions have other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> rotate = layers.rotary()
        >>> x = jnp.array([[[1.0, 0.0]]])  # one position, one head of size 2
        >>> print((100 * rotate(x, jnp.array([1]))).round())  # cosine and sine of 1
        [[[54. 84.]]]

    References:
        Su et al. 2021, "RoFormer: enhanced transformer with rotary position embedding",
        equations 15 and 34, https://arxiv.org/abs/2104.09864. Differs from it in:
        the default pairing; ``"interleaved"`` is the paper's.
    """
    numerics.check_positive("base", base)
    numerics.check_number("fraction", fraction, 0.0, 1.0)
    numerics.check_choice("pairing", pairing, get_args(Pairing))
    return Rotary(base, fraction, pairing)


class Rotary(NamedTuple):
    """A rotation by positions; see `rotary`, which checks its arguments."""

    base: Scalar
    fraction: float
    pairing: Pairing

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Return x of shape ``(length, heads, head_size)``, turned."""
        if x.ndim != 3 or positions.shape != x.shape[:1]:
            raise ValueError(
                "need x of shape (length, heads, head_size) and positions of shape "
                f"(length,), got {x.shape} and {positions.shape}"
            )
        size = int(self.fraction * x.shape[-1]) // 2 * 2
        if size == 0:
            return x
        angles = _angles(self.base, size, positions, tree.wide_dtype(x.dtype))

        def turned(angles: jax.Array, x: jax.Array) -> jax.Array:
            turning, staying = jnp.split(x, [size], axis=-1)
            first, second = _pairs(tree.widen(turning), self.pairing)
            cos, sin = jnp.cos(angles), jnp.sin(angles)
            pair = first * cos - second * sin, first * sin + second * cos
            y = _joined(*pair, self.pairing).astype(x.dtype)
            return jnp.concatenate([y, staying], axis=-1)

        return with_narrow_residuals(turned, angles, x)


def _angles(
    base: Scalar, size: int, positions: jax.Array, dtype: np.dtype
) -> jax.Array:
    """Return the angles of shape ``(length, 1, size / 2)``."""
    powers = jnp.asarray(-np.arange(0, size, 2) / size, dtype)
    frequencies = numerics.hyper(base).astype(dtype) ** powers
    angles = positions.astype(dtype)[:, None] * frequencies[None, :]
    return angles[:, None, :]


def _pairs(x: jax.Array, pairing: Pairing) -> tuple[jax.Array, jax.Array]:
    if pairing == "interleaved":
        return x[..., ::2], x[..., 1::2]
    first, second = jnp.split(x, 2, axis=-1)
    return first, second


def _joined(first: jax.Array, second: jax.Array, pairing: Pairing) -> jax.Array:
    if pairing == "interleaved":
        pairs = jnp.stack([first, second], axis=-1)
        return pairs.reshape(*first.shape[:-1], -1)
    return jnp.concatenate([first, second], axis=-1)

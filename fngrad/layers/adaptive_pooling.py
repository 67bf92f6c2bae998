r"""Pooling to a given number of positions, whatever the size of x.

Along an axis of $n$ positions window $i$ of $m$ holds the positions from
$\lfloor i n / m \rfloor$ to $\lceil (i + 1) n / m \rceil$ (excluded). Windows adjoin
where $m$ divides $n$, and else overlap by one position.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.core import Layer, float_array, no_params, with_narrow_residuals
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.layers.windows import check_image, each_axis


def adaptive_avg_pool(out_size: int | Sequence[int | None]) -> Layer:
    """Take the mean of each of so many windows, channel by channel.

    The mean is in at least float32.

    Args:
        out_size: positions of y along each axis before the channels; an int holds for
            all, None keeps the axis as it is. 1 makes one window of the axis.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another number of axes,
            no position along one, or is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> x = jnp.array([[1.0], [3.0], [5.0], [8.0], [10.0]])
        >>> print(layers.adaptive_avg_pool(2).apply((), x)[:, 0])
        [3.       7.666667]
    """
    return _adaptive_pool("adaptive_avg_pool", jnp.mean, out_size)


def adaptive_max_pool(out_size: int | Sequence[int | None]) -> Layer:
    """Take the largest entry of each of so many windows, channel by channel.

    Args:
        out_size: as in `adaptive_avg_pool`.

    Raises:
        ValueError: as in `adaptive_avg_pool`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> x = jnp.array([[1.0], [3.0], [5.0], [8.0], [4.0]])
        >>> print(layers.adaptive_max_pool(2).apply((), x)[:, 0])
        [5. 8.]
    """
    return _adaptive_pool("adaptive_max_pool", numerics.largest, out_size)


def _adaptive_pool(name: str, reduce: Callable[..., jax.Array], out_size: Any) -> Layer:
    for size in each_axis(out_size, 1):
        if size is not None:
            numerics.check_count("out_size", size, 1)

    def pool(_: Any, x: jax.Array, counts: Sequence[int | None]) -> jax.Array:
        # A window of several axes is reduced axis by axis; the mean is kept wide.
        y = tree.widen(x)
        for axis, count in enumerate(counts):
            y = y if count is None else _along(reduce, y, axis, count)
        return y.astype(x.dtype)

    def apply(params: Any, x: jax.Array, *, key: Any = None) -> jax.Array:
        x = float_array(x)
        counts = each_axis(out_size, x.ndim - 1)
        x = check_image(x, len(counts), None)
        if 0 in x.shape:
            raise ValueError(f"need x with a position to pool, got shape {x.shape}")
        return with_narrow_residuals(functools.partial(pool, counts=counts), (), x)

    return Layer(no_params, made_of(apply, Parts(name)))


def _along(
    reduce: Callable[..., jax.Array], x: jax.Array, axis: int, count: int
) -> jax.Array:
    size = x.shape[axis]
    if size % count == 0:
        shape = *x.shape[:axis], count, size // count, *x.shape[axis + 1 :]
        return reduce(x.reshape(shape), axis=axis + 1)
    windows = [
        lax.slice_in_dim(x, i * size // count, -(-(i + 1) * size // count), axis=axis)
        for i in range(count)
    ]
    return jnp.stack([reduce(w, axis=axis) for w in windows], axis=axis)

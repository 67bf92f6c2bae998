r"""Affine maps of one image: rotate, shear, translate.

Coordinates are (row, column) of pixels' centers, counted from the image's center. The
value of an output pixel p is that of the input at $A p + b$, the inverse of the way in
which the picture moves. A point outside of the image's pixels has the value ``fill``;
between the centers of the outermost pixels and the edge, values are theirs.
"""

from typing import Literal

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.image_batches import (
    as_wide,
    filling,
    over_channels,
    rounded,
)
from fngrad.types import Scalar

Method = Literal["bilinear", "nearest"]
METHODS = ("bilinear", "nearest")


def rotate(
    image: jax.Array,
    degrees: Scalar,
    *,
    method: Method = "bilinear",
    fill: Scalar = 0.0,
) -> jax.Array:
    """Turn an image counter-clockwise around its center.

    Args:
        image: shape ``(height, width, ...)``; the result has the same shape.
        degrees: the angle; negative ones turn clockwise.
        method: the value between pixels: ``"bilinear"`` or that of the ``"nearest"``.
        fill: value of pixels that come from outside, in units of the image.

    Raises:
        ValueError: if the method is unknown, or ``fill`` not a value of the dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[1, 2], [3, 4]], jnp.uint8)
        >>> print(jax.jit(augmentations.rotate)(image, 90))
        [[2 4]
         [1 3]]
    """
    angle = jnp.deg2rad(numerics.hyper(degrees))
    c, s = jnp.cos(angle), jnp.sin(angle)
    return affine(image, jnp.array([[c, s, 0], [-s, c, 0]]), method=method, fill=fill)


def shear(
    image: jax.Array,
    horizontal: Scalar = 0.0,
    vertical: Scalar = 0.0,
    *,
    method: Method = "bilinear",
    fill: Scalar = 0.0,
) -> jax.Array:
    """Shift rows by their distance from the center row, and columns likewise.

    Args:
        image: shape ``(height, width, ...)``.
        horizontal: pixels to the left per row below the center.
        vertical: pixels upwards per column right of the center.
        method, fill: see `rotate`.

    Raises:
        ValueError: if the method is unknown, or ``fill`` not a value of the dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[0, 1, 2]] * 3, jnp.uint8)
        >>> print(jax.jit(augmentations.shear)(image, horizontal=1))
        [[0 0 1]
         [0 1 2]
         [1 2 0]]
    """
    h, v = numerics.hyper(horizontal), numerics.hyper(vertical)
    return affine(image, jnp.array([[1, v, 0], [h, 1, 0]]), method=method, fill=fill)


def translate(
    image: jax.Array,
    right: Scalar = 0.0,
    down: Scalar = 0.0,
    *,
    method: Method = "bilinear",
    fill: Scalar = 0.0,
) -> jax.Array:
    """Move an image.

    Args:
        image: shape ``(height, width, ...)``.
        right, down: in pixels, also parts of them and negative ones.
        method, fill: see `rotate`.

    Raises:
        ValueError: if the method is unknown, or ``fill`` not a value of the dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[1, 2, 3]], jnp.uint8)
        >>> print(jax.jit(augmentations.translate)(image, right=1))
        [[0 1 2]]
    """
    x, y = numerics.hyper(right), numerics.hyper(down)
    return affine(image, jnp.array([[1, 0, -y], [0, 1, -x]]), method=method, fill=fill)


def affine(
    image: jax.Array,
    matrix: jax.Array,
    *,
    method: Method = "bilinear",
    fill: Scalar = 0.0,
) -> jax.Array:
    """Return the image whose pixel at p is that of ``image`` at A p + b.

    Args:
        image: shape ``(height, width, ...)``.
        matrix: A and b side by side, shape (2, 3); p is (row, column) from the center.
        method, fill: see `rotate`.

    Raises:
        ValueError: if the method is unknown, the matrix has another shape, or ``fill``
            is not a value of the dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> transposed = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> print(jax.jit(augmentations.affine)(image, transposed))
        [[1. 3.]
         [2. 4.]]
    """
    numerics.check_choice("method", method, METHODS)
    image, matrix = jnp.asarray(image), jnp.asarray(matrix)
    if matrix.shape != (2, 3):
        raise ValueError(f"need a matrix of shape (2, 3), got shape {matrix.shape}")
    height, width = image.shape[:2]
    matrix = matrix.astype(jnp.result_type(float))
    middle = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height, dtype=matrix.dtype) - middle[0])[:, None]
    x = (jnp.arange(width, dtype=matrix.dtype) - middle[1])[None, :]
    row, column = (
        a * y + b * x + c + m for (a, b, c), m in zip(matrix, middle, strict=True)
    )
    sample = _bilinear if method == "bilinear" else _nearest
    is_inside = (row >= -0.5) & (row < height - 0.5)
    is_inside &= (column >= -0.5) & (column < width - 0.5)
    is_inside = over_channels(is_inside, image)
    return jnp.where(is_inside, sample(image, row, column), filling(fill, image))


def _nearest(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    return _pixels(image, jnp.floor(row + 0.5), jnp.floor(column + 0.5))


def _bilinear(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    wide = as_wide(image)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (
        over_channels(part.astype(wide.dtype), image)
        for part in (row - top, column - left)
    )

    def between(at: jax.Array) -> jax.Array:
        first, second = _pixels(wide, at, left), _pixels(wide, at, left + 1)
        return (1 - right) * first + right * second

    values = (1 - down) * between(top) + down * between(top + 1)
    return rounded(values, image.dtype)


def _pixels(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Return the pixels at whole coordinates, of the edge for those outside."""
    i = jnp.clip(row.astype(jnp.int32), 0, image.shape[0] - 1)
    j = jnp.clip(column.astype(jnp.int32), 0, image.shape[1] - 1)
    return image.at[i, j].get(mode="promise_in_bounds")

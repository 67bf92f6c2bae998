"""Random rotation, size, shear and place of each image, in one resampling."""

import math
import numbers
from typing import TypeAlias

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.affine import METHODS, Method, affine
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    height_and_width,
    image_map,
)
from fngrad.types import Key, Scalar, Selector

Interval: TypeAlias = tuple[Scalar, Scalar]
_RIGHT_ANGLE = 90.0  # degrees


def random_affine(
    degrees: Scalar | Interval = 0.0,
    translate: Scalar | tuple[Scalar, Scalar] = 0.0,
    scale: Interval = (1.0, 1.0),
    shear: Scalar | Interval = 0.0,
    vertical_shear: Scalar | Interval = 0.0,
    *,
    method: Method = "bilinear",
    fill: Scalar = 0.0,
    images: Selector = "x",
) -> BatchMap:
    r"""Shear, scale, turn and move each image at random, in this order.

    A point q of an image, (row, column) from the center, goes to

    $$p = s \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta
      \end{pmatrix}
      \begin{pmatrix} 1 & -\tan\psi \\ 0 & 1 \end{pmatrix}
      \begin{pmatrix} 1 & 0 \\ -\tan\varphi & 1 \end{pmatrix} q + t$$

    with numbers that are drawn uniformly for each image. All are applied at once, so
    that an image is interpolated once. `rotate`, `shear` and `translate` are the single
    ones, of numbers that are given.

    Args:
        degrees: the largest angle d, for $\theta$ in [-d, d] degrees, or an interval
            (low, high); positive ones turn counter-clockwise.
        translate: the largest part of the width and of the height, in [0, 1], by which
            an image is moved to the right or left and down or up: one number for both
            or (horizontal, vertical).
        scale: the smallest and the largest s, > 0; 2 makes everything twice as large.
        shear: the largest angle, for $\varphi$ in [-shear, shear] degrees, or an
            interval, within (-90, 90); positive ones move what is below the center to
            the left.
        vertical_shear: likewise for $\psi$; positive ones move what is right of the
            center upwards.
        method, fill: see `rotate`.
        images: selects leaves of the batch; those of an example change alike.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if a number is something else.
        ValueError: if a number is out of range, an interval is empty, or the method is
            unknown; when it is called, if ``fill`` is not a value of the dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> move = augmentations.random_affine(10, 0.1, scale=(0.9, 1.1), shear=5)
        >>> move({"x": jnp.ones((4, 8, 8, 3))}, jax.random.key(0))["x"].shape
        (4, 8, 8, 3)

    References:
        Simard, Steinkraus and Platt, Best practices for convolutional neural networks
        applied to visual document analysis, 2003, section 2, for the idea. As
        torchvision's ``RandomAffine``; differs from it in: angles are
        counter-clockwise, moves are not cut to whole pixels, the default
        ``method`` is ``"bilinear"``, and the vertical shear has a name of its own.
    """
    if not isinstance(scale, tuple):
        raise ValueError(f"need scale as (low, high), got {scale=}")
    turns, sizes = _interval("degrees", degrees), _interval("scale", scale)
    numerics.check_positive("scale", sizes[0])
    shears = (
        _interval("shear", shear, _RIGHT_ANGLE),
        _interval("vertical_shear", vertical_shear, _RIGHT_ANGLE),
    )
    moves = translate if isinstance(translate, tuple) else (translate, translate)
    if len(moves) != 2:
        raise ValueError(f"need translate as one number or two, got {translate=}")
    for most in moves:
        numerics.check_number("translate", most, 0.0, 1.0)
    numerics.check_choice("method", method, METHODS)

    def changed(image: jax.Array, key: Key) -> jax.Array:
        k_turn, k_scale, k_move, *k_shears = jax.random.split(key, 5)
        h, v = map(_angle, k_shears, shears)
        inverse = _turned(jnp.tan(h), jnp.tan(v), _angle(k_turn, turns))
        inverse = inverse / _drawn(k_scale, sizes)
        height, width = height_and_width(image)
        parts = jax.random.uniform(k_move, (2,), minval=-1.0)
        right = parts[0] * numerics.hyper(moves[0]) * width
        down = parts[1] * numerics.hyper(moves[1]) * height
        offset = -inverse[:, 0] * down - inverse[:, 1] * right
        matrix = jnp.concatenate([inverse, offset[:, None]], axis=1)
        return affine(image, matrix, method=method, fill=fill)

    return image_map("random_affine", changed, images)


def _turned(h: jax.Array, v: jax.Array, angle: jax.Array) -> jax.Array:
    """Return the inverse of a rotation after shears by these tangents, (2, 2)."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    first = jnp.stack([c - v * s, s + v * c])
    return jnp.stack([first, h * first + jnp.stack([-s, c])])


def _angle(key: Key, degrees: Interval) -> jax.Array:
    return jnp.deg2rad(_drawn(key, degrees))


def _drawn(key: Key, interval: Interval) -> jax.Array:
    low, high = map(numerics.hyper, interval)
    return jax.random.uniform(key, minval=low, maxval=high)


def _interval(name: str, value: Scalar | Interval, bound: float = math.inf) -> Interval:
    """Return an interval as it is; of one number, that of both signs.

    Raises:
        TypeError: if a number is something else.
        ValueError: if one number is negative, two are not in order, there are more, or
            one is not inside of the bound.
    """
    is_pair = isinstance(value, tuple)
    if is_pair and len(value) != 2:
        raise ValueError(f"need {name} as one number or (low, high), got {value!r}")
    for number in value if is_pair else (value,):
        numerics.check_number(name, number, low=-math.inf if is_pair else 0.0)
    low, high = value if is_pair else (-value, value)
    known = [float(x) for x in (low, high) if isinstance(x, numbers.Real)]
    if not all(abs(x) < bound for x in known) or known != sorted(known):
        raise ValueError(
            f"need -{bound} < low <= high < {bound} in {name}=(low, high), got "
            f"{name}={value}"
        )
    return low, high

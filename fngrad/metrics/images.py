"""Metrics of images: how close one is to another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
from fngrad.metrics.accumulators import Mean
from fngrad.metrics.examples import mean_of
from fngrad.metrics.regression import paired


def psnr(
    predictions: Any,
    targets: Any,
    *,
    max_value: float = 1.0,
    where: Any = None,
    weights: Any = None,
) -> Mean:
    r"""Measure the peak signal-to-noise ratio of each image, in decibels.

    $$20 \log_{10} L - 10 \log_{10} \mathrm{MSE}$$

    with the mean squared error over an image; then the mean over images.

    Args:
        predictions: floats, shape ``(n, ...)``.
        targets: of the same shape.
        max_value: $L$, > 0, the range of the values: 255 for bytes.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Returns:
        The metric; infinite if an image equals its target.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit, or ``max_value <= 0``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> x = jnp.zeros((1, 4, 4))
        >>> print(metrics.psnr(x + 0.1, x).value())
        20.0

    References:
        Differs from torchmetrics in: the mean is over images, not over pixels of all.
    """
    numerics.check_positive("max_value", max_value)
    x, y, w = paired(predictions, targets, where, weights)
    per_image = (len(x), -1) if x.size else (len(x), 1)
    x, y, w = (a.reshape(per_image) for a in (x, y, w))
    error = jnp.mean(jnp.square((x - y) / numerics.hyper(max_value).astype(x.dtype)), 1)
    w = w[:, 0]
    is_exact = (w == 0) | (error == 0)
    ratio = -10 * jnp.log10(jnp.where(is_exact, 1, error))
    return mean_of(jnp.where((w != 0) & (error == 0), jnp.inf, ratio), w)


def ssim(
    predictions: Any,
    targets: Any,
    *,
    max_value: float = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    where: Any = None,
    weights: Any = None,
) -> Mean:
    r"""Measure the structural similarity of each image, at most 1.

    $$\frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
      {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}, \qquad
      c_1 = (0.01 L)^2,\ c_2 = (0.03 L)^2$$

    of means, variances and covariances under a Gaussian window, then the mean over the
    positions at which the window lies within the image, over channels and over images.

    Args:
        predictions: $x$, floats, shape ``(n, height, width)`` or
            ``(n, height, width, channels)``.
        targets: $y$, of the same shape.
        max_value: $L$, > 0, the range of the values: 255 for bytes.
        window: the side of the window, in pixels, >= 1.
        sigma: the window's standard deviation, in pixels, > 0.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit, an image is smaller than the window, or a
            number is out of range.

    References:
        Wang, Bovik, Sheikh and Simoncelli, Image quality assessment: from error
        visibility to structural similarity, 2004, https://doi.org/10.1109/TIP.2003.819861,
        equation 13. Differs from it in: images are not reduced in size first; color is
        averaged over channels.
    """
    numerics.check_positive("max_value", max_value)
    numerics.check_positive("sigma", sigma)
    window = numerics.check_count("window", window, 1)
    x, y, w = paired(predictions, targets, where, weights)
    if x.ndim not in (3, 4):
        raise ValueError(
            "need images (n, height, width) or (n, height, width, channels), "
            f"got shape {x.shape}"
        )
    if min(x.shape[1:3]) < window:
        raise ValueError(
            f"need images of at least {window} x {window} pixels, got shape {x.shape}: "
            "give a smaller window"
        )
    x, y = (a.reshape(*a.shape[:3], -1) for a in (x, y))
    peak = numerics.hyper(max_value).astype(x.dtype)
    similarity = _similarity(x / peak, y / peak, _gaussian(window, float(sigma)))
    return mean_of(jnp.mean(similarity, axis=(1, 2, 3)), w.reshape(len(x), -1)[:, 0])


def _gaussian(window: int, sigma: float) -> np.ndarray:
    place = np.arange(window) - (window - 1) / 2
    kernel = np.exp(-0.5 * np.square(place / sigma))
    return kernel / kernel.sum()


def _similarity(x: jax.Array, y: jax.Array, kernel: np.ndarray) -> jax.Array:
    """Return the similarity at each position, for values in the range of 1."""
    # Variances do not change with the image's level; without it they do not cancel.
    levels = [jnp.mean(a, axis=(1, 2), keepdims=True) for a in (x, y)]
    x, y = x - levels[0], y - levels[1]
    x_mean, y_mean = _blurred(x, kernel), _blurred(y, kernel)
    spread = _blurred(x * x, kernel) - x_mean**2 + (_blurred(y * y, kernel) - y_mean**2)
    covariance = _blurred(x * y, kernel) - x_mean * y_mean
    x_mean, y_mean = x_mean + levels[0], y_mean + levels[1]
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x_mean * y_mean + c1) / (x_mean**2 + y_mean**2 + c1)
    return luminance * (2 * covariance + c2) / (spread + c2)


def _blurred(x: jax.Array, kernel: np.ndarray) -> jax.Array:
    """Return weighted means over windows, of shape (n, height, width, channels)."""
    kernel = kernel.astype(x.dtype)
    for axis in (1, 2):
        size = x.shape[axis] - len(kernel) + 1
        rows = [lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(len(kernel))]
        x = functools.reduce(
            jnp.add, (weight * row for weight, row in zip(kernel, rows, strict=True))
        )
    return x

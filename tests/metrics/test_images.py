"""Metrics of images against float64 formulas with scipy's Gaussian window."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from fngrad import metrics

M = metrics
RNG = np.random.default_rng(0)
Y = RNG.uniform(size=(3, 13, 14, 2)).astype(np.float32)
X = np.clip(Y + 0.1 * RNG.normal(size=Y.shape), 0, 1).astype(np.float32)


def blurred(x, window, sigma):
    """Blur one channel, and keep where the window lies within the image."""
    radius, is_odd = divmod(window, 2)
    assert is_odd
    y = ndimage.gaussian_filter(x, sigma, radius=radius)
    return y[radius : x.shape[0] - radius, radius : x.shape[1] - radius]


def ssim(x, y, peak, window=11, sigma=1.5):
    """Return equation 13 of Wang et al. for one channel."""
    x, y = np.float64(x), np.float64(y)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mx, my, xx, yy, xy = (
        blurred(a, window, sigma) for a in (x, y, x * x, y * y, x * y)
    )
    top = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    return np.mean(top / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)))


def whole(x, y, peak, **options):
    channels = [
        ssim(x[i, ..., c], y[i, ..., c], peak, **options)
        for i in range(len(x))
        for c in range(x.shape[-1])
    ]
    return np.mean(channels)


def test_ssim_equals_its_formula():
    got = jax.jit(lambda x, y: M.ssim(x, y).value())(X, Y)
    np.testing.assert_allclose(got, whole(X, Y, 1.0), rtol=1e-5)
    bytes_ = [np.round(255 * a) for a in (X, Y)]
    options = {"max_value": 255, "window": 7, "sigma": 0.8}
    got = jax.jit(lambda x, y: M.ssim(x, y, **options).value())(*bytes_)
    want = whole(*bytes_, 255, window=7, sigma=0.8)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    one = jax.jit(lambda x, y: M.ssim(x, y).value())(X[..., 0], Y[..., 0])
    np.testing.assert_allclose(one, whole(X[..., :1], Y[..., :1], 1.0), rtol=1e-5)


def test_ssim_of_faint_patterns_does_not_cancel():
    x, y = (0.9 + 1e-3 * a for a in (X, Y))
    x, y = x.astype(np.float32), y.astype(np.float32)
    got = 1 - M.ssim(x, y).value()
    np.testing.assert_allclose(got, 1 - whole(x, y, 1.0), rtol=0, atol=2e-7)
    assert M.ssim(y, y).value() == 1


def test_psnr_is_the_mean_of_the_images_decibels():
    error = np.mean((np.float64(X) - Y) ** 2, axis=(1, 2, 3))
    want = np.mean(20 * np.log10(255) - 10 * np.log10(error))
    kept = np.array([True, False, True])
    some = np.where(kept[:, None, None, None], X, Y)

    @jax.jit
    def measured(x, some, y):
        of_bytes = M.psnr(x, y, max_value=255)
        metrics = of_bytes, M.psnr(y, y), M.psnr(some, y, where=kept)
        return [metric.value() for metric in metrics]

    got, of_equals, of_kept = measured(X, some, Y)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert of_equals == np.inf
    np.testing.assert_allclose(of_kept, np.mean(-10 * np.log10(error[kept])), 1e-6)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"least 11 x 11 pixels, got shape \(3, 8, 14"):
        jax.eval_shape(M.ssim, X[:, :8], Y[:, :8])
    with pytest.raises(ValueError, match=r"need images \(n, height, width\) or"):
        jax.eval_shape(M.ssim, X[0, 0], Y[0, 0])
    with pytest.raises(ValueError, match="need max_value > 0, got max_value=0"):
        M.psnr(X, Y, max_value=0)

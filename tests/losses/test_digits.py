"""Losses and their slopes against float64, from 1e-30 to 1e30 and at every extreme."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_digits import CASES
from scipy import special

from fngrad import losses

L = losses
INTEGER = L.softmax_cross_entropy_with_integer_labels
LARGEST = float(np.finfo(np.float32).max)
SIZES = np.concatenate([10.0 ** np.arange(-30, 31, 3), [0.3, 2, 5, 20, 40, 80]])
GRID = np.concatenate([-SIZES, [0], SIZES]).astype(np.float32)


def agree(got, want, rtol):
    """Compare float32 to float64: too large is infinite, too small may be zero."""
    want = np.where(np.abs(want) > LARGEST, np.copysign(np.inf, want), want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1.2e-38)


@pytest.mark.parametrize("name", CASES)
def test_value_and_slope_are_float64s_from_tiny_to_huge(name):
    loss, (value, slope) = CASES[name]
    x = GRID[GRID != 0] if name.startswith("quantile") else GRID
    got = jax.jit(jax.vmap(jax.value_and_grad(loss)))(x)
    # An exponential of 80 and a power of many are good to their argument's digits.
    rtol = 1e-5 if name.startswith(("focal", "poisson", "poly")) else 1e-6
    with np.errstate(over="ignore", under="ignore"):
        x = x.astype(np.float64)
        agree(got[0], value(x), rtol)
        agree(got[1], slope(x), rtol)


def test_huber_at_a_small_error_and_a_large_delta_has_the_errors_slope():
    for delta in (1e4, np.inf):
        value, slope = jax.value_and_grad(functools.partial(L.huber, delta=delta))(1e-4)
        np.testing.assert_allclose([value, slope], [5e-9, 1e-4], rtol=1e-6)


def test_a_certain_class_keeps_the_digits_of_the_others():
    for gap in (20.0, 40.0, 80.0):
        x = np.float32([gap, 0, 1])
        want = np.exp(-gap) * (1 + np.e)
        soft = np.float32([1, 0, 0])
        for loss, y in ((INTEGER, 0), (L.softmax_cross_entropy, soft)):
            value, slope = jax.value_and_grad(loss)(x, y)
            np.testing.assert_allclose(value, want, rtol=1e-5)
            others = [-want, np.exp(-gap), np.exp(1 - gap)]
            np.testing.assert_allclose(slope, others, rtol=1e-5)


def test_equal_largest_logits_share_the_probability():
    x = np.float32([3, 3, -1, 3])
    want = np.log(3 + np.exp(-4.0))
    np.testing.assert_allclose(INTEGER(x, 1), want, rtol=1e-6)
    slope = jax.grad(lambda x: INTEGER(x, 1))(x)
    p = special.softmax(x.astype(np.float64))
    np.testing.assert_allclose(slope, p - [0, 1, 0, 0], rtol=1e-6)


def test_a_margin_of_one_is_kept_beside_large_scores():
    for size in (1e10, -1e30):
        x = np.full(3, size, np.float32)
        assert L.multiclass_hinge(x, 0) == 1
    x = np.float32([3e30, 1e30, 0])
    np.testing.assert_allclose(L.multiclass_hinge(x, 1), 2e30, rtol=1e-6)


def cosine(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    u, v = x / np.linalg.norm(x), y / np.linalg.norm(y)
    gap = u - v
    value = gap @ gap / 2
    return value, (gap - value * u) / np.linalg.norm(x)


X = np.float32([1, 2, 3])
PAIRS = {
    "equal": (X, X),
    "near": (X, X + np.float32(1e-3)),
    "nearer": (X, X + np.float32([1e-5, 0, 0])),
    "across": (X, np.float32([3, 0, -1])),
    "opposite": (X, -2 * X),
    "huge": (X * np.float32(1e38), X),
    "both huge": (X * np.float32(1e38), np.float32([2e38, 1e38, 0])),
    "tiny": (X * np.float32(1e-30), np.float32([1e30, 0, 0])),
    "near and huge": (X * np.float32(2**100), (X + np.float32(1e-3))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_cosine_distance_is_half_the_square_between_unit_vectors(name):
    x, y = PAIRS[name]
    got = jax.jit(jax.value_and_grad(L.cosine_distance))(x, y)
    want = cosine(x, y)
    rtol = 1e-2 if name == "nearer" else 1e-5
    np.testing.assert_allclose(got[0], want[0], rtol=rtol, atol=1e-14)
    # Of vectors along each other, slopes are the rounding of unit vectors.
    norm = np.linalg.norm(x.astype(np.float64))
    scale = rtol * np.max(np.abs(want[1])) + 1.2e-38
    atol = max(scale, 4e-7 / norm) if name in ("opposite", "huge") else scale
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=atol)
    assert got[0] >= 0


@pytest.mark.parametrize("epsilon", [0.0, 1e-30, 14.0, 1e30, np.inf])
def test_cosine_distance_at_every_least_norm(epsilon):
    y = np.float32([3, 0, -1])
    least = np.sqrt(epsilon)
    norms = [max(np.linalg.norm(v.astype(np.float64)), least) for v in (X, y)]
    want = 1 - X.astype(np.float64) @ y / norms[0] / norms[1]
    got = jax.value_and_grad(functools.partial(L.cosine_distance, epsilon=epsilon))(
        X, y
    )
    np.testing.assert_allclose(got[0], want, rtol=1e-6)
    assert np.all(np.isfinite(got[1]))


def test_a_divergence_from_itself_is_never_negative():
    rng = np.random.default_rng(0)
    p = special.softmax(3 * rng.normal(size=(1000, 10)), axis=-1).astype(np.float32)
    got = L.kl_divergence(np.log(p), p)
    assert np.min(got) >= 0
    assert np.max(got) < 1e-12


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.3])
def test_a_small_divergence_keeps_its_digits(step):
    rng = np.random.default_rng(1)
    x, d = 2 * rng.normal(size=(20, 10)), step * rng.normal(size=(20, 10))
    q, log_p = special.softmax(x, -1), special.log_softmax(x + d, -1)
    want = np.sum(q * (np.log(q) - log_p), axis=-1)
    q = q.astype(np.float32)
    got = L.kl_divergence(log_p.astype(np.float32), q)
    np.testing.assert_allclose(got, want, rtol=max(1e-4, 1e-6 / step))
    slope = jax.grad(lambda p: jnp.sum(L.kl_divergence(p, q)))(np.float32(log_p))
    np.testing.assert_array_equal(slope, -q)


def test_a_divergence_from_other_than_a_distribution_equals_its_formula():
    log_p, q = np.array([[0.1, 0.2, 0], [0.5, 0.25, 0]], np.float32)
    want = np.sum(q[:2] * (np.log(q[:2]) - log_p[:2]))
    np.testing.assert_allclose(L.kl_divergence(log_p, q), want, rtol=1e-6)


@pytest.mark.parametrize("count", [1.0, 15.0, 16.0, 1e3, 1e6, 1e9])
def test_the_likelihood_of_large_counts_does_not_cancel(count):
    ratio = np.array([0.2, 0.7, 0.999, 1.0, 1.01, 1.6, 5.0])
    x = np.log(count * ratio).astype(np.float32)
    y = np.full(x.shape, count, np.float32)
    rate = np.exp(x.astype(np.float64))
    r = rate / count - 1
    remainder = special.gammaln(count + 1) - count * np.log(count) + count
    want = count * (r - np.log1p(r)) + remainder
    call = functools.partial(L.poisson_nll, full=True, reduction="sum")
    got = L.poisson_nll(x, y, full=True)
    np.testing.assert_allclose(got, want, rtol=2e-4 if count > 1e4 else 3e-5)
    slope = jax.jit(jax.grad(call))(x, y)
    np.testing.assert_allclose(slope, rate - count, rtol=1e-5, atol=5e-6 * count)


def test_a_mean_fits_where_the_sum_of_the_losses_would_not():
    x = np.full(7, 1e19, np.float32)
    value, slope = jax.value_and_grad(
        lambda x: L.squared_error(x, reduction="mean", weights=np.float32(3))
    )(x)
    np.testing.assert_allclose(value, 1e38, rtol=1e-6)
    np.testing.assert_allclose(slope, 2e19 / 7, rtol=1e-6)
    assert L.squared_error(x * 10, reduction="mean") == np.inf


def test_complex_errors_have_both_parts():
    x, y = np.complex64([1 + 1j, 2 - 3j]), np.float32([1, 2])
    np.testing.assert_allclose(L.squared_error(x, y), [1, 9])
    np.testing.assert_allclose(L.absolute_error(x, y), [1, 3])
    large = np.complex64([3e30 + 4e30j, 3e-30 + 4e-30j, 0])
    value, slope = jax.value_and_grad(lambda x: L.absolute_error(x, reduction="sum"))(
        large
    )
    np.testing.assert_allclose(value, 5e30, rtol=1e-6)
    np.testing.assert_allclose(slope, [0.6 - 0.8j, 0.6 - 0.8j, 0], rtol=1e-6)
    assert L.squared_error(x, y, weights=np.float32([0, 1]), reduction="mean") == 9


FLOAT = np.ones((3, 4), np.float32)
REFUSING = {
    "huber": lambda x: L.huber(x),
    "log_cosh": lambda x: L.log_cosh(x),
    "quantile": lambda x: L.quantile(x, FLOAT),
    "poisson_nll": lambda x: L.poisson_nll(x, FLOAT),
    "binary": lambda x: L.sigmoid_binary_cross_entropy(x, FLOAT),
    "focal": lambda x: L.focal(x, FLOAT),
    "hinge": lambda x: L.hinge(x, FLOAT),
    "multiclass_hinge": lambda x: L.multiclass_hinge(x, np.zeros(3, int)),
    "softmax": lambda x: L.softmax_cross_entropy(x, FLOAT),
    "integer labels": lambda x: INTEGER(x, np.zeros(3, int)),
    "kl_divergence": lambda x: L.kl_divergence(x, FLOAT),
    "cosine_distance": lambda x: L.cosine_distance(x, FLOAT),
    "smooth_l1": lambda x: L.smooth_l1(x, FLOAT),
    "pseudo_huber": lambda x: L.pseudo_huber(x, FLOAT),
    "gaussian_nll": lambda x: L.gaussian_nll(FLOAT, FLOAT, x),
    "dice": lambda x: L.dice(x, FLOAT),
    "poly": lambda x: L.poly_cross_entropy(x, FLOAT),
    "ranking_softmax": lambda x: L.ranking_softmax(x, FLOAT),
    "sparsemax": lambda x: L.sparsemax(x, FLOAT),
    "log targets": lambda x: L.kl_divergence_with_log_targets(FLOAT, x),
    "triplet": lambda x: L.triplet(FLOAT, FLOAT, x),
    "info_nce": lambda x: L.info_nce(x, FLOAT),
    "weights": lambda x: L.squared_error(FLOAT, weights=x),
}


@pytest.mark.parametrize("name", REFUSING)
def test_complex_numbers_without_a_meaning_are_refused(name):
    with pytest.raises(TypeError, match=r"need (floating|real) .*complex64"):
        REFUSING[name](np.complex64(FLOAT))

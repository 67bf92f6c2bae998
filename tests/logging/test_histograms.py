"""Histograms count every entry, for edges of equal width."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.logging as logging
from fngrad.logging.histograms import histogram_of

NORMAL = np.random.default_rng(0).normal(size=(40, 25))
ARRAYS = {
    "normal": NORMAL,
    "float32": NORMAL.astype(np.float32),
    "bfloat16": jnp.asarray(NORMAL, jnp.bfloat16),
    "huge": NORMAL * 4e307,  # max - min overflows, and squares do
    "tiny": NORMAL * 1e-300,
    "one value": np.full(7, 3.0),
    "one huge value": np.full(7, 1e30),
    "two neighbors": np.array([1.0, np.nextafter(1.0, 2.0)]),
    "one entry": np.float32(-2.0),
    "integers": np.arange(-3, 9),
    "zeros": np.zeros((2, 3)),
    "not finite": np.array([1.0, np.nan, np.inf, 2.0, -np.inf, 1.5]),
    "nothing finite": np.array([np.nan, np.inf]),
    "empty": np.zeros((0, 3)),
    "a list": [1.0, 2, [3.0][0]],
    "a float": 1.5,
}


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_every_finite_entry_is_in_the_bin_that_holds_it(x):
    found = logging.histogram(x, bins=10)
    values = np.asarray(x, np.float64).ravel()
    finite = values[np.isfinite(values)].tolist()
    assert found.nonfinite == values.size - len(finite)
    last = len(found.counts) - 1
    for i, (low, high) in enumerate(zip(found.edges, found.edges[1:], strict=False)):
        inside = [v for v in finite if low <= v < high or (i == last and v == high)]
        assert found.counts[i] == len(inside)
    assert found.counts.sum() == len(finite)


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_edges_mean_and_rms_are_those_of_the_entries(x):
    found = logging.histogram(x, bins=10)
    finite = np.asarray(x, np.longdouble).ravel()
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        finite = np.zeros(1, np.longdouble)
    low, high = finite.min(), finite.max()
    assert (found.low, found.high) == (low, high)
    half = 0.5 if low == high else 0.0
    expected = np.linspace(low - half, high + half, 11)
    largest = float(np.abs(finite).max())
    near = {"rtol": 0, "atol": 1e-15 * max(largest, half)}
    np.testing.assert_allclose(found.edges, expected.astype(float), **near)
    np.testing.assert_allclose(found.mean, float(finite.mean()), **near)
    rms = float(np.sqrt(np.mean(finite**2)))
    np.testing.assert_allclose(found.rms, rms, rtol=1e-14)


def test_a_logger_takes_a_histogram_as_it_is():
    found = logging.histogram(NORMAL, bins=3)
    assert histogram_of("w", found) is found


@pytest.mark.parametrize("x", [jnp.ones(2, jnp.complex64), jnp.ones(2, bool)])
def test_other_arrays_are_refused_by_name(x):
    message = f"need real numbers for a histogram, got {x.dtype} at 'w'"
    with pytest.raises(TypeError, match=message):
        histogram_of("w", x)


@pytest.mark.parametrize("x", [[[1.0], [1.0, 2.0]], ["a"], [1j], None])
def test_what_is_not_numbers_is_refused(x):
    with pytest.raises(TypeError, match="need real numbers for a histogram, got"):
        logging.histogram(x)


def test_a_histogram_needs_a_bin():
    with pytest.raises(ValueError, match="need an int bins >= 1, got bins=0"):
        logging.histogram(NORMAL, bins=0)

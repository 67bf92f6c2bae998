"""A NaN among many numbers shows in their extremes.

XLA on CPU loses it in reductions of some thousand entries (JAX 0.10).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
import fngrad.losses as losses
import fngrad.metrics as metrics
import fngrad.numerics as numerics
import fngrad.numerics.low_bit_codes as low_bit_codes
import fngrad.tree as tree
from fngrad.models.generation import next_token

LABELS = np.zeros(64, np.int32)
ZERO = np.zeros((64, 1), np.float32)


def decoded(x):
    codes = low_bit_codes.encode(x, low_bit_codes.Coding(8, True), 64)
    return low_bit_codes.decode(codes)


def pooled(layer):
    return lambda x: layer.apply((), x[..., None])


FUNCTIONS = {
    "largest": functools.partial(numerics.largest, axis=-1),
    "smallest": functools.partial(numerics.smallest, axis=-1),
    "tree.max": tree.max,
    "tree.min": tree.min,
    "encode": decoded,
    "global_max_pool": lambda x: layers.global_max_pool(x[..., None]),
    "max_pool": pooled(layers.max_pool((2, 2))),
    "adaptive_max_pool": pooled(layers.adaptive_max_pool((2, 2))),
    "multiclass_hinge": lambda x: losses.multiclass_hinge(x, LABELS),
    "cosine_distance": lambda x: losses.cosine_distance(x * ZERO, jnp.ones_like(x)),
    "calibration_error": lambda x: metrics.calibration_error(x, LABELS).value(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nan_among_thousands_shows(name):
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    x[40, 17] = np.nan
    assert np.isnan(jax.jit(FUNCTIONS[name])(x)).any()


def test_no_token_is_drawn_from_logits_with_a_nan():
    logits = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    logits[40, 17] = np.nan
    draw = jax.jit(jax.vmap(next_token, in_axes=(0, None)))
    tokens = np.asarray(draw(logits, jax.random.key(0)))
    np.testing.assert_array_equal(tokens == -1, np.isnan(logits).any(axis=-1))


def test_a_nan_of_one_of_thousands_of_bins_shows():
    x = np.zeros((64, 128), np.float32)
    x[40, 17] = np.nan
    measure = functools.partial(metrics.maximum_calibration_error, num_bins=8192)
    assert np.isnan(jax.jit(lambda x: measure(x, LABELS).value())(x))


@pytest.mark.parametrize(
    ("extreme", "of_jax"), [(numerics.largest, jnp.max), (numerics.smallest, jnp.min)]
)
def test_an_extreme_without_a_nan_is_that_of_jax(extreme, of_jax):
    x = np.float32([[-0.0, 3.0], [np.inf, -np.inf]])
    for axis in (None, 0, (0, 1)):
        np.testing.assert_array_equal(extreme(x, axis), of_jax(x, axis))
    np.testing.assert_array_equal(extreme(np.int32([3, 5])), of_jax(np.int32([3, 5])))
    assert np.signbit(extreme(np.float32([-0.0])))

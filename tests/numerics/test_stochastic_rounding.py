"""Stochastic rounding: its mean, its two neighbours, and exact values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.numerics.stochastic_rounding import round_stochastically

NARROW = [jnp.bfloat16, jnp.float16]


rounded_to = jax.jit(round_stochastically, static_argnums=2)


@functools.partial(jax.jit, static_argnums=2)
def rounded_by_each(x, keys, dtype):
    return jax.vmap(lambda key: round_stochastically(x, key, dtype))(keys)


def wide(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [1.0, 3e-4, 2e-6, 3e4])
def test_the_mean_of_the_rounded_is_the_value(dtype, size):
    x = size * jnp.linspace(-2.0, 2.0, 40)
    keys = jax.random.split(jax.random.key(0), 8192)
    rounded = wide(rounded_by_each(x, keys, dtype))
    standard_error = np.std(rounded, axis=0) / np.sqrt(len(keys))
    error = np.abs(np.mean(rounded, axis=0) - np.asarray(x))
    np.testing.assert_array_less(error, 4.5 * standard_error + 1e-6 * size)
    assert np.mean(standard_error > 0) > 0.8


@pytest.mark.parametrize("dtype", NARROW)
def test_only_the_two_neighbours_come_up(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(1), (4000,)))
    rounded = wide(rounded_to(jnp.asarray(x), jax.random.key(2), dtype))
    bits = jnp.finfo(dtype).nmant
    unit = 2.0 ** (np.floor(np.log2(np.abs(x))) - bits)
    unit = np.maximum(unit, float(jnp.finfo(dtype).smallest_subnormal))
    np.testing.assert_array_less(np.abs(rounded - x), unit)
    np.testing.assert_array_equal(rounded / unit, np.round(rounded / unit))


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_of_the_format_stays_including_nan_and_infinity(dtype):
    words = jnp.arange(65536).astype(jnp.uint16)
    every = jax.lax.bitcast_convert_type(words, dtype)
    rounded = rounded_to(every.astype(jnp.float32), jax.random.key(3), dtype)
    is_nan = np.asarray(jnp.isnan(every))
    np.testing.assert_array_equal(np.asarray(jnp.isnan(rounded)), is_nan)
    kept = np.asarray(jax.lax.bitcast_convert_type(rounded, jnp.uint16))
    np.testing.assert_array_equal(kept[~is_nan], np.asarray(words)[~is_nan])


def test_what_the_cast_makes_infinite_is_infinite():
    x = jnp.array([1e30, -1e30, 65519.0])
    rounded = wide(round_stochastically(x, jax.random.key(0), jnp.float16))
    np.testing.assert_array_equal(rounded, [np.inf, -np.inf, 65504.0])


def test_wide_formats_are_cast_and_others_refused():
    x, key = jnp.array([1.1]), jax.random.key(0)
    assert round_stochastically(x, key, jnp.float32) == x
    with pytest.raises(TypeError, match=r"need dtype bfloat16 or float16.*int8"):
        round_stochastically(x, key, jnp.int8)
    with pytest.raises(TypeError, match="need floats to round, got complex64"):
        round_stochastically(x.astype(jnp.complex64), key, jnp.bfloat16)

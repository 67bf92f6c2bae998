"""Stochastic rounding: its mean, its two neighbours, and exact values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.numerics.stochastic_rounding import (
    mix,
    round_by_dither,
    round_stochastically,
    spread_dither,
)

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


VALUES = np.array(
    [1 / 3, -1 / 3, 1.001, 255.7, -1e-30, 3e-41, 1e38, 2 - 2.0**-10, 1 + 2.0**-20],
    np.float32,
)


@functools.partial(jax.jit, static_argnums=1)
def rounded_at_steps(x, count):
    """Return x rounded at each of so many steps, (steps, entries)."""

    def at(step):
        dither = spread_dither(x.shape, step, 3)
        return round_by_dither(x, dither).widened()

    return jax.vmap(at)(jnp.arange(count))


def test_the_mean_over_steps_is_the_value():
    count = 1 << 16
    rounded = np.asarray(rounded_at_steps(jnp.asarray(VALUES), count), np.float64)
    low, high = np.min(rounded, axis=0), np.max(rounded, axis=0)
    assert np.all((low < VALUES) & (high > VALUES))
    gap = high - low
    up = (VALUES - low) / gap  # the probability of the upper neighbor
    assert all(len(np.unique(column)) == 2 for column in rounded.T)
    standard_error = np.sqrt(up * (1 - up) / count)
    error = np.abs(np.mean(rounded, axis=0) - VALUES) / gap
    np.testing.assert_array_less(error, 4.5 * standard_error)


def test_the_draws_of_one_entry_are_uniform_and_independent_over_steps():
    count = 1 << 16
    draws = jax.vmap(lambda step: spread_dither((7, 5), step, 0))(jnp.arange(count))
    share = np.asarray(draws, np.float64).reshape(count, -1) / 2**32
    histogram = [np.histogram(entry, 64, (0, 1))[0] for entry in share.T]
    chi_square = np.sum((np.array(histogram) - count / 64) ** 2 / (count / 64), axis=1)
    assert np.all(chi_square < 63 + 5 * np.sqrt(2 * 63))
    centered = share - 0.5
    for lag in (1, 2, 3, 8, 1000):
        correlation = np.mean(centered[lag:] * centered[:-lag], axis=0) * 12
        assert np.all(np.abs(correlation) < 5 / np.sqrt(count - lag)), lag


def test_the_entries_of_one_step_cover_the_interval_evenly():
    draws = np.sort(np.ravel(spread_dither((32, 32), jnp.int32(5), 1))) / 2**32
    gaps = np.diff(draws)
    assert np.min(gaps) * 1024 > 0.3
    assert np.max(gaps) * 1024 < 3
    assert np.any(
        spread_dither((4,), jnp.int32(5), 2) != spread_dither((4,), jnp.int32(5), 1)
    )


def test_the_hash_is_the_finalizer_of_murmurhash3():
    # Of 1 and of 2**32 - 1, by the published C code.
    words = mix(jnp.array([0, 1, 2**32 - 1], jnp.uint32))
    assert [int(word) for word in words] == [0, 0x514E28B7, 0x81F16F39]


@pytest.mark.parametrize("draw", [0, 2**31, 2**32 - 1])
def test_dither_keeps_values_of_bfloat16_and_what_is_not_finite(draw):
    bits = np.arange(2**16, dtype=np.uint16)
    x = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16)
    rounded = round_by_dither(x.astype(jnp.float32), jnp.uint32(draw)).values
    same = np.asarray(rounded).view(np.uint16) == bits
    is_nan = np.isnan(np.asarray(x, np.float32))
    assert np.all(same | is_nan)
    assert np.all(np.isnan(np.asarray(rounded, np.float32)) == is_nan)


@pytest.mark.parametrize("draw", [0, 2**31, 2**32 - 1])
def test_dither_keeps_finite_values_finite(draw, x64):
    wide = np.array([1e300, -1e300, 3.4028234e38, -3.4028234e38, np.inf])
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            x = wide.astype(dtype)
        rounded = round_by_dither(jnp.asarray(x), jnp.uint32(draw))
        assert rounded.dtype == dtype
        np.testing.assert_array_equal(np.isfinite(rounded.widened()), np.isfinite(x))
        np.testing.assert_array_equal(np.sign(rounded.widened()), np.sign(x))


def test_half_a_unit_of_dither_rounds_to_nearest():
    x = jnp.asarray(np.random.default_rng(0).normal(size=4096).astype(np.float32))
    np.testing.assert_array_equal(round_by_dither(x).values, x.astype(jnp.bfloat16))

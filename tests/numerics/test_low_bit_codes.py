"""Codes of 8 and 4 bits: their values, their rounding, their blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.numerics.low_bit_codes as low_bit_codes

CODINGS = [
    low_bit_codes.Coding(bits, signed) for bits in (8, 4) for signed in (True, False)
]


def values_of(coding):
    """Return what the codes of moduli stand for at scale 1, from their definition."""
    m = {(8, True): 3, (8, False): 3, (4, True): 1, (4, False): 0}[tuple(coding)]

    def f(c):
        return (1 + c % 2**m / 2**m) * 2.0 ** (c // 2**m)

    count = 2 ** (coding.bits - coding.signed)
    c = np.arange(count)
    if coding.signed:
        return (f(c) - 1) / f(np.array(count))
    return f(c + 1) / f(np.array(count))


encode = jax.jit(low_bit_codes.encode, static_argnums=(1, 2))
encode_like = jax.jit(low_bit_codes.encode_like)
decode = jax.jit(low_bit_codes.decode)
dither_like = jax.jit(low_bit_codes.dither_like, static_argnums=2)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _decoded(x, coding, block_size):
    return low_bit_codes.decode(low_bit_codes.encode(x, coding, block_size))


def decoded(x, coding, block_size=16):
    return np.asarray(_decoded(x, coding, block_size))


def sample(coding, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape))
    return np.asarray(x if coding.signed else x**2, np.float32)


@pytest.mark.parametrize("coding", CODINGS)
def test_codes_have_the_values_of_their_definition(coding):
    numbers = np.arange(2**coding.bits, dtype=np.uint8)
    packed = numbers if coding.bits == 8 else numbers[:8] | (numbers[8:] << 4)
    scale = np.full((1, 1), 0.75, np.float32)
    coded = low_bit_codes.Coded(
        packed[None], scale, numbers.shape, jnp.dtype("float32"), coding
    )
    moduli = 0.75 * values_of(coding)
    want = np.concatenate([moduli, -moduli]) if coding.signed else moduli
    np.testing.assert_allclose(decode(coded), want, rtol=2e-7)


@pytest.mark.parametrize("coding", CODINGS)
def test_rounding_to_the_nearest_finds_the_nearest_code(coding):
    x = sample(coding, (40, 16))
    got = decoded(x, coding)
    moduli = values_of(coding)
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    table = moduli * (largest / moduli[-1])
    distances = np.abs(np.abs(x)[:, :, None] - table[:, None, :])
    nearest = (1 + 1e-5) * np.min(distances, axis=-1) + 1e-30
    np.testing.assert_array_less(np.abs(got - x), nearest + 1e-6 * np.abs(got))
    np.testing.assert_allclose(np.max(np.abs(got), 1), largest[:, 0], rtol=2e-7)


def test_only_signed_codes_include_zero():
    entries = np.array([0.0, 1e-20, 1.0, 0.5], np.float32)
    for bits in (8, 4):
        assert decoded(entries, low_bit_codes.Coding(bits, True), 4)[0] == 0
        lifted = decoded(entries, low_bit_codes.Coding(bits, False), 4)
        assert np.all(lifted > 0)
        assert lifted[0] <= {8: 1e-9, 4: 1e-4}[bits]


@pytest.mark.parametrize("coding", CODINGS)
def test_uniform_dither_rounds_without_bias(coding):
    x = sample(coding, (8, 4))
    if not coding.signed:  # what is below the first code is lifted to it
        x = np.maximum(x, 1e-3 * np.max(x, axis=1, keepdims=True))
    draws = jax.random.split(jax.random.key(1), 4096)

    def rounded(key):
        dither = jax.random.bits(key, (8, 4), jnp.uint32)
        return low_bit_codes.decode(low_bit_codes.encode(x, coding, 4, dither))

    all_rounded = np.asarray(jax.jit(jax.vmap(rounded))(draws), np.float64)
    standard_error = np.std(all_rounded, axis=0) / np.sqrt(len(draws))
    error = np.abs(np.mean(all_rounded, axis=0) - x)
    np.testing.assert_array_less(error, 4.5 * standard_error + 1e-5 * np.max(x))
    assert np.any(standard_error > 0)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_value_with_a_code_is_encoded_exactly(coding):
    once = encode(sample(coding, (33, 7)), coding, 16)
    for dither in ((), (dither_like(once, jnp.int32(3), 1),)):  # (): to the nearest
        again = encode_like(once, decode(once), *dither)
        np.testing.assert_allclose(decode(again), decode(once), rtol=3e-7)


@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 4, 4)])
@pytest.mark.parametrize("bits", [8, 4])
def test_any_shape_is_restored(shape, bits):
    x = jnp.full(shape, -2.0, jnp.bfloat16)
    coded = encode(x, low_bit_codes.Coding(bits, True), 4)
    blocks = -(-x.size // 4)
    assert coded.codes.shape == (blocks, 4 * bits // 8)
    assert coded.scales.shape == (blocks, 1)
    back = decode(coded)
    assert back.dtype == jnp.bfloat16
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_block_of_zeros_stays_zero_beside_other_blocks(coding):
    x = np.concatenate([np.zeros(4), [1.0, np.nan, 2.0, 3.0], np.ones(4)])
    x = x.astype(np.float32)
    got = decoded(x, coding, 4)
    np.testing.assert_array_equal(got[:4], 0)
    assert np.all(np.isnan(got[4:8]))
    np.testing.assert_allclose(got[8:], 1, rtol=2e-7)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_numbers_does_not_matter(size):
    coding = low_bit_codes.Coding(8, True)
    x = sample(coding, (3, 16))
    np.testing.assert_allclose(
        decoded(np.float32(size) * x, coding), size * decoded(x, coding), 1e-6
    )


def test_the_dither_is_uniform_and_new_for_each_step_and_stream():
    coded = encode(np.zeros(1 << 14, np.float32), low_bit_codes.Coding(8, True), 256)
    calls = [(0, 0), (1, 0), (0, 1), (1, 1)]
    draws = [
        np.asarray(dither_like(coded, jnp.int32(step), stream)) / 2.0**32
        for step, stream in calls
    ]
    for draw in draws:
        counts, _ = np.histogram(draw, 64, (0, 1))
        assert np.sum((counts - 256) ** 2 / 256) < 63 + 5 * np.sqrt(126)
        assert abs(np.corrcoef(draw.ravel()[1:], draw.ravel()[:-1])[0, 1]) < 0.04
    flat = np.stack([draw.ravel() for draw in draws])
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(4), atol=0.04)


def follow(squares, nearest):
    """Average squares in codes with b2 = 0.999; return it over the float32 one."""
    zeros = np.zeros(squares.shape[1:], np.float32)
    start = encode(zeros, low_bit_codes.Coding(8, False), 256)

    def advance(carry, inputs):
        coded, exact = carry
        step, square = inputs
        dither = (
            low_bit_codes.NEAREST
            if nearest
            else low_bit_codes.dither_like(coded, step, 0)
        )
        mean = 0.999 * low_bit_codes.decode(coded) + 0.001 * square
        exact = 0.999 * exact + 0.001 * square
        return (low_bit_codes.encode_like(coded, mean, dither), exact), None

    steps = np.arange(len(squares), dtype=np.int32)
    scan = jax.jit(lambda first, inputs: jax.lax.scan(advance, first, inputs)[0])
    coded, exact = scan((start, zeros), (steps, squares))
    return np.asarray(decode(coded)) / np.asarray(exact)


def test_a_slow_average_changes_where_rounding_to_nearest_leaves_it():
    # The first entry of each block holds the scale; the others fall to a hundredth.
    squares = np.full((4000, 1024), 0.01, np.float32)
    squares[:1000] = 1.0
    squares[:, ::256] = 1.0
    ratio = follow(squares, nearest=False)
    assert abs(np.mean(ratio) - 1) < 0.04  # 1024 entries, spread below a half
    assert np.median(follow(squares, nearest=True)) > 3

"""Codes of 8 and 4 bits: their values, their rounding, their blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.codes as codes

CODINGS = [codes.Coding(bits, signed) for bits in (8, 4) for signed in (True, False)]


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


def decoded(x, coding, block_size=16, dither=codes.NEAREST):
    return np.asarray(codes.decode(codes.encode(x, coding, block_size, dither)))


def sample(coding, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape))
    return jnp.asarray(x if coding.signed else x**2, jnp.float32)


@pytest.mark.parametrize("coding", CODINGS)
def test_codes_stand_for_what_their_definition_says(coding):
    numbers = jnp.arange(2**coding.bits, dtype=jnp.uint8)
    packed = numbers if coding.bits == 8 else numbers[:8] | (numbers[8:] << 4)
    scale = jnp.full((1, 1), 0.75)
    coded = codes.Coded(
        packed[None], scale, numbers.shape, jnp.dtype("float32"), coding
    )
    moduli = 0.75 * values_of(coding)
    want = np.concatenate([moduli, -moduli]) if coding.signed else moduli
    np.testing.assert_allclose(codes.decode(coded), want, rtol=2e-7)


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


def test_the_signed_have_a_zero_and_the_others_have_none():
    entries = jnp.array([0.0, 1e-20, 1.0, 0.5])
    for bits in (8, 4):
        assert decoded(entries, codes.Coding(bits, True), 4)[0] == 0
        lifted = decoded(entries, codes.Coding(bits, False), 4)
        assert np.all(lifted > 0)
        assert lifted[0] <= {8: 1e-9, 4: 1e-4}[bits]


@pytest.mark.parametrize("coding", CODINGS)
def test_uniform_dither_rounds_without_bias(coding):
    x = sample(coding, (8, 4))
    if not coding.signed:  # what is below the first code is lifted to it
        x = jnp.maximum(x, 1e-3 * jnp.max(x, axis=1, keepdims=True))
    draws = jax.random.split(jax.random.key(1), 4096)

    def rounded(key):
        dither = jax.random.bits(key, (8, 4), jnp.uint32)
        return codes.decode(codes.encode(x, coding, 4, dither))

    all_rounded = np.asarray(jax.jit(jax.vmap(rounded))(draws), np.float64)
    standard_error = np.std(all_rounded, axis=0) / np.sqrt(len(draws))
    error = np.abs(np.mean(all_rounded, axis=0) - x)
    np.testing.assert_array_less(error, 4.5 * standard_error + 1e-5 * np.max(x))
    assert np.any(standard_error > 0)


@pytest.mark.parametrize("coding", CODINGS)
def test_what_has_a_code_keeps_it(coding):
    once = codes.encode(sample(coding, (33, 7)), coding, 16)
    for dither in (codes.NEAREST, codes.dither_like(once, jnp.int32(3), 1)):
        again = codes.encode_like(once, codes.decode(once), dither)
        np.testing.assert_allclose(codes.decode(again), codes.decode(once), rtol=3e-7)


@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 4, 4)])
@pytest.mark.parametrize("bits", [8, 4])
def test_any_shape_comes_back(shape, bits):
    x = jnp.full(shape, -2.0, jnp.bfloat16)
    coded = codes.encode(x, codes.Coding(bits, True), 4)
    blocks = -(-x.size // 4)
    assert coded.codes.shape == (blocks, 4 * bits // 8)
    assert coded.scales.shape == (blocks, 1)
    back = codes.decode(coded)
    assert back.dtype == jnp.bfloat16
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_block_of_zeros_stays_zero_and_knows_no_other_block(coding):
    x = jnp.concatenate(
        [jnp.zeros(4), jnp.array([1.0, jnp.nan, 2.0, 3.0]), jnp.ones(4)]
    )
    got = decoded(x, coding, 4)
    np.testing.assert_array_equal(got[:4], 0)
    assert np.all(np.isnan(got[4:8]))
    np.testing.assert_allclose(got[8:], 1, rtol=2e-7)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_numbers_does_not_matter(size):
    coding = codes.Coding(8, True)
    x = sample(coding, (3, 16))
    np.testing.assert_allclose(
        decoded(size * x, coding), size * decoded(x, coding), 1e-6
    )


def test_the_dither_is_uniform_and_new_for_each_step_and_stream():
    coded = codes.encode(jnp.zeros(1 << 14), codes.Coding(8, True), 256)
    calls = [(0, 0), (1, 0), (0, 1), (1, 1)]
    draws = [
        np.asarray(codes.dither_like(coded, jnp.int32(step), stream)) / 2.0**32
        for step, stream in calls
    ]
    for draw in draws:
        counts, _ = np.histogram(draw, 64, (0, 1))
        assert np.sum((counts - 256) ** 2 / 256) < 63 + 5 * np.sqrt(126)
        assert abs(np.corrcoef(draw.ravel()[1:], draw.ravel()[:-1])[0, 1]) < 0.04
    flat = np.stack([draw.ravel() for draw in draws])
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(4), atol=0.04)


def follow(squares, nearest):
    """Average squares in codes with b2 = 0.999; return it beside the float32 one."""
    start = codes.encode(jnp.zeros(squares.shape[1:]), codes.Coding(8, False), 256)

    def advance(carry, inputs):
        coded, exact = carry
        step, square = inputs
        dither = codes.NEAREST if nearest else codes.dither_like(coded, step, 0)
        mean = 0.999 * codes.decode(coded) + 0.001 * square
        exact = 0.999 * exact + 0.001 * square
        return (codes.encode_like(coded, mean, dither), exact), None

    steps = jnp.arange(len(squares), dtype=jnp.int32)
    first = start, jnp.zeros(squares.shape[1:])
    (coded, exact), _ = jax.jit(
        lambda: jax.lax.scan(advance, first, (steps, squares))
    )()
    return codes.decode(coded), exact


def test_a_slow_average_follows_where_rounding_to_the_nearest_stands_still():
    # The first entry of each block holds the scale; the others fall to a hundredth.
    size = jnp.where(jnp.arange(4000) < 1000, 1.0, 0.01)[:, None] * jnp.ones((1, 1024))
    squares = size.at[:, ::256].set(1.0)
    got, exact = follow(squares, nearest=False)
    ratio = np.asarray(got / exact)
    assert abs(np.mean(ratio) - 1) < 0.04  # 1024 entries, spread below a half
    stuck, _ = follow(squares, nearest=True)
    assert np.median(np.asarray(stuck / exact)) > 3

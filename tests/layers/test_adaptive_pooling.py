"""Pooling to a given size against the mean and the largest of each window."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers


def windows(size, count):
    """Return the positions of each window, which meet its part of the axis."""
    return [
        [
            p
            for p in range(size)
            if p + 1 > i * size / count and p < (i + 1) * size / count
        ]
        for i in range(count)
    ]


def oracle(reduce, x, counts):
    rows = [windows(n, m) for n, m in zip(x.shape, counts, strict=False)]
    y = [reduce(x[np.ix_(*w)], tuple(range(len(w)))) for w in itertools.product(*rows)]
    return np.stack(y).reshape(*counts, -1)


@pytest.mark.parametrize(
    ("shape", "out_size", "counts"),
    [
        ((7, 5, 2), 3, (3, 3)),
        ((6, 5, 2), (3, 2), (3, 2)),
        ((4, 5, 2), (None, 1), (4, 1)),
        ((3, 2), 5, (5,)),  # more windows than positions
        ((4, 3, 5, 1), 2, (2, 2, 2)),
    ],
)
def test_windows_cover_equal_fractions_of_each_axis(shape, out_size, counts):
    x = np.random.default_rng(0).normal(size=shape) - 3.0
    for make, reduce in [
        (layers.adaptive_avg_pool, np.mean),
        (layers.adaptive_max_pool, np.max),
    ]:
        got = jax.jit(make(out_size).apply)((), x.astype("f"))
        np.testing.assert_allclose(got, oracle(reduce, x, counts), rtol=1e-5)


def test_one_window_is_the_global_pool():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    for make, whole in [
        (layers.adaptive_avg_pool, layers.global_avg_pool),
        (layers.adaptive_max_pool, layers.global_max_pool),
    ]:
        got = make(1).apply((), x)
        np.testing.assert_allclose(got, whole(x)[None, None], rtol=1e-6)


def test_a_mean_in_bfloat16_is_taken_in_float32():
    x = jnp.ones((600, 1), jnp.bfloat16)  # in bfloat16 a sum of ones stops at 256
    y = layers.adaptive_avg_pool(2).apply((), x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, np.ones((2, 1)))


def test_an_infinity_stays_in_its_windows():
    x = jnp.array([jnp.inf, 1.0, 2.0, 3.0, 4.0])[:, None]
    got = layers.adaptive_avg_pool(2).apply((), x)[:, 0]
    np.testing.assert_array_equal(got, [np.inf, 3.0])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="need an int out_size >= 1"):
        layers.adaptive_avg_pool((2, 0))
    pool = layers.adaptive_max_pool((2, 2))
    with pytest.raises(ValueError, match=r"need x of shape \(height, width, channels"):
        pool.apply((), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match=r"a position to pool, got shape \(0, 4, 1"):
        pool.apply((), jnp.ones((0, 4, 1)))

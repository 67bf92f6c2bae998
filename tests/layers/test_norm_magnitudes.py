"""Normalisation far from 1: values and gradients against float64, 1e-38 to 3e38."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers

ROWS = np.random.default_rng(0).normal(size=(5, 4)) + 0.5
CT = np.random.default_rng(1).normal(size=(5, 4))
EPS = (0.0, 1e-6)


def batch_norm(eps):
    layer = layers.batch_norm(4, eps=eps)
    params, state = layer.init(0)
    return lambda x: layers.batched(layer)(params, state, x, key=0)[0]


def of_layer(make, eps):
    layer = make(eps=eps)
    params = layer.init(0)
    return lambda x: layer.apply(params, x)


# name: (eps -> normalised x, the axes it is over once cut, the cut, whether centred)
NORMS = {
    "layer_norm": (
        functools.partial(of_layer, functools.partial(layers.layer_norm, 4)),
        (1, (5, 4), True),
    ),
    "rms_norm": (
        functools.partial(of_layer, functools.partial(layers.rms_norm, 4)),
        (1, (5, 4), False),
    ),
    "group_norm": (
        functools.partial(of_layer, functools.partial(layers.group_norm, 4, 2)),
        ((0, 2), (5, 2, 2), True),
    ),
    "batch_norm": (batch_norm, (0, (5, 4), True)),
}
every_norm = pytest.mark.parametrize("name", list(NORMS))
both_eps = pytest.mark.parametrize("eps", EPS)


def oracle(name, x, ct, eps):
    """Return y and the gradient of <ct, y>, in float64."""
    axes, shape, is_centred = NORMS[name][1]
    x, cut = x.reshape(shape), ct.reshape(shape)

    def mean(values):
        return values.mean(axes, keepdims=True)

    c = x - mean(x) if is_centred else x
    sigma = np.sqrt(mean(c**2) + eps)
    slope = cut - mean(cut) if is_centred else cut
    gradient = (slope - c * (mean(cut * c) / sigma**2)) / sigma
    return (c / sigma).reshape(5, 4), gradient.reshape(5, 4)


@functools.cache
def compiled(name, eps):
    """Return (x, ct) -> (y, gradient), compiled once for each dtype of x."""
    normalise = NORMS[name][0](eps)

    @jax.jit
    def both(x, ct):
        with jax.numpy_dtype_promotion("standard"):
            y, back = jax.vjp(lambda x: normalise(x).astype(jnp.float32), x)
            return y, back(ct)[0]

    return both


def value_and_gradient(name, x, ct, eps):
    return compiled(name, eps)(x, np.asarray(ct, np.float32))


def check(got, expected, rtol):
    got = np.asarray(got, np.float64)
    assert np.max(np.abs(got - expected)) <= rtol * np.max(np.abs(expected))


@every_norm
@both_eps
def test_rows_of_every_magnitude_are_normalised(name, eps):
    for magnitude in 10.0 ** np.array([-30, -20, -10, -3, 0, 3, 10, 19, 20, 30]):
        x = np.asarray(magnitude * ROWS, np.float32)
        y, gradient = oracle(name, x.astype(np.float64), CT, eps)
        got = value_and_gradient(name, x, CT, eps)
        check(got[0], y, 1e-5)
        check(got[1], gradient, 2e-5)


@every_norm
def test_rows_at_the_largest_float_are_normalised(name):
    x = np.asarray(3.2e38 * ROWS / np.abs(ROWS).max(), np.float32)
    y, _ = oracle(name, x.astype(np.float64), CT, 1e-5)
    check(NORMS[name][0](1e-5)(x), y, 1e-5)


@every_norm
@pytest.mark.parametrize(
    ("dtype", "magnitudes"),
    [(jnp.bfloat16, (1e-30, 1e-3, 1.0, 1e20, 1e30)), (jnp.float16, (1e-3, 1.0, 1e4))],
)
def test_narrow_rows_of_every_magnitude_are_normalised(name, dtype, magnitudes):
    for magnitude in magnitudes:
        x = jnp.asarray(magnitude * ROWS, dtype)
        y, gradient = oracle(name, np.asarray(x, np.float64), CT, 1e-6)
        got, slope = value_and_gradient(name, x, CT, 1e-6)
        check(got, y, 1e-2)
        if np.max(np.abs(gradient)) < jnp.finfo(dtype).max:
            assert slope.dtype == dtype
            least = 2.0 * float(jnp.finfo(dtype).smallest_subnormal)
            error = np.abs(np.asarray(slope, np.float64) - gradient)
            assert np.max(error) <= 1e-2 * np.max(np.abs(gradient)) + least


@every_norm
@both_eps
@pytest.mark.parametrize("value", [0.0, 1e-20, 100.1, 1000.1, 1e5 + 0.3, 1e20, 3e38])
def test_constant_rows_become_zero(name, eps, value):
    x = jnp.full((5, 4), value, jnp.float32)
    y, gradient = value_and_gradient(name, x, CT, eps)
    if name == "rms_norm":
        expected = 0 if value == 0 else value / np.hypot(value, np.sqrt(eps))
        np.testing.assert_allclose(y, np.full((5, 4), expected), rtol=1e-6)
    else:
        np.testing.assert_array_equal(y, np.zeros((5, 4)))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("size", [3, 7, 96, 257, 1000])
@pytest.mark.parametrize("value", [100.1, 1000.1, 1e5 + 0.3])
def test_constant_rows_of_every_length_become_zero(size, value):
    layer = layers.layer_norm(size)
    y = jax.jit(layer.apply)(layer.init(0), jnp.full((2, size), value, jnp.float32))
    np.testing.assert_allclose(y, np.zeros((2, size)), atol=1e-6)


@pytest.mark.parametrize("power", [-20, -1, 1, 20, 60])
def test_a_power_of_two_changes_no_bit(power):
    """The scale rounds nothing: with eps = 0 the values of 2**k x are those of x."""
    x = np.asarray(ROWS, np.float32)
    for name in "layer_norm", "rms_norm", "group_norm":
        normalise = jax.jit(NORMS[name][0](0.0))
        np.testing.assert_array_equal(normalise(x), normalise(x * 2.0**power))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@every_norm
def test_what_is_not_finite_shows(name, bad):
    x = np.asarray(ROWS, np.float32)
    x[0, 0] = bad
    y = NORMS[name][0](1e-5)(x)
    assert np.any(np.isnan(y))


@pytest.mark.parametrize("before", [1.0, np.inf])
def test_a_running_variance_that_overflowed_recovers(before):
    layer = layers.batch_norm(4, momentum=0.5)
    params, state = layer.init(0)
    state["var"] = jnp.full(4, before, jnp.float32)
    train = jax.jit(layers.batched(layer))
    x = np.asarray(ROWS, np.float32)
    y, state = train(params, state, 1e25 * x, key=0)
    check(y, oracle("batch_norm", 1e25 * ROWS, CT, 1e-5)[0], 1e-5)
    assert np.all(np.isfinite(state["var"]))
    for _ in range(150):
        _, state = train(params, state, x, key=0)
    np.testing.assert_allclose(state["var"], ROWS.var(0), rtol=1e-4)
    np.testing.assert_allclose(state["mean"], ROWS.mean(0), rtol=1e-4)


def test_running_statistics_keep_a_small_spread_about_a_large_mean():
    x = (1e20 * (1 + 1e-3 * ROWS)).astype(np.float32)
    layer = layers.batch_norm(4, momentum=0.0)
    params, state = layer.init(0)
    _, state = jax.jit(layers.batched(layer))(params, state, x, key=0)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(state["mean"], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["var"], exact.var(0), rtol=1e-3)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 8)])
@pytest.mark.parametrize("value", [0.0, 1e-25])
@pytest.mark.parametrize(
    "layer",
    [
        layers.layer_norm(8, eps=0.0),
        layers.rms_norm(8, eps=0.0),
        layers.group_norm(8, 1, eps=0.0),
    ],
    ids=["layer", "rms", "group"],
)
def test_without_eps_tiny_rows_stay_finite(layer, value, shape):
    params = layer.init(jax.random.key(0))
    x = value * jax.random.normal(jax.random.key(1), shape)

    @jax.jit
    def slopes(x, x_dot):
        y, y_dot = jax.jvp(lambda x: layer.apply(params, x), (x,), (x_dot,))
        return y, y_dot

    y, y_dot = slopes(x, jnp.full(shape, 1000 * value))
    assert np.isfinite([y, y_dot]).all()
    if value == 0:
        hessian = jax.jit(jax.hessian(lambda x: jnp.sum(layer.apply(params, x) ** 3)))
        np.testing.assert_array_equal(hessian(x), 0)

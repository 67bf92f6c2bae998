"""linear, dropout, drop_path, flatten, prelu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
from fngrad.layers import initializers


def test_linear_is_x_weight_plus_bias():
    layer = layers.linear(3, 2, bias_init=initializers.normal(1.0))
    params = layer.init(jax.random.key(0))
    assert params["weight"].shape == (3, 2)
    x = jax.random.normal(jax.random.key(1), (5, 4, 3))
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    expected = np.asarray(x, np.float64) @ wide["weight"] + wide["bias"]
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-5, atol=1e-6)


def test_linear_draws_with_the_initializers_given():
    layer = layers.linear(
        3,
        2,
        weight_init=initializers.constant(2.0),
        bias_init=initializers.constant(3.0),
    )
    params = layer.init(jax.random.key(0))
    np.testing.assert_array_equal(params["weight"], np.full((3, 2), 2.0))
    np.testing.assert_array_equal(params["bias"], np.full(2, 3.0))


def test_linear_without_bias_has_a_weight_only():
    layer = layers.linear(3, 2, bias=False)
    params = layer.init(jax.random.key(0))
    assert list(params) == ["weight"]
    assert not np.any(layer.apply(params, jnp.zeros(3)))


def test_linear_needs_its_last_axis():
    layer = layers.linear(64, 2)
    params = layer.init(jax.random.key(0))
    message = r"need x with last axis 64, got shape \(63,\)"
    with pytest.raises(ValueError, match=message):
        layer.apply(params, jnp.ones(63))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        layer.apply(params, 1.0)


def test_dropout_keeps_the_expectation_and_the_rate():
    x = jnp.full(40_000, 2.0)
    y = layers.dropout(0.25).apply((), x, key=jax.random.key(0))
    # Standard errors: 0.25 * 0.75 -> 0.0022 and 2 * 0.0029.
    assert abs(np.mean(y == 0) - 0.25) < 0.009
    assert abs(np.mean(y) - 2.0) < 0.024
    np.testing.assert_allclose(np.unique(y), [0.0, 2.0 / 0.75], rtol=1e-6)


def test_dropout_without_a_key_is_the_identity():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(layers.dropout(0.9).apply((), x), x)


def test_one_key_gives_one_mask():
    drop, x = layers.dropout(0.5), jnp.ones(64)
    first = drop.apply((), x, key=jax.random.key(3))
    np.testing.assert_array_equal(first, drop.apply((), x, key=jax.random.key(3)))
    assert not np.array_equal(first, drop.apply((), x, key=jax.random.key(4)))


def test_rates_can_be_swept():
    x, key = jnp.ones(64), jax.random.key(0)
    rates = jnp.array([0.0, 0.3, 1.0])
    swept = jax.jit(jax.vmap(lambda rate: layers.dropout(rate).apply((), x, key=key)))(
        rates
    )
    alone = [layers.dropout(r).apply((), x, key=key) for r in (0.0, 0.3, 1.0)]
    np.testing.assert_array_equal(swept, alone)
    np.testing.assert_array_equal(swept[0], x)
    assert not np.any(swept[2])


def test_gradients_of_dropping_everything_are_zero():
    drop = layers.dropout(1.0)
    gradient = jax.grad(lambda x: jnp.sum(drop.apply((), x, key=0)))(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_probability(rate):
    with pytest.raises(ValueError, match=r"need 0.0 <= rate <= 1.0, got rate="):
        layers.dropout(rate)


def test_flatten_gives_a_vector_in_row_order():
    np.testing.assert_array_equal(
        layers.flatten(jnp.arange(6.0).reshape(1, 2, 3)), np.arange(6.0)
    )


def test_dropout_of_bfloat16_rounds_last():
    x = jnp.arange(128, 256).astype(jnp.bfloat16)
    y = layers.dropout(0.1).apply((), x, key=jax.random.key(0))
    expected = (x.astype(jnp.float32) / 0.9).astype(jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y[y != 0], expected[y != 0])


def test_drop_path_drops_whole_examples_at_its_rate():
    x = jnp.full((20_000, 2, 1), 2.0)
    y = layers.batched(layers.drop_path(0.25))((), x, key=jax.random.key(0))
    np.testing.assert_array_equal(y[:, 0], y[:, 1])
    # Standard error of the rate: sqrt(0.25 * 0.75 / 20000) = 0.003.
    assert abs(np.mean(y == 0) - 0.25) < 0.012
    np.testing.assert_allclose(np.unique(y), [0.0, 2.0 / 0.75], rtol=1e-6)


def test_drop_path_without_a_key_is_the_identity():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(layers.drop_path(0.9).apply((), x), x)


def test_drop_path_of_everything_is_zero_with_no_gradient():
    def total(rate, x):
        return jnp.sum(layers.drop_path(rate).apply((), x, key=jax.random.key(0)))

    y, grad = jax.value_and_grad(total, 1)(jnp.float32(1.0), jnp.ones(3))
    assert y == 0
    np.testing.assert_array_equal(grad, np.zeros(3))
    with pytest.raises(ValueError, match="rate"):
        layers.drop_path(1.5)


def test_prelu_has_a_slope_below_zero_for_each_channel():
    layer = layers.prelu(3)
    params = {"slope": jnp.array([0.5, -1.0, 0.0])}
    x = jnp.array([[-2.0, -2.0, -2.0], [3.0, 3.0, 0.0]])
    y = layer.apply(params, x)
    np.testing.assert_array_equal(y, [[-1.0, 2.0, 0.0], [3.0, 3.0, 0.0]])
    grad = jax.grad(lambda p: jnp.sum(layer.apply(p, x)))(params)
    np.testing.assert_array_equal(grad["slope"], [-2.0, -2.0, -2.0])
    slopes = jax.grad(lambda x: jnp.sum(layer.apply(params, x)))(jnp.zeros(3))
    np.testing.assert_array_equal(slopes, params["slope"])


def test_one_slope_of_a_quarter_is_shared_by_default():
    layer = layers.prelu()
    params = layer.init(0)
    assert params["slope"].shape == ()
    np.testing.assert_array_equal(
        layer.apply(params, jnp.array([-4.0, 4.0])), [-1.0, 4.0]
    )
    np.testing.assert_array_equal(layer.apply(params, jnp.float32(-8.0)), -2.0)
    with pytest.raises(ValueError, match="need x with last axis 3"):
        layers.prelu(3).apply({"slope": jnp.ones(3)}, jnp.ones(2))

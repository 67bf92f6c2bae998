"""embedding and positional_embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
from fngrad.layers import initializers


def test_embedding_looks_up_rows():
    layer = layers.embedding(5, 3)
    params = layer.init(jax.random.key(0))
    x = jnp.array([[4, 0], [2, 2]])
    expected = np.asarray(params["weight"])[np.asarray(x)]
    np.testing.assert_array_equal(layer.apply(params, x), expected)


def test_tokens_out_of_range_give_nan_and_no_gradient():
    layer = layers.embedding(3, 2)
    params = layer.init(0)
    x = jnp.array([-1, 0, 3])
    y = layer.apply(params, x)
    np.testing.assert_array_equal(np.isnan(y).all(-1), [True, False, True])
    gradient = jax.grad(lambda p: jnp.sum(layer.apply(p, x)))(params)["weight"]
    np.testing.assert_array_equal(gradient, [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])


def test_embedding_keeps_bfloat16():
    layer = layers.embedding(3, 2)
    params = {"weight": jnp.ones((3, 2), jnp.bfloat16)}
    assert layer.apply(params, jnp.array([0, 5])).dtype == jnp.bfloat16


def test_embedding_needs_ints():
    layer = layers.embedding(3, 2)
    with pytest.raises(ValueError, match="need tokens with an int dtype, got float32"):
        layer.apply(layer.init(0), jnp.ones(2))


def test_positions_are_added():
    layer = layers.positional_embedding(5, 2)
    params = layer.init(0)
    x = jnp.ones((3, 2))
    expected = 1.0 + np.asarray(params["weight"])[:3]
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 2), (3, 3), (2,)])
def test_positions_need_the_shape(shape):
    layer = layers.positional_embedding(5, 2)
    with pytest.raises(ValueError, match=r"need x of shape \(length <= 5, 2\)"):
        layer.apply(layer.init(0), jnp.ones(shape))


@pytest.mark.parametrize("make", [layers.embedding, layers.positional_embedding])
def test_tables_are_drawn_with_the_initializer_given(make):
    params = make(4, 3, weight_init=initializers.constant(2.0)).init(0)
    np.testing.assert_array_equal(params["weight"], np.full((4, 3), 2.0))
    with pytest.raises(ValueError, match="need an int features >= 1"):
        make(4, 0)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint32])
@pytest.mark.parametrize("vocab_size", [100, 200, 256, 300])
def test_tokens_of_every_integer_dtype_find_their_rows(dtype, vocab_size):
    weight = np.arange(2.0 * vocab_size, dtype=np.float32).reshape(vocab_size, 2)
    x = jnp.array([0, 99, 127], dtype)
    y = layers.embedding(vocab_size, 2).apply({"weight": jnp.asarray(weight)}, x)
    is_known = np.array([True, True, vocab_size > 127])
    np.testing.assert_array_equal(y[is_known], weight[np.asarray(x)[is_known]])
    np.testing.assert_array_equal(np.isnan(y).all(-1), ~is_known)


def test_tokens_beyond_int32_are_out_of_range():
    layer = layers.embedding(3, 2)
    y = layer.apply(layer.init(0), jnp.array([1, 2**31 + 1, 2**32 - 1], jnp.uint32))
    np.testing.assert_array_equal(np.isnan(y).all(-1), [False, True, True])


@pytest.mark.parametrize("make", [layers.embedding, layers.positional_embedding])
def test_a_table_of_another_size_is_refused(make):
    params = make(5, 2).init(0)
    message = r"need parameters of the shapes {'weight': \(4, 2\)}, got {.*\(5, 2\)}"
    with pytest.raises(ValueError, match=message):
        make(4, 2).apply(params, jnp.ones((3, 2)))

"""Weight and spectral norm against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
import fngrad.tree as tree
from fngrad.layers import initializers

KEY = jax.random.key(0)


def wide(values):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values)


def model():
    return layers.serial(layers.conv(2, 3, (2,)), jnp.tanh, layers.linear(3, 2))


def test_weight_norm_begins_at_the_inner_layer():
    inner = model()
    params = inner.init(KEY)
    wrapped = layers.weight_norm(inner)
    own = wrapped.init(KEY)
    for before, after in zip(params["layers"], own["layers"], strict=True):
        direction = after["weight"]["direction"]
        np.testing.assert_allclose(direction, before["weight"], rtol=1e-6)
        assert after["weight"]["scale"].shape == before["weight"].shape[-1:]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    expected = inner.apply(params, x)
    np.testing.assert_allclose(wrapped.apply(own, x), expected, rtol=1e-5, atol=1e-6)


def test_weight_norm_is_a_length_times_a_direction():
    layer = layers.weight_norm(layers.conv(2, 3, (2,), padding="VALID", bias=False))
    rng = np.random.default_rng(0)
    v, g = rng.normal(size=(2, 2, 3)), rng.normal(size=3)
    x = rng.normal(size=(2, 2))
    weight = g * v / np.sqrt(np.sum(v**2, axis=(0, 1)))
    params = {"weight": {"direction": np.float32(v), "scale": np.float32(g)}}
    got = jax.jit(layer.apply)(params, np.float32(x))
    expected = np.einsum("ki,kio->o", x, weight)
    np.testing.assert_allclose(got[0], expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_by_a_direction_is_orthogonal_to_it():
    layer = layers.weight_norm(layers.linear(3, 2))
    params = layer.init(KEY)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(layer.apply(p, jnp.arange(3.0)))))(
        params
    )
    v, dv = wide(params["weight"]["direction"]), wide(grads["weight"]["direction"])
    assert np.abs(dv).max() > 0.01
    np.testing.assert_allclose(np.sum(v * dv, axis=0), 0, atol=1e-6)


def test_weight_norm_of_zeros_is_zero_with_finite_gradients():
    layer = layers.weight_norm(layers.linear(2, 2, weight_init=initializers.zeros()))
    params = layer.init(KEY)
    y, grads = jax.value_and_grad(lambda p: jnp.sum(layer.apply(p, jnp.ones(2))))(
        params
    )
    assert y == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_weight_norm_passes_state_and_arguments_on():
    stateful = layers.weight_norm(
        layers.serial(layers.linear(2, 2), layers.batch_norm(2))
    )
    assert isinstance(stateful, layers.StatefulLayer)
    params, state = stateful.init(KEY)
    _, moved = layers.batched(stateful)(params, state, jnp.eye(2), key=KEY)
    assert tree.mismatch(state, moved) is None
    recurrent = layers.weight_norm(layers.gru(2, 3))
    y = recurrent.apply(recurrent.init(KEY), jnp.ones((4, 2)), length=2)
    np.testing.assert_array_equal(y[2:], np.zeros((2, 3)))
    looped = layers.repeat(layers.weight_norm(layers.linear(2, 2)), 3)
    assert looped.init(KEY)["weight"]["scale"].shape == (3, 2)


@pytest.mark.parametrize("wrap", [layers.weight_norm, layers.spectral_norm])
def test_what_cannot_be_selected_is_refused(wrap):
    with pytest.raises(
        ValueError, match=r"got 'weights', which selects none of \['bia"
    ):
        wrap(layers.linear(2, 2), "weights").init(KEY)
    with pytest.raises(ValueError, match=r"got shape \(2,\) at 'bias'"):
        wrap(layers.linear(2, 2), "bias").init(KEY)
    with pytest.raises(TypeError, match="need a layer for"):
        wrap(jnp.tanh)


def test_spectral_norm_divides_by_the_largest_singular_value():
    layer = layers.spectral_norm(
        layers.conv(2, 3, (2,), padding="VALID", bias=False), iterations=60
    )
    params, state = layer.init(KEY)
    x = np.random.default_rng(0).normal(size=(2, 2)).astype("f")
    weight = wide(params["weight"])
    sigma = np.linalg.svd(weight.reshape(4, 3), compute_uv=False)[0]
    expected = np.einsum("ki,kio->o", wide(x), weight) / sigma
    y, state = jax.jit(layer.apply)(params, state, x, key=KEY)
    np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-5)
    evaluated, same = layer.apply(params, state, x)
    np.testing.assert_allclose(evaluated[0], expected, rtol=1e-4, atol=1e-5)
    assert same is not state
    np.testing.assert_array_equal(same.singular["weight"], state.singular["weight"])


def test_one_call_with_a_key_makes_one_iteration():
    layer = layers.spectral_norm(layers.linear(3, 2))
    params, state = layer.init(KEY)
    assert np.linalg.norm(state.singular["weight"]) == pytest.approx(1, abs=1e-6)
    start = np.float32([1.0, 0.0])
    state = state._replace(singular={"weight": start, "bias": None})
    _, moved = layer.apply(params, state, jnp.ones(3), key=KEY)
    w = wide(params["weight"])
    expected = w.T @ (w @ start)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(moved.singular["weight"], expected, rtol=1e-5)


def test_singular_vectors_are_constants_of_the_gradient():
    layer = layers.spectral_norm(layers.linear(2, 2, bias=False))
    w = np.array([[3.0, 1.0], [0.0, 1.0]])
    u = np.array([0.6, 0.8])
    state = layers.SpectralNormState((), {"weight": np.float32(u)})
    x, c = np.array([1.0, -2.0]), np.array([0.5, -1.5])

    def total(params):
        return layer.apply(params, state, np.float32(x))[0] @ np.float32(c)

    got = jax.grad(total)({"weight": np.float32(w)})["weight"]
    v = w @ u / np.linalg.norm(w @ u)
    sigma = v @ w @ u  # d sigma / d W = v u^T
    direct, of_sigma = np.outer(x, c) / sigma, (x @ w @ c) / sigma**2
    np.testing.assert_allclose(got, direct - of_sigma * np.outer(v, u), rtol=1e-5)


def test_spectral_norm_of_zeros_is_zero_and_keeps_its_vector():
    layer = layers.spectral_norm(layers.linear(2, 2, weight_init=initializers.zeros()))
    params, state = layer.init(KEY)

    def total(params):
        y, moved = layer.apply(params, state, jnp.ones(2), key=KEY)
        return jnp.sum(y), moved

    (y, moved), grads = jax.value_and_grad(total, has_aux=True)(params)
    assert y == 0
    assert np.all(np.isfinite(grads["weight"]))
    assert np.linalg.norm(moved.singular["weight"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_a_batch_shares_the_vectors_and_an_inner_state_moves():
    inner = layers.serial(layers.linear(2, 2), layers.batch_norm(2))
    layer = layers.spectral_norm(inner)
    params, state = layer.init(KEY)
    for own, alone in zip(
        *map(jax.tree.leaves, (params, inner.init(KEY)[0])), strict=True
    ):
        np.testing.assert_allclose(own, alone, rtol=1e-6)
    x = jnp.asarray([[1.0, 2.0], [3.0, -1.0]])
    y, moved = jax.jit(layers.batched(layer))(params, state, x, key=KEY)
    assert y.shape == (2, 2)
    assert tree.mismatch(state, moved) is None
    before, after = (s.inner["layers"][1]["mean"] for s in (state, moved))
    assert not np.array_equal(before, after)
    assert "singular/layers/0/weight" in tree.leaf_paths(moved)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    y, moved = layers.batched(layer)(narrow, state, x.astype(jnp.bfloat16), key=KEY)
    assert y.dtype == jnp.bfloat16
    assert tree.mismatch(state, moved) is None


def test_another_model_state_is_refused():
    layer = layers.spectral_norm(layers.linear(2, 2))
    params, _ = layer.init(KEY)
    with pytest.raises(
        ValueError, match="need the model state of spectral_norm, got tu"
    ):
        layer.apply(params, (), jnp.ones(2))
    with pytest.raises(ValueError, match="need an int iterations >= 1"):
        layers.spectral_norm(layers.linear(2, 2), iterations=0)

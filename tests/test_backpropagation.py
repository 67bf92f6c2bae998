"""Backpropagation by layers equals jax.grad, and shows where gradients vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
from fngrad.backpropagation import backprop, gradient_norms


def dense(params, x):
    return jnp.tanh(x @ params["weight"] + params["bias"][None])


def network(depth, width, scale):
    rng = np.random.default_rng(0)
    return [
        {
            "weight": jnp.asarray(
                scale * rng.normal(size=(width, width)) / width**0.5, jnp.float32
            ),
            "bias": jnp.zeros(width),
        }
        for _ in range(depth)
    ]


def loss_fn(h):
    return jnp.mean(jnp.square(h - 1.0))


X = jnp.asarray(np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(4, 5))


def whole(params, x):
    for w in params:
        x = dense(w, x)
    return loss_fn(x)


def test_gradients_have_the_bits_of_jax_grad():
    params = network(4, 5, 1.0)
    seen = backprop([dense] * 4, params, X, loss_fn)
    loss, (want, want_x) = jax.value_and_grad(whole, (0, 1))(params, X)
    assert seen.loss == loss
    jax.tree.map(np.testing.assert_array_equal, list(seen.gradients), want)
    np.testing.assert_array_equal(seen.signals[0], want_x)


def test_every_signal_is_the_gradient_by_its_activation():
    params = network(3, 5, 1.0)
    seen = backprop([dense] * 3, params, X, loss_fn)
    for depth in range(4):
        want = jax.grad(lambda h, rest: whole(rest, h))(
            seen.activations[depth], params[depth:]
        )
        np.testing.assert_array_equal(seen.signals[depth], want)


def test_it_can_be_jitted():
    params = network(3, 5, 1.0)
    seen = jax.jit(lambda p, x: backprop([dense] * 3, p, x, loss_fn))(params, X)
    want = jax.jit(jax.grad(whole))(params, X)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        list(seen.gradients),
        want,
    )


def test_layers_of_the_library_and_without_parameters_are_accepted():
    linear = layers.linear(5, 3)
    params = [linear.init(jax.random.key(0)), ()]
    apply = [layers.batched(linear), lambda w, x: jax.nn.relu(x)]
    seen = backprop(apply, params, X, loss_fn)

    def composed(w):
        return loss_fn(jax.nn.relu(layers.batched(linear)(w, X)))

    jax.tree.map(
        np.testing.assert_array_equal, seen.gradients[0], jax.grad(composed)(params[0])
    )
    assert seen.gradients[1] == ()


def test_tokens_have_no_signal_and_no_norm():
    table = jnp.linspace(0.0, 1.0, 6).reshape(3, 2)
    seen = backprop([lambda w, i: w[i]], [table], jnp.array([0, 2]), loss_fn)
    norms = gradient_norms(seen)
    assert norms.signals[0] == 0
    assert norms.gradients[0] > 0


def test_norms_of_layers_without_parameters_combine_with_float64(x64):
    seen = backprop(
        [lambda w, x: w * x, lambda w, x: x**2], [jnp.ones(2), ()], jnp.ones(2), jnp.sum
    )
    norms = gradient_norms(seen)
    assert norms.gradients.dtype == jnp.float64
    np.testing.assert_allclose(norms.gradients, [8**0.5, 0.0], rtol=1e-12)


@pytest.mark.parametrize(("scale", "vanishes"), [(0.5, True), (3.0, False)])
def test_the_norms_show_vanishing_and_exploding(scale, vanishes):
    # Linear layers: the signal's norm is multiplied by about `scale` in each.
    linears = [lambda w, x: x @ w["weight"]] * 10
    signals = jax.jit(
        lambda params: gradient_norms(backprop(linears, params, X, jnp.sum)).signals
    )(network(10, 5, scale))
    signals = np.asarray(signals)
    ratio = (signals[0] / signals[-1]) ** 0.1
    np.testing.assert_allclose(ratio, scale, rtol=0.35)
    assert bool(ratio < 1) is vanishes


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: backprop([dense], [], X, loss_fn), ValueError, "params for each"),
        (lambda: backprop([], [], X, lambda h: h), TypeError, "need a real scalar"),
        (
            lambda: backprop([], [], X, lambda h: (jnp.sum(h), h)),
            TypeError,
            "need a real scalar loss, got tuple",
        ),
        (lambda: backprop([dense], {"a": 1}, X, loss_fn), TypeError, "got dict"),
    ],
)
def test_invalid_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()

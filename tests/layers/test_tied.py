"""Weights that are used twice, and gated layers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles_attention import swish

import fngrad as fg
import fngrad.layers as layers
import fngrad.tree as tree


def tied_model():
    return layers.serial(
        tokens=layers.embedding(5, 3),
        hidden=layers.linear(3, 3),
        head=layers.tied("tokens", layers.read_out(5, 3)),
    )


def by_hand(params, tokens):
    table = params["tokens"]["weight"]
    hidden = table[tokens] @ params["hidden"]["weight"] + params["hidden"]["bias"]
    return hidden @ table.T


def test_a_tied_head_is_the_embedding_and_its_gradient_the_sum_of_both():
    model, tokens = tied_model(), jnp.array([3, 1, 4])
    params = model.init(0)
    assert list(tree.leaf_paths(params)) == [
        "hidden/bias",
        "hidden/weight",
        "tokens/weight",
    ]

    def both(apply):
        return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(apply(p, tokens))))

    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(both(by_hand))(params)
    got = jax.jit(both(model.apply))(params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, expected)


def test_entries_by_position_share_by_their_index():
    model = layers.serial(
        layers.linear(2, 2), jnp.tanh, layers.tied(0, layers.linear(2, 2))
    )
    params = model.init(0)
    assert len(params["layers"]) == 1
    one, x = layers.linear(2, 2), jnp.array([1.0, -2.0])
    (own,) = params["layers"]
    expected = one.apply(own, jnp.tanh(one.apply(own, x)))
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-6)


def test_a_tied_entry_does_not_change_the_start_of_the_others():
    plain = layers.serial(tokens=layers.embedding(5, 3), hidden=layers.linear(3, 3))
    jax.tree.map(np.testing.assert_array_equal, plain.init(7), tied_model().init(7))


def test_in_a_stateful_model_a_tied_entry_has_no_state():
    model = layers.serial(
        a=layers.linear(2, 2),
        norm=layers.batch_norm(2, axis_name=None),
        b=layers.tied("a", layers.linear(2, 2)),
    )
    params, state = model.init(0)
    assert set(state) == {"a", "norm"}
    y, _ = model.apply(params, state, jnp.ones((3, 2)))
    assert y.shape == (3, 2)


def test_a_summary_counts_what_is_tied_once():
    table = fg.summary(tied_model(), jnp.array([3, 1, 4]))
    head = next(line for line in table.splitlines() if "head" in line)
    assert head.split()[:5] == ["head", "read_out", "(3,", "5)", "0"]
    assert "27 parameters" in table
    assert "head" in repr(tied_model())


def test_adapters_of_low_rank_change_both_uses():
    model, tokens = tied_model(), jnp.array([3, 1, 4])
    adapters = fg.lora("tokens/weight", rank=1)
    params = adapters.init(model.init(0), key=1)
    params["adapters"]["tokens"]["weight"]["b"] = jnp.ones((1, 3))
    merged = jax.jit(model.apply)(adapters.merged(params), tokens)
    apart = jax.jit(model.apply)(adapters.unmerged(params), tokens)
    np.testing.assert_allclose(apart, merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["hidden", "head", 0])
def test_a_tie_needs_another_entry_with_parameters(to):
    message = "head: need to tie it to one of the entries ['tokens'], which have"
    with pytest.raises(ValueError, match=re.escape(message)):
        layers.serial(
            tokens=layers.embedding(5, 3),
            hidden=jnp.tanh,
            head=layers.tied(to, layers.read_out(5, 3)),
        )


def test_a_tied_layer_of_another_shape_is_refused():
    model = layers.serial(
        tokens=layers.embedding(5, 3), head=layers.tied("tokens", layers.linear(3, 5))
    )
    message = "head: need parameters of the shapes"
    with pytest.raises(layers.LayerError, match=message):
        model.apply(model.init(0), jnp.array([1]))


@pytest.mark.parametrize("layer", [jnp.tanh, layers.batch_norm(2)])
def test_only_layers_without_state_can_be_tied(layer):
    with pytest.raises(TypeError, match="to tie"):
        layers.tied("a", layer)


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_is_its_formula(bias):
    layer = layers.swiglu(3, 5, bias=bias)
    rng = np.random.default_rng(0)
    like = jax.eval_shape(layer.init, 0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), like)
    x = rng.normal(size=(2, 3))

    def dense(name, x):
        return x @ params[name]["weight"] + params[name].get("bias", 0.0)

    expected = dense("shrink", swish(dense("gate", x)) * dense("expand", x))
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x))
    np.testing.assert_allclose(
        jax.jit(layer.apply)(*narrow), expected, rtol=1e-4, atol=1e-5
    )
    assert ("bias" in like["gate"]) == bias


def test_gates_have_the_activation_and_weights_the_initializers_given():
    init = layers.initializers.constant
    layer = layers.swiglu(
        2, 3, activation=jnp.sign, weight_init=init(2.0), output_init=init(0.5)
    )
    params = layer.init(0)
    y = layer.apply(params, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(y, [6.0, 6.0])  # 3 units of 4, times 0.5
    with pytest.raises(ValueError, match="need an int hidden_size >= 1"):
        layers.swiglu(2, 0)

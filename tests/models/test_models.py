"""Whole models: formulas, shapes, paths, dropout, messages."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import filled
from oracles_models import dense, encoder

import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree
from fngrad.layers import initializers


def wide(values):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values)


def paths_of(model):
    return list(tree.leaf_paths(jax.eval_shape(model.init, jax.random.key(0))))


def dense_paths(count):
    return [f"layers/{i}/{leaf}" for i in range(count) for leaf in ("bias", "weight")]


def test_logistic_is_linear_from_zero():
    model = models.logistic(4, 3)
    params = model.init(jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "weight": (4, 3),
        "bias": (3,),
    }
    assert not np.any(params["weight"])
    params["weight"] = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(model.apply(params, jnp.ones(4)), [18.0, 22.0, 26.0])


def test_mlp_equals_its_formula():
    model = models.mlp((4, 5, 6, 3), jnp.tanh)
    params = jax.jit(model.init)(jax.random.key(0))
    assert paths_of(model) == dense_paths(3)
    x = np.float32(np.random.default_rng(1).normal(size=(2, 4)))
    first, second, last = wide(params)["layers"]
    expected = dense(last, np.tanh(dense(second, np.tanh(dense(first, wide(x))))))
    got = jax.jit(jax.vmap(model.apply, (None, 0)))(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    together = jax.jit(layers.batched(model))
    np.testing.assert_allclose(together(params, x), got, rtol=1e-6)


def test_mlp_has_relu_and_the_initializers_given():
    model = models.mlp(
        (2, 3, 1),
        weight_init=initializers.constant(-1.0),
        output_init=initializers.constant(2.0),
    )
    params = model.init(0)
    assert np.all(params["layers"][0]["weight"] == -1.0)
    assert np.all(params["layers"][1]["weight"] == 2.0)
    assert model.apply(params, jnp.ones(2)) == 0.0
    assert model.apply(params, -jnp.ones(2)) == 12.0


def test_dropout_moves_no_leaf_and_changes_no_start():
    bare, dropping = models.mlp((4, 5, 3)), models.mlp((4, 5, 3), dropout_rate=0.5)
    key = jax.random.key(0)
    jax.tree.map(np.testing.assert_array_equal, bare.init(key), dropping.init(key))


CNN_OPTIONS: dict[str, Any] = {
    "channels": (2, 3),
    "hidden_size": 8,
    "activation": jnp.tanh,
}
TRANSFORMER_OPTIONS: dict[str, Any] = {"features": 4, "num_layers": 1, "num_heads": 2}
DROPPING = {
    "mlp": (lambda rate: models.mlp((4, 8, 3), dropout_rate=rate), jnp.ones(4)),
    "cnn": (
        lambda rate: models.cnn((4, 4, 1), 3, dropout_rate=rate, **CNN_OPTIONS),
        jnp.ones((4, 4, 1)),
    ),
    "rnn": (lambda rate: models.rnn(2, [8], 3, dropout_rate=rate), jnp.ones((4, 2))),
    "transformer": (
        lambda rate: models.transformer(5, 6, dropout_rate=rate, **TRANSFORMER_OPTIONS),
        jnp.arange(4),
    ),
    "decoder": (
        lambda rate: models.decoder(5, dropout_rate=rate, **TRANSFORMER_OPTIONS),
        jnp.arange(4),
    ),
}


@pytest.mark.parametrize("name", list(DROPPING))
def test_dropout_needs_a_rate_and_a_key(name):
    make, x = DROPPING[name]
    bare, dropping = make(None), make(0.5)

    @jax.jit
    def outputs(params, key):
        return (
            bare.apply(params, x),
            bare.apply(params, x, key=key),
            dropping.apply(params, x),
            dropping.apply(params, x, key=key),
        )

    expected, with_key, evaluated, dropped = outputs(filled(bare), jax.random.key(0))
    np.testing.assert_array_equal(with_key, expected)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-6)
    assert not np.allclose(dropped, expected, rtol=1e-2)


def test_cnn_has_its_layers_and_sizes():
    model = models.cnn((8, 9, 2), 7, channels=(3, 4), kernel_size=2, hidden_size=5)
    assert paths_of(model) == dense_paths(4)
    shapes = [
        layer["weight"].shape
        for layer in jax.eval_shape(model.init, jax.random.key(0))["layers"]
    ]
    assert shapes == [(2, 2, 2, 3), (2, 2, 3, 4), (2 * 2 * 4, 5), (5, 7)]


def test_cnn_is_its_layers_in_order():
    model = models.cnn((4, 4, 1), 3, **CNN_OPTIONS)
    params = filled(model)
    x = np.float32(np.random.default_rng(1).normal(size=(4, 4, 1)))
    pool = layers.max_pool(2)

    @jax.jit
    def in_order(params, x):
        first, second, hidden, last = params["layers"]
        y = pool.apply((), jnp.tanh(layers.conv(1, 2, 3).apply(first, x)))
        y = pool.apply((), jnp.tanh(layers.conv(2, 3, 3).apply(second, y)))
        return dense(last, jnp.tanh(dense(hidden, y.ravel())))

    got = jax.jit(model.apply)(params, x)
    np.testing.assert_allclose(got, in_order(params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recurrent", [layers.gru, layers.lstm])
def test_rnn_is_its_layers_in_order(recurrent):
    options: dict[str, Any] = (
        {} if recurrent is layers.gru else {"recurrent": layers.lstm}
    )
    model = models.rnn(2, [3, 4], 5, **options)
    params = filled(model)
    x = np.float32(np.random.default_rng(1).normal(size=(6, 2)))

    @jax.jit
    def in_order(params, x):
        first, second, last = params["layers"]
        h = recurrent(3, 4).apply(second, recurrent(2, 3).apply(first, x))
        return h @ last["weight"] + last["bias"][None]

    expected = in_order(params, x)
    got = jax.jit(model.apply)(params, x)
    np.testing.assert_allclose(got, expected[-1], rtol=1e-5, atol=1e-6)
    steps = models.rnn(2, [3, 4], 5, every_step=True, **options)
    got = jax.jit(steps.apply)(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def transformer_oracle(params, tokens, num_heads):
    """Return the logits of one sequence by the formulas of the pre-norm decoder."""
    positions = params["positions"]["weight"][: len(tokens)]
    h = params["tokens"]["weight"][tokens] + positions
    return dense(params["head"], encoder(params, h, num_heads, causal=True))


@functools.cache
def small_transformer():
    exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
    model = models.transformer(
        7, 6, hidden_size=10, activation=exact_gelu, **TRANSFORMER_OPTIONS
    )
    return jax.jit(model.apply), filled(model)


def test_transformer_equals_its_formula():
    apply, params = small_transformer()
    tokens = jnp.array([3, 1, 4, 1, 5])
    got = apply(params, tokens)
    expected = transformer_oracle(wide(params), np.asarray(tokens), num_heads=2)
    np.testing.assert_allclose(
        got, expected, rtol=1e-3, atol=1e-3 * float(np.std(expected))
    )


def test_transformer_does_not_look_ahead():
    apply, params = small_transformer()
    one = apply(params, jnp.array([3, 1, 4, 1, 5]))
    other = apply(params, jnp.array([3, 1, 4, 2, 6]))
    np.testing.assert_array_equal(one[:3], other[:3])
    assert np.all(np.abs(one[3:] - other[3:]).max(-1) > 1e-3)


@pytest.mark.parametrize("scan", [False, True])
def test_a_transformer_that_is_not_causal_looks_ahead(scan):
    model = models.transformer(7, 6, causal=False, scan=scan, **TRANSFORMER_OPTIONS)
    apply, params = jax.jit(model.apply), filled(model)
    one = apply(params, jnp.array([3, 1, 4, 1, 5]))
    other = apply(params, jnp.array([3, 1, 4, 1, 6]))
    assert np.all(np.abs(one - other).max(-1) > 1e-3)


def test_transformer_has_its_sizes_and_paths():
    shapes = tree.leaf_paths(
        jax.eval_shape(
            models.transformer(7, 6, features=8, num_layers=3, num_heads=2).init,
            jax.random.key(0),
        )
    )
    assert shapes["tokens/weight"].shape == (7, 8)
    assert shapes["positions/weight"].shape == (6, 8)
    assert shapes["blocks/layers/2/mlp/expand/weight"].shape == (8, 32)
    assert shapes["blocks/layers/2/attention/attend/query/weight"].shape == (8, 8)
    assert shapes["head/weight"].shape == (8, 7)
    assert "blocks/layers/3/mlp/expand/weight" not in shapes
    narrow = models.transformer(7, 6, features=8, hidden_size=5)
    made = tree.leaf_paths(jax.eval_shape(narrow.init, jax.random.key(0)))
    assert made["blocks/layers/1/mlp/expand/weight"].shape == (8, 5)


@pytest.mark.parametrize("model", [models.transformer(7, 6), models.decoder(7)])
def test_language_models_have_128_features_and_two_blocks_by_default(model):
    shapes = tree.leaf_paths(jax.eval_shape(model.init, jax.random.key(0)))
    assert shapes["tokens/weight"].shape == (7, 128)
    blocks = {path.split("/")[2] for path in shapes if path.startswith("blocks/")}
    assert blocks == {"0", "1"}


def test_transformer_drops_attention_weights(monkeypatch):
    rates = []
    monkeypatch.setattr(
        "fngrad.layers.attention.drop",
        lambda kind, rate, x, key: rates.append(rate) or x,
    )
    model = DROPPING["transformer"][0](0.5)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens, key = jnp.arange(4), jax.random.key(1)
    jax.eval_shape(lambda p: model.apply(p, tokens, key=key), params)
    assert rates == [0.5]


def test_transformer_depends_on_heads_and_activation():
    tokens = jnp.array([3, 1, 4])
    options = {"features": 4, "num_layers": 1, "hidden_size": 10}
    variants = [
        models.transformer(7, 6, num_heads=heads, activation=activation, **options)
        for heads, activation in [(2, jax.nn.gelu), (4, jax.nn.gelu), (2, jnp.tanh)]
    ]
    outputs = jax.jit(lambda p: [model.apply(p, tokens) for model in variants])(
        filled(variants[0])
    )
    assert not np.allclose(outputs[0], outputs[1], rtol=1e-2)
    assert not np.allclose(outputs[0], outputs[2], rtol=1e-2)


def test_a_new_transformer_predicts_a_nearly_uniform_distribution():
    model = models.transformer(50, 6, features=32, num_layers=1)
    params = jax.jit(model.init)(jax.random.key(0))
    logits = jax.jit(model.apply)(params, jnp.arange(6))
    assert np.std(logits) < 0.2
    shrink = params["blocks"]["layers"][0]["mlp"]["shrink"]["weight"]
    np.testing.assert_allclose(np.std(shrink), 0.02 / np.sqrt(2), rtol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.logistic(0, 3), "need an int in_size >= 1"),
        (lambda: models.mlp((4,)), "need at least two sizes"),
        (lambda: models.mlp((4, 0, 3)), "need an int out_size >= 1, got out_size=0"),
        (lambda: models.mlp((4, 3), dropout_rate=2.0), "rate=2.0"),
        (lambda: models.mlp((4, 5, 3), dropout_rate=2.0), "rate=2.0"),
        (
            lambda: models.cnn((3, 8, 1), 3),
            "need an image that can be halved 2 times, got in_shape=(3, 8, 1)",
        ),
        (lambda: models.rnn(2, [], 3), "need at least one hidden size"),
        (lambda: models.transformer(5, 6, num_layers=0), "need an int num_layers >= 1"),
        (
            lambda: models.transformer(5, 6, features=6, num_heads=4),
            "need num_heads that divides features, got num_heads=4 features=6",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (models.mlp((64, 8, 3)), jnp.ones(63), "layers/0: need x with last axis 64"),
        (
            models.cnn((8, 8, 1), 3),
            jnp.ones((10, 16, 1)),
            "layers/2: need x with last axis 128, got shape (256,)",
        ),
        (
            models.transformer(5, 3, features=4),
            jnp.arange(4),
            "positions: need x of shape (length <= 3, 4), got shape (4, 4)",
        ),
        (
            models.transformer(5, 3, features=4),
            jnp.ones(3),
            "tokens: need tokens with an int dtype, got float32",
        ),
    ],
)
def test_examples_of_another_shape_are_refused(model, x, message):
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        jax.eval_shape(model.apply, params, x)


@pytest.mark.parametrize("every_step", [False, True])
def test_rnn_of_padded_sequences_equals_that_of_the_sequences(every_step):
    model = models.rnn(2, [3, 3], 2, every_step=every_step, recurrent=layers.lstm)
    params = filled(model)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 2)), jnp.float32)
    lengths = jnp.array([2, 5])
    padded = jax.jit(layers.batched(model))(params, x, length=lengths)
    for y, one, length in zip(padded, x, (2, 5), strict=True):
        expected = jax.jit(model.apply)(params, one[:length])
        got = y[:length] if every_step else y
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: models.cnn((8, 8), 10),
            "need in_shape (height, width, channels), got",
        ),
        (lambda: models.cnn(8, 10), "need a sequence of sizes as in_shape, got in_sh"),
        (
            lambda: models.cnn((8, 8, 1), 10, channels=4),
            "need a sequence of sizes as ch",
        ),
        (
            lambda: models.cnn((8.0, 8, 1), 10),
            "need an int height >= 1, got height=8.0",
        ),
        (lambda: models.rnn(3, 4, 2), "need a sequence of sizes as hidden_sizes, got"),
        (lambda: models.mlp(5), "need a sequence of sizes as sizes, got sizes=5"),
    ],
)
def test_sizes_of_models_are_sequences(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()

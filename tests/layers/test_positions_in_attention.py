"""Rotary embeddings, ALiBi and windows against float64; the weights as an output."""

import functools
import re

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import oracles_attention as oracles
import pytest
from drawn_parameters import filled
from jax.test_util import check_grads

import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree

LENGTH = 6
# Of multi_head_attention: options, of the oracle: kv heads, sees, rotate, slopes.
PAST = ({"causal": True}, lambda t, s: s <= t)
NEAR = ({"window": 2}, lambda t, s: abs(t - s) < 2)
LATE = ({"causal": True, "window": 3}, lambda t, s: t - 3 < s <= t)
CASES = {
    "rotary": (PAST, {"rotary": layers.rotary()}, {"rotate": oracles.turned}),
    "a turned half, interleaved": (
        PAST,
        {"rotary": layers.rotary(100.0, fraction=0.5, pairing="interleaved")},
        {
            "rotate": functools.partial(
                oracles.turned, base=100.0, fraction=0.5, pairing="interleaved"
            )
        },
    ),
    "alibi": (PAST, {"alibi": True}, {"slope": oracles.slopes(4)}),
    "alibi in both directions": (
        ({}, lambda t, s: True),
        {"alibi": True},
        {"slope": oracles.slopes(4)},
    ),
    "window in both directions": (NEAR, {}, {}),
    "causal window": (LATE, {}, {}),
    "all at once": (
        LATE,
        {"rotary": layers.rotary(), "alibi": True},
        {"rotate": oracles.turned, "slope": oracles.slopes(4)},
    ),
}


def wide(values):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), values)


def sequence(length=LENGTH, features=8):
    return np.random.default_rng(1).normal(size=(length, features)).astype("f")


@pytest.mark.parametrize("name", list(CASES))
def test_attention_and_its_weights_equal_a_loop(name):
    (options, sees), more, of_oracle = CASES[name]
    options = {"num_kv_heads": 2, "head_size": 4} | options | more
    layer = layers.multi_head_attention(8, 4, **options)
    params, x = filled(layer), sequence()
    expected, weights = oracles.attend(wide(params), wide(x), 4, 2, sees, **of_oracle)
    got, got_weights = jax.jit(layers.attention_weights(layer))(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got_weights, weights, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got_weights.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("pairing", ["half_split", "interleaved"])
def test_products_of_turned_vectors_depend_on_the_distance_alone(pairing):
    rotate = layers.rotary(pairing=pairing)
    q, k = sequence(2, 6)
    q, k = (jnp.broadcast_to(a, (5, 1, 6)) for a in (q, k))
    places = jnp.array([0, 3, 10, 100, 1000])
    products = jnp.sum(rotate(q, places + 7) * rotate(k, places), (1, 2))
    np.testing.assert_allclose(products, products[0], rtol=1e-3)
    lengths = jnp.linalg.norm(rotate(q, places), axis=-1)
    np.testing.assert_allclose(lengths, jnp.linalg.norm(q, axis=-1), rtol=1e-5)


def test_a_rotation_of_16_bits_is_that_of_float32_rounded():
    x = jnp.asarray(sequence(4, 8)[:, None], jnp.bfloat16)
    places = jnp.arange(4) + 5000
    got = layers.rotary()(x, places)
    expected = layers.rotary()(x.astype(jnp.float32), places)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, expected.astype(jnp.bfloat16))


def test_the_base_may_be_a_tracer():
    x, places = jnp.asarray(sequence(3, 4)[:, None]), jnp.arange(3)
    got = jax.jit(jax.vmap(lambda base: layers.rotary(base)(x, places)))(
        jnp.array([10.0, 1e4])
    )
    for y, base in zip(got, (10.0, 1e4), strict=True):
        np.testing.assert_allclose(y, layers.rotary(base)(x, places), rtol=1e-6)


def test_no_fraction_turns_nothing():
    x = jnp.asarray(sequence(3, 5)[:, None])
    rotate = layers.rotary(fraction=0.3)  # of 5 entries: 1, and 0 is even
    np.testing.assert_array_equal(rotate(x, jnp.arange(3)), x)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12])
def test_slopes_are_those_of_the_authors(heads):
    np.testing.assert_allclose(layers.alibi_slopes(heads), oracles.slopes(heads))


def test_a_window_of_the_length_is_no_window():
    params, x = filled(layers.multi_head_attention(8, 2)), sequence()
    plain, wide_open = (
        layers.multi_head_attention(8, 2, causal=True, window=window)
        for window in (None, LENGTH)
    )
    got = jax.jit(lambda p: (plain.apply(p, x), wide_open.apply(p, x)))(params)
    np.testing.assert_array_equal(*got)


def test_a_window_hides_the_distant_past():
    layer = layers.multi_head_attention(8, 2, causal=True, window=2)
    params, x = filled(layer), sequence()
    x[1] = np.nan
    y = jax.jit(layer.apply)(params, x)
    is_nan = np.isnan(y).all(-1)
    np.testing.assert_array_equal(is_nan, [False, True, True, False, False, False])


@pytest.mark.parametrize(
    ("large", "small", "is_nan"), [("query", "key", [4]), ("key", "query", [4, 5])]
)
def test_what_overflows_when_turned_spoils_no_gradient_of_others(large, small, is_nan):
    layer = layers.multi_head_attention(2, 1, causal=True, rotary=layers.rotary())
    params, x = filled(layer), sequence(features=2)
    params[large]["weight"], params[small]["weight"] = jnp.eye(2), 1e-38 * jnp.eye(2)
    params["value"]["weight"] = 0.1 * jnp.eye(2)
    x[4] = -3e38, 3e38  # turned by 4 radians, its first entry is 4.2e38

    @jax.jit
    def slopes_and_y(params, x):
        def loss_of(params, x):
            y = layer.apply(params, x)
            return jnp.sum(y[:4] ** 2), y

        return jax.grad(loss_of, argnums=(0, 1), has_aux=True)(params, x)

    slopes, y = slopes_and_y(params, x)
    assert np.flatnonzero(np.isnan(y).all(-1)).tolist() == is_nan
    expected, _ = slopes_and_y(params, np.where(np.abs(x) > 1e38, 0, x))
    jax.tree.map(np.testing.assert_array_equal, slopes, expected)


@pytest.mark.slow
def test_derivatives_are_those_of_finite_differences():
    layer = layers.multi_head_attention(
        4, 2, causal=True, window=2, rotary=layers.rotary(), alibi=True
    )
    params, x = filled(layer), sequence(3, 4)
    with float64_mode.x64():
        in_float64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        check_grads(layer.apply, in_float64, order=1, modes=("fwd", "rev"))


def test_weights_of_a_deep_model_are_at_its_paths():
    options = {"features": 8, "num_layers": 2, "num_heads": 2}
    one_by_one = models.transformer(11, 6, **options)
    looped = models.transformer(11, 6, scan=True, remat=True, **options)
    params, tokens = filled(one_by_one), jnp.array([3, 1, 4, 1])
    y, weights = jax.jit(layers.attention_weights(one_by_one))(params, tokens)
    np.testing.assert_array_equal(y, jax.jit(one_by_one.apply)(params, tokens))
    found = tree.leaf_paths(weights)
    assert list(found) == [f"blocks/layers/{i}/attention/attend" for i in range(2)]
    stacked = layers.stack_layers(params, "**/blocks")
    _, together = jax.jit(layers.attention_weights(looped))(stacked, tokens)
    together = together["blocks"]["attention"]["attend"]
    expected = np.stack(list(found.values()))
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)


COMBINATORS = {
    "serial": layers.serial,
    "parallel": lambda layer: layers.parallel(layer, combine=sum),
    "residual": layers.residual,
    "repeat": lambda layer: layers.repeat(layer, 3),
    "remat": layers.remat,
}


@pytest.mark.parametrize("name", COMBINATORS)
def test_weights_are_found_in_every_combinator(name):
    layer = COMBINATORS[name](layers.multi_head_attention(8, 2))
    params = jax.eval_shape(layer.init, jax.random.key(0))
    y, weights = jax.eval_shape(layers.attention_weights(layer), params, sequence())
    assert y.shape == (LENGTH, 8)
    (found,) = jax.tree.leaves(weights)
    assert found.shape[-3:] == (2, LENGTH, LENGTH)


def test_weights_are_those_before_dropout():
    layer = layers.multi_head_attention(8, 2, dropout_rate=1.0)
    params, x = filled(layer), sequence()
    look = jax.jit(layers.attention_weights(layer))
    y, weights = look(params, x, key=jax.random.key(0), mask=np.eye(LENGTH) > 0)
    np.testing.assert_allclose(weights, np.stack([np.eye(LENGTH)] * 2), rtol=1e-6)
    np.testing.assert_allclose(y, np.stack([params["output"]["bias"]] * 6), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.rotary(0.0), "need base > 0, got base=0.0"),
        (lambda: layers.rotary(fraction=1.5), "need 0.0 <= fraction <= 1.0"),
        (lambda: layers.rotary(pairing="halves"), "need pairing to be one of"),
        (
            lambda: layers.rotary()(jnp.ones((2, 4)), jnp.arange(2)),
            "need x of shape (length, heads, head_size) and positions of shape",
        ),
        (lambda: layers.alibi_slopes(0), "need an int num_heads >= 1"),
        (
            lambda: layers.multi_head_attention(4, 2, window=0),
            "need an int window >= 1, got window=0",
        ),
        (
            lambda: layers.attention_weights(layers.linear(2, 2)),
            "need a layer with attention, got linear",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    "option", [{"window": 2}, {"rotary": layers.rotary()}, {"alibi": True}]
)
def test_positions_of_a_context_are_not_those_of_x(option):
    layer = layers.multi_head_attention(8, 2, **option)
    params = jax.eval_shape(layer.init, jax.random.key(0))
    x = jnp.ones((3, 8))
    with pytest.raises(ValueError, match="need no context for causal attention, nor"):
        jax.eval_shape(lambda p: layer.apply(p, x, context=x), params)


def test_a_rotation_is_a_function():
    message = "need rotary as a function of x and positions, .* got True"
    with pytest.raises(TypeError, match=message):
        layers.multi_head_attention(4, 2, rotary=True)  # pyright: ignore[reportArgumentType]


def test_weights_of_a_layer_with_state_are_refused():
    with pytest.raises(TypeError, match="need a layer without state"):
        layers.attention_weights(layers.batch_norm(2))

"""Attention against loops in float64."""

import re

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import filled
from jax.test_util import check_grads

import fngrad.layers as layers
from fngrad.layers import initializers

LENGTH, CONTEXT = 3, 5


def attention_oracle(params, x, context, mask, num_heads, num_kv_heads):
    """Return the attention of each head and position, by plain loops.

    Args:
        mask: bools of shape (num_heads, length, context_length).
    """

    def project(name, value):
        dense = {n: np.asarray(v, np.float64) for n, v in params[name].items()}
        return value @ dense["weight"] + dense.get("bias", 0.0)

    x, context = np.asarray(x, np.float64), np.asarray(context, np.float64)
    q = project("query", x).reshape(len(x), num_heads, -1)
    k = project("key", context).reshape(len(context), num_kv_heads, -1)
    v = project("value", context).reshape(len(context), num_kv_heads, -1)
    out = np.zeros_like(q)
    for head in range(num_heads):
        shared = head // (num_heads // num_kv_heads)
        for t in range(len(x)):
            seen = [s for s in range(len(context)) if mask[head, t, s]]
            logits = [q[t, head] @ k[s, shared] / np.sqrt(q.shape[-1]) for s in seen]
            weights = np.exp(logits) / np.sum(np.exp(logits))
            for weight, s in zip(weights, seen, strict=True):
                out[t, head] += weight * v[s, shared]
    return project("output", out.reshape(len(x), -1))


def sequence(seed, length, features=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(length, features)).astype(np.float32)


EVERYWHERE = np.ones((4, LENGTH, LENGTH), bool)
PAST = EVERYWHERE & np.tri(LENGTH, dtype=bool)


@pytest.mark.parametrize(
    ("options", "kv_heads", "allowed"),
    [
        ({}, 4, EVERYWHERE),
        ({"causal": True}, 4, PAST),
        ({"num_kv_heads": 2, "causal": True}, 2, PAST),
        ({"num_kv_heads": 1}, 1, EVERYWHERE),
        ({"head_size": 3}, 4, EVERYWHERE),
        ({"bias": False}, 4, EVERYWHERE),
    ],
)
def test_self_attention_equals_a_loop(options, kv_heads, allowed):
    layer = layers.multi_head_attention(4, 4, **options)
    params, x = filled(layer), 3 * sequence(1, LENGTH)
    assert ("bias" in params["query"]) == options.get("bias", True)
    assert params["query"]["weight"].shape == (4, 4 * options.get("head_size", 1))
    expected = attention_oracle(params, x, x, allowed, 4, kv_heads)
    got = jax.jit(layer.apply)(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_head", [False, True])
def test_cross_attention_with_a_mask_equals_a_loop(per_head):
    layer = layers.multi_head_attention(4, 2, context_features=6)
    params = filled(layer)
    x, context = 3 * sequence(1, LENGTH), sequence(2, CONTEXT, 6)
    shape = (2, LENGTH, CONTEXT) if per_head else (LENGTH, CONTEXT)
    mask = np.random.default_rng(3).random(shape) < 0.5
    mask[..., 0] = True
    whole = np.broadcast_to(mask, (2, LENGTH, CONTEXT))
    expected = attention_oracle(params, x, context, whole, 2, 2)
    got = jax.jit(layer.apply)(params, x, context=context, mask=mask)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_mask_and_causality_both_hold():
    layer = layers.multi_head_attention(4, 4, causal=True)
    params, x = filled(layer), sequence(1, LENGTH)
    mask = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1]], bool)
    expected = attention_oracle(params, x, x, PAST & mask, 4, 4)
    got = jax.jit(layer.apply)(params, x, mask=mask)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_causal_attention_does_not_look_ahead():
    layer = layers.multi_head_attention(4, 2, causal=True)
    params, x = filled(layer), sequence(1, LENGTH)
    jacobian = jax.jit(jax.jacrev(layer.apply, 1))(params, x)
    reach = np.abs(jacobian).sum((1, 3))
    assert np.all((reach > 0) == np.tri(LENGTH, dtype=bool))


def test_nothing_to_attend_to_gives_the_output_bias_and_finite_gradients():
    layer = layers.multi_head_attention(4, 2)
    params, x = filled(layer), sequence(1, LENGTH)
    mask = np.zeros((LENGTH, LENGTH), bool)
    mask[0] = True

    def total(x):
        y = layer.apply(params, x, mask=mask)
        return jnp.sum(y), y

    (_, y), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x)
    np.testing.assert_allclose(y[1], params["output"]["bias"], rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def test_dropout_needs_a_rate_and_a_key():
    plain, half, whole = (
        layers.multi_head_attention(4, 2, bias=False, dropout_rate=rate)
        for rate in (None, 0.5, 1.0)
    )
    params, x = filled(plain), sequence(1, LENGTH)

    @jax.jit
    def outputs(key):
        without_key = [layer.apply(params, x) for layer in (plain, half, whole)]
        with_key = [layer.apply(params, x, key=key) for layer in (plain, half, whole)]
        return without_key, with_key

    without_key, (kept, dropped, gone) = outputs(jax.random.key(0))
    for y in (*without_key, kept):
        np.testing.assert_allclose(y, without_key[0], rtol=1e-6)
    assert not np.allclose(dropped, kept, rtol=1e-2)
    assert not np.any(gone)


def test_weights_are_drawn_with_the_initializers_given():
    layer = layers.multi_head_attention(
        4,
        2,
        weight_init=initializers.constant(2.0),
        output_init=initializers.constant(3.0),
    )
    params = jax.jit(layer.init)(0)
    values = {n: np.unique(dense["weight"]).item() for n, dense in params.items()}
    assert values == {"query": 2.0, "key": 2.0, "value": 2.0, "output": 3.0}
    drawn = jax.jit(layers.multi_head_attention(4, 2).init)(0)
    assert not np.array_equal(drawn["query"]["weight"], drawn["key"]["weight"])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (4, 3),
            {},
            "need num_heads that divides features, got num_heads=3 features=4",
        ),
        ((4, 4), {"num_kv_heads": 3}, "got num_kv_heads=3 num_heads=4"),
        ((4, 2), {"head_size": 0}, "need an int head_size >= 1"),
        ((4, 2), {"dropout_rate": 2.0}, "dropout_rate=2.0"),
        ((4, 0), {}, "need an int num_heads >= 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layers.multi_head_attention(*arguments, **options)


@pytest.mark.parametrize(
    ("x", "inputs", "message"),
    [
        (jnp.ones((3, 5)), {}, "need x of shape (length, 4), got shape (3, 5)"),
        (jnp.ones(4), {}, "need x of shape (length, 4), got shape (4,)"),
        (
            jnp.ones((3, 4)),
            {"mask": jnp.ones((3, 3))},
            "need a mask of bools of shape (3, 3) or (2, 3, 3), got float32",
        ),
        (
            jnp.ones((3, 4)),
            {"mask": jnp.ones((1, 3), bool)},
            "got bool of shape (1, 3)",
        ),
        (
            jnp.ones((3, 4)),
            {"context": jnp.ones((3, 4))},
            "need no context for causal attention",
        ),
    ],
)
def test_inputs_of_another_shape_are_refused(x, inputs, message):
    layer = layers.multi_head_attention(4, 2, causal=True)
    params = jax.eval_shape(layer.init, jax.random.key(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(layer.apply, params, x, **inputs)


def test_a_context_needs_a_feature():
    with pytest.raises(ValueError, match="need an int context_features >= 1, got"):
        layers.multi_head_attention(4, 2, context_features=0)


def test_the_gradient_keeps_no_mask_of_the_logits():
    layer, length = layers.multi_head_attention(4, num_heads=2, causal=True), 16
    params = jax.eval_shape(layer.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((length, 4), jnp.float32)
    kept = jax.eval_shape(lambda p, x: jax.vjp(layer.apply, p, x)[1], params, x)
    of_logits = [a for a in jax.tree.leaves(kept) if a.shape[-2:] == (length, length)]
    assert [a.dtype for a in of_logits] == [jnp.float32]  # the weights


def test_first_and_second_derivatives_are_those_of_finite_differences():
    layer = layers.multi_head_attention(4, num_heads=2, causal=True)
    params, x = filled(layer), sequence(1, 5)
    with float64_mode.x64():
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        check_grads(layer.apply, wide, order=2, modes=("fwd", "rev"))


def test_a_nan_that_shows_in_the_loss_shows_in_every_gradient():
    layer = layers.multi_head_attention(8, 2, causal=True)
    params = layer.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 8)).at[4, 3].set(jnp.nan)

    def loss(params, first):
        return jnp.sum(layer.apply(params, x)[:first])

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    for first, is_finite in [(4, True), (6, False)]:
        for leaf in jax.tree.leaves(gradient(params, first)):
            assert np.isfinite(leaf).all() == is_finite

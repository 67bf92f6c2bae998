"""Sums over many equal terms in 16 bits: gradients against float64."""

import functools

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.layers as layers
import fngrad.tree as tree
from fngrad import curvature, numerics

N = 4096  # in bfloat16 a sum of equal terms stops at 256 of them, in float16 at 2048
TOKENS = np.ones(N, np.int32)


def ones(*shape):
    return np.ones(shape)


# name: (layer, x whose examples are all the same)
SHARED = {
    "linear": (layers.linear(2, 3), ones(N, 2)),
    "conv": (layers.conv(1, 2, 3), ones(N, 2, 2, 1)),
    "prelu": (layers.prelu(2), -ones(N, 2)),
    "positions": (layers.positional_embedding(3, 2), ones(N, 3, 2)),
    "layer_norm": (layers.layer_norm(2), ones(N, 2) * [1.0, 2.0]),
    "rms_norm": (layers.rms_norm(2), ones(N, 2) * [1.0, 2.0]),
    "group_norm": (layers.group_norm(4, 2), ones(N, 4) * [1.0, 2.0, 3.0, 5.0]),
    "attention": (layers.multi_head_attention(2, 1, causal=True), ones(N, 3, 2)),
    "embedding": (layers.embedding(3, 2), TOKENS),
}
# one example, whose positions are all the same
POSITIONS = {
    "linear": (layers.linear(2, 3), ones(N, 2)),
    "conv": (layers.conv(1, 2, (3,)), ones(N, 1)),
    "conv_transpose": (layers.conv_transpose(1, 2, (3,)), ones(N, 1)),
    "gru": (layers.gru(2, 3), ones(N, 2)),
    "lstm": (layers.lstm(2, 3), ones(N, 2)),
}
narrow = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
# Sums of float16 stop later; where they do is slow.
mostly_bfloat16 = pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)]
)


@functools.cache
def params_of(layer):
    return jax.tree.map(np.asarray, jax.jit(layer.init)(0))


def cast(values, dtype):
    def one(x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_float else x

    return jax.tree.map(one, values)


def check_gradient(f, args, dtype, rtol):
    """Compare the gradient of ``sum(f) / N`` in a narrow dtype with float64."""

    def mean(args, x):
        y = f(args, x)
        return jnp.sum(tree.widen(y)) / N

    with float64_mode.x64():
        rounded = cast(args, dtype)
        exact = jax.jit(jax.grad(mean))(*cast(rounded, jnp.float64))
    got = jax.jit(jax.grad(mean))(*rounded)
    for ours, right in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == dtype
        error = np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(right)))
        assert error <= rtol * np.max(np.abs(right)) + 1e-5, (ours, right)


@mostly_bfloat16
@pytest.mark.parametrize("name", list(SHARED))
def test_gradients_of_many_equal_examples_are_their_mean(name, dtype):
    layer, x = SHARED[name]
    args = params_of(layer), x
    check_gradient(layers.batched(layer), args, dtype, rtol=0.03)


@mostly_bfloat16
@pytest.mark.parametrize("name", list(POSITIONS))
def test_gradients_of_many_equal_positions_are_their_mean(name, dtype):
    layer, x = POSITIONS[name]
    check_gradient(layer.apply, (params_of(layer), x), dtype, rtol=0.05)


@pytest.mark.parametrize(
    "pool",
    [
        layers.global_max_pool,
        layers.global_avg_pool,
        lambda x: layers.max_pool(400, stride=1).apply((), x),
        lambda x: layers.avg_pool(400, stride=1).apply((), x),
    ],
)
@pytest.mark.parametrize("peak", [0.0, 1.0])
def test_pools_share_their_gradient_out_exactly(pool, peak):
    x = np.zeros((800, 1))
    x[400] = peak
    check_gradient(lambda x, _: pool(x), (x, np.zeros(())), jnp.bfloat16, rtol=0.01)


@narrow
def test_rows_of_a_table_sum_their_tangents_and_cotangents_wide(dtype):
    table, tokens = jnp.ones((3, 2), dtype), jnp.asarray(TOKENS)

    def mean(table):
        return jnp.sum(numerics.rows(table, tokens).astype(jnp.float32)) / N

    expected = [[0, 0], [1, 1], [0, 0]]
    slope, forward = jax.jit(lambda t: (jax.grad(mean)(t), jax.jacfwd(mean)(t)))(table)
    np.testing.assert_array_equal(slope, np.array(expected, dtype))
    np.testing.assert_allclose(np.asarray(forward, np.float32), expected)
    square = jax.grad(lambda t: mean(t) ** 2)
    hessian_product = jax.jit(lambda t: jax.jvp(square, (t,), (jnp.ones_like(t),))[1])(
        table
    )
    expected = 4 * np.array(expected)  # of (a + b)**2, along a = b = 1
    np.testing.assert_allclose(np.asarray(hessian_product, np.float32), expected)


@narrow
def test_data_sets_give_their_arrays_a_gradient_that_is_summed_wide(dtype):
    def mean(x):
        data = fg.data.from_arrays({"x": x}, 1)
        draw = jax.vmap(lambda step: data.batch(step)["x"])
        return jnp.sum(draw(jnp.arange(N)).astype(jnp.float32)) / N

    got = jax.jit(jax.grad(mean))(jnp.ones((1, 2), dtype))
    np.testing.assert_array_equal(got, np.ones((1, 2), dtype))


def test_a_mean_over_many_batches_is_wide():
    mean = curvature.over(lambda w, x: w * jnp.mean(x))
    batches = [jnp.ones(2, jnp.bfloat16)] * 512
    w = jnp.ones((), jnp.bfloat16)
    value, slope = jax.jit(jax.value_and_grad(mean))(w, batches)
    np.testing.assert_array_equal((value, slope), (1, 1))
    assert slope.dtype == jnp.bfloat16


def test_dropped_entries_do_not_affect_the_gradient_of_the_rate():
    x = jnp.full(64, jnp.inf)

    def total(rate):
        y = layers.dropout(rate).apply((), x, key=jax.random.key(0))
        return jnp.sum(jnp.where(jnp.isinf(y), 0, y))

    assert jax.grad(total)(1.0) == 0

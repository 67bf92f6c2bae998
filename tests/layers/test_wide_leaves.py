"""Single leaves may be wider than x and the other leaves: products stay narrow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_products import operand_dtypes, products_of

import fngrad.layers as layers
import fngrad.tree as tree

# name: (layer that keeps the last axis, shape of one example)
LAYERS = {
    "linear": (layers.linear(4, 4), (2, 4)),
    "conv": (layers.conv(4, 4, (3,)), (5, 4)),
    "conv_transpose": (layers.conv_transpose(4, 4, (3,), stride=2), (5, 4)),
    "prelu": (layers.prelu(4), (3, 4)),
    "layer_norm": (layers.layer_norm(4), (3, 4)),
    "rms_norm": (layers.rms_norm(4), (3, 4)),
    "group_norm": (layers.group_norm(4, 2), (3, 4)),
    "batch_norm": (layers.batch_norm(4), (3, 4)),
    "attention": (layers.multi_head_attention(4, 2, causal=True), (3, 4)),
    "attention without a mask": (layers.multi_head_attention(4, 2), (3, 4)),
    "bidirectional": (layers.bidirectional(layers.gru, 4, 2), (5, 4)),
    "gru": (layers.gru(4, 4), (5, 4)),
    "lstm": (layers.lstm(4, 4), (5, 4)),
    "gru_cell": (layers.gru_cell(4, 4), (4,)),
    "lstm_cell": (layers.lstm_cell(4, 4), (4,)),
    "positions": (layers.positional_embedding(6, 4), (5, 4)),
    "residual": (layers.residual(layers.linear(4, 4)), (4,)),
}
NARROW, WIDE = jnp.bfloat16, jnp.float32
HEAD = layers.linear(4, 2)


@functools.cache
def drawn(layer):
    """Return parameters and a model state, which is () where there is none."""
    made = jax.jit(layer.init)(0)
    return made if isinstance(layer, layers.StatefulLayer) else (made, ())


def zeros(layer):
    """Return the same as `drawn`, zero: nothing to compile."""
    made = tree.zeros_like(jax.eval_shape(layer.init, 0))
    return made if isinstance(layer, layers.StatefulLayer) else (made, ())


def batch_of(name):
    x = jax.random.normal(jax.random.key(1), (3, *LAYERS[name][1]))
    return x.astype(NARROW)


def forward(name, params, state, x):
    """Return y of a batch, and the new state of every example."""
    layer, _ = LAYERS[name]

    def one(x):
        if isinstance(layer, layers.StatefulLayer):
            return layer.apply(params, state, x, key=jax.random.key(0))
        return layer.apply(params, x), state

    return jax.vmap(one, axis_name="batch")(x)


def with_one_wide(params, wide_path):
    return tree.map_with_path(
        lambda path, p: p if path == wide_path else p.astype(NARROW), params
    )


CASES = [
    (name, path)
    for name, (layer, _) in LAYERS.items()
    for path in (None, *tree.leaf_paths(zeros(layer)[0]))
]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_products_with_and_after_a_wide_leaf(name, path):
    params, state = zeros(LAYERS[name][0])
    params, x = with_one_wide(params, path), batch_of(name)
    head = with_one_wide(zeros(HEAD)[0], None)

    def logits(params, head):
        y, _ = forward(name, params, state, x)
        return layers.batched(HEAD)(head, y)

    def total(params, head):
        return jnp.sum(logits(params, head).astype(WIDE))

    last = products_of(logits, params, head)[-1:]
    assert operand_dtypes(last) == {"bfloat16"}
    is_of_a_product = str(path).endswith("weight") and name != "positions"
    if not is_of_a_product:
        both = products_of(jax.grad(total, (0, 1)), params, head)
        assert operand_dtypes(both) == {"bfloat16"}
    grads = jax.eval_shape(jax.grad(total, (0, 1)), params, head)
    assert tree.mismatch((params, head), grads) is None


@pytest.mark.parametrize(
    "name",
    ["layer_norm", "rms_norm", "group_norm", "batch_norm", "positions", "prelu"],
)
def test_what_scales_and_shifts_keeps_the_dtype_of_x(name):
    params, state = drawn(LAYERS[name][0])
    x = batch_of(name)
    y, new_state = jax.jit(functools.partial(forward, name))(params, state, x)
    assert y.dtype == NARROW
    for leaf in jax.tree.leaves(new_state):
        assert leaf.dtype == WIDE
    right, _ = jax.jit(functools.partial(forward, name))(params, state, x.astype(WIDE))
    assert right.dtype == WIDE
    np.testing.assert_array_equal(y, right.astype(NARROW))  # it is rounded once


@pytest.mark.parametrize("name", ["gru_cell", "lstm_cell"])
def test_a_cell_keeps_the_dtype_of_its_state(name):
    params, state = zeros(LAYERS[name][0])
    narrow = with_one_wide(params, None)
    y, new_state = jax.eval_shape(
        functools.partial(forward, name), narrow, state, batch_of(name)
    )
    assert y.dtype == NARROW
    assert {leaf.dtype for leaf in jax.tree.leaves(new_state)} == {jnp.dtype(WIDE)}


def test_a_wide_table_makes_wide_vectors_and_products_stay_narrow():
    table = layers.embedding(5, 4)
    params = zeros(table)[0], with_one_wide(zeros(HEAD)[0], None)

    def total(params, tokens):
        vectors = table.apply(params[0], tokens)
        assert vectors.dtype == WIDE
        return jnp.sum(HEAD.apply(params[1], vectors).astype(WIDE))

    both = products_of(jax.grad(total), params, jnp.array([1, 4]))
    assert operand_dtypes(both) == {"bfloat16"}


def test_a_residual_branch_takes_the_dtype_of_x():
    x = jnp.ones(4, NARROW)
    y = layers.residual(lambda x: x.astype(WIDE) + 2**-9).apply((), x)
    assert y.dtype == NARROW
    ints = layers.residual(jnp.square).apply((), jnp.array([1, 3]))
    np.testing.assert_array_equal(ints, [2, 12])

"""What holds for every layer: batches, jit, dtypes, abstract init, finite gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree

LAYERS = {
    "linear": (layers.linear(4, 3), (2, 4)),
    "dropout": (layers.dropout(0.5), (4,)),
    "conv": (layers.conv(2, 3, 3), (4, 4, 2)),
    "conv over a sequence": (layers.conv(2, 3, (3,)), (5, 2)),
    "conv_transpose": (layers.conv_transpose(2, 3, 3, stride=2), (3, 3, 2)),
    "prelu": (layers.prelu(4), (3, 4)),
    "drop_path": (layers.drop_path(0.5), (4,)),
    "adaptive_avg_pool": (layers.adaptive_avg_pool(2), (5, 4, 2)),
    "adaptive_max_pool": (layers.adaptive_max_pool(2), (5, 4, 2)),
    "max_pool": (layers.max_pool(2), (4, 4, 2)),
    "avg_pool": (layers.avg_pool(2, padding="SAME"), (5, 5, 2)),
    "layer_norm": (layers.layer_norm(4), (3, 4)),
    "rms_norm": (layers.rms_norm(4), (3, 4)),
    "group_norm": (layers.group_norm(4, 2), (3, 4)),
    "attention": (layers.multi_head_attention(4, 2, causal=True), (3, 4)),
    "attention by position": (
        layers.multi_head_attention(
            4, 2, num_kv_heads=1, window=2, rotary=layers.rotary(), alibi=True
        ),
        (3, 4),
    ),
    "swiglu": (layers.swiglu(4, 3), (3, 4)),
    "read_out": (layers.read_out(5, 4), (3, 4)),
    "gru": (layers.gru(3, 4), (5, 3)),
    "lstm": (layers.lstm(3, 4), (5, 3)),
    "bidirectional": (layers.bidirectional(layers.gru, 3, 2), (5, 3)),
    "weight_norm": (layers.weight_norm(layers.linear(4, 3)), (2, 4)),
    "positions": (layers.positional_embedding(6, 4), (5, 4)),
    "parallel": (
        layers.parallel(a=layers.linear(4, 3), b=layers.linear(4, 3), combine=sum),
        (4,),
    ),
    "residual": (layers.residual(layers.linear(4, 4)), (4,)),
    "mlp": (models.mlp((4, 5, 3)), (4,)),
    "cnn": (models.cnn((4, 4, 1), 3, channels=(2,), hidden_size=4), (4, 4, 1)),
}
every_layer = pytest.mark.parametrize("name", list(LAYERS))


def params_of(name):
    return facts_of(name)["params"]


def shapes_of(name):
    return jax.eval_shape(LAYERS[name][0].init, 0)


def examples_of(name):
    return jax.random.normal(jax.random.key(1), (2, *LAYERS[name][1]))


@functools.cache
def facts_of(name):
    """Compute all that the tests ask of a layer in one program: one compilation."""
    layer = LAYERS[name][0]
    together = layers.batched(layer)

    def total(params, x):
        return jnp.sum(layer.apply(params, x) * 3)

    def facts(key, x):
        params = layer.init(key)
        narrow = tree_cast(jnp.bfloat16, (params, x))
        return {
            "params": params,
            "together": together(params, x),
            "alone": jnp.stack([layer.apply(params, one) for one in x]),
            "narrow": together(*narrow),
            "back": together(*tree_cast(jnp.float32, narrow)),
            "at zero": jax.grad(total, (0, 1))(params, jnp.zeros_like(x[0])),
        }

    return jax.jit(facts)(jax.random.key(0), examples_of(name))


def tree_cast(dtype, values):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), values)


@every_layer
def test_a_batch_equals_its_examples_one_by_one(name):
    facts = facts_of(name)
    np.testing.assert_allclose(facts["together"], facts["alone"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "attention"])
def test_compiled_equals_eager(name):
    layer, params, x = LAYERS[name][0], params_of(name), examples_of(name)[0]
    expected = facts_of(name)["alone"][0]
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-5, atol=1e-6)


@every_layer
def test_bfloat16_stays_bfloat16_and_close(name):
    facts = facts_of(name)
    assert facts["narrow"].dtype == jnp.bfloat16
    got = np.asarray(facts["narrow"], np.float32)
    np.testing.assert_allclose(got, facts["back"], rtol=0.03, atol=0.03)


@every_layer
def test_gradients_at_zero_are_finite(name):
    chex.assert_tree_all_finite(facts_of(name)["at zero"])


@every_layer
def test_init_is_abstract_and_strong_float32(name):
    layer, params = LAYERS[name][0], params_of(name)
    assert tree.mismatch(jax.eval_shape(layer.init, jax.random.key(0)), params) is None
    assert tree.mismatch(jax.eval_shape(layer.init, 0), params) is None
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.float32
        assert not leaf.weak_type


def test_an_int_is_a_key():
    layer = LAYERS["linear"][0]
    chex.assert_trees_all_equal(layer.init(0), layer.init(jax.random.key(0)))


@every_layer
def test_outputs_are_strong_float32(name):
    layer, shape = LAYERS[name]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    y = jax.eval_shape(layer.apply, shapes_of(name), x)
    assert y.dtype == jnp.float32
    assert not y.weak_type


@every_layer
def test_integers_are_refused(name):
    layer, shape = LAYERS[name]
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    with pytest.raises(ValueError, match="need x with a float dtype, got uint8"):
        jax.eval_shape(layer.apply, shapes_of(name), pixels)


@pytest.mark.usefixtures("x64")
def test_parameters_and_states_take_the_default_float_dtype():
    model = layers.serial(layers.linear(2, 2), layers.batch_norm(2))
    made = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float64)}


def _shrunk(params):
    paths = tree.leaf_paths(params)
    last = list(paths)[-1]
    return tree.map_with_path(lambda p, x: x[:1] if p == last else x, params)


def _without(params):
    """Leave the first leaf out, and its dict if that is then empty."""
    name, inner = next(iter(params.items()))
    rest = {key: value for key, value in params.items() if key != name}
    return rest | {name: _without(inner)} if isinstance(inner, dict) else rest


@pytest.mark.parametrize("change", [_shrunk, _without, lambda params: (params, ())])
@pytest.mark.parametrize(
    "name",
    [
        *("linear", "conv", "conv_transpose", "prelu", "layer_norm", "group_norm"),
        *("attention", "swiglu", "read_out", "gru", "lstm"),
    ],
)
def test_parameters_of_other_shapes_are_refused(name, change):
    layer, shape = LAYERS[name]
    params = change(jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), shapes_of(name)))
    model = layers.serial(block=layer)
    with pytest.raises(layers.LayerError, match="block: need parameters of the shapes"):
        model.apply({"block": params}, np.ones(shape, np.float32))

"""A model's init as one program: the same bits, and where there is no program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import fngrad.layers as layers
import fngrad.models as models
import fngrad.numerics as numerics
from fngrad.layers import initializers
from fngrad.layers.one_program import plain

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles

DRAWN = [
    *("he_normal", "he_uniform", "glorot_normal", "lecun_uniform", "orthogonal"),
    *("normal", "truncated_normal", "uniform", "zeros", "ones"),
]
MODELS = {
    "mlp": lambda: models.mlp((4, 5, 3)),
    "cnn": lambda: models.cnn((4, 4, 1), 3, channels=(2, 3), hidden_size=8),
    "rnn": lambda: models.rnn(3, [4], 2, recurrent=layers.lstm),
    "logistic": lambda: models.logistic(4, 3),
    "embedding": lambda: layers.embedding(5, 3),
    "attention": lambda: layers.multi_head_attention(4, 2),
    "stateful": lambda: layers.serial(layers.linear(4, 3), layers.batch_norm(3)),
    "named": lambda: layers.serial(a=layers.linear(4, 3), b=layers.layer_norm(3)),
    "cell": lambda: layers.gru_cell(3, 4),
    "scaled": lambda: layers.linear(
        *(7, 5),
        weight_init=initializers.he_normal(0.37),
        bias_init=initializers.normal(0.3),
    ),
    **{
        name: lambda name=name: layers.linear(
            7, 5, weight_init=getattr(initializers, name)()
        )
        for name in DRAWN
    },
}


def assert_same_bits(made, expected):
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        assert (type(x), x.dtype, x.shape) == (type(y), y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def counted(init):
    """Return a layer of this init, and the list of the keys that it was called with."""
    calls = []

    def noted(key):
        calls.append(key)
        return init(key)

    return layers.Layer(noted, lambda params, x, *, key=None: x), calls


@pytest.mark.parametrize("name", MODELS)
def test_one_program_draws_the_bits_of_its_operations(name):
    model = MODELS[name]()
    assert_same_bits(model.init(3), plain(model.init)(3))


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**40, -3, np.uint8(7)])
def test_a_seed_is_the_key_of_all_its_bits(seed):
    model, calls = counted(lambda key: jax.random.bits(key, (2,)))
    made = model.init(seed)
    assert_same_bits(made, jax.random.bits(numerics.key(seed), (2,)))
    assert len(calls) == 1  # traced once


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_typed_key_may_be_of_any_implementation(impl):
    key = jax.random.key(3, impl=impl)
    model = models.mlp((4, 5, 3))
    assert_same_bits(model.init(key), plain(model.init)(key))


def test_a_layer_is_traced_once_for_all_keys():
    model, calls = counted(lambda key: jax.random.normal(key, (2,)))
    first, second = model.init(0), model.init(1)
    assert model.init(jax.random.key(0)).tolist() == first.tolist() != second.tolist()
    assert len(calls) == 1


def test_inside_another_program_nothing_is_a_program_of_its_own():
    model = models.mlp((4, 5, 3))
    expected = model.init(2)
    assert_same_bits(jax.jit(model.init)(jax.random.key(2)), expected)
    assert_same_bits(jax.jit(lambda: model.init(2))(), expected)
    both = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    one = model.init(jax.random.split(jax.random.key(0), 2)[1])
    assert_same_bits(jax.tree.map(lambda x: x[1], both), one)
    shapes = jax.eval_shape(model.init, 0)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    text = str(jax.make_jaxpr(model.init)(jax.random.key(0)))
    assert "of_arrays" not in text


def test_double_precision_is_another_program_of_the_layer(x64):
    model = models.mlp((4, 5, 3))
    made = model.init(0)
    assert made["layers"][0]["weight"].dtype == jnp.float64
    assert_same_bits(made, plain(model.init)(0))


def test_an_init_of_numpy_gets_what_the_caller_passed():
    def init(seed):
        return {"weight": np.random.default_rng(seed).normal(size=2)}

    model, calls = counted(init)
    assert_same_bits(model.init(5), init(5))
    assert_same_bits(model.init(6), init(6))
    assert calls[-2:] == [5, 6]  # the seed, not a key
    assert len(calls) == 3  # it was traced for the first of them alone


def test_what_is_no_array_of_jax_stays_as_it_is():
    made = layers.Layer(
        lambda key: {"scale": 2.0, "name": "a", "table": np.arange(3)},
        lambda params, x, *, key=None: x,
    ).init(0)
    assert made["scale"] == 2.0
    assert made["name"] == "a"
    assert isinstance(made["table"], np.ndarray)


def test_a_layer_of_numpy_may_be_part_of_a_model():
    own = layers.Layer(
        lambda key: {"shift": np.asarray(jax.random.key_data(key)).astype(np.float32)},
        lambda params, x, *, key=None: x,
    )
    model = layers.serial(layers.linear(2, 3), own)
    made = model.init(1)
    assert_same_bits(made, plain(model.init)(1))


def test_an_error_of_init_is_raised_as_it_is():
    def init(key):
        raise LookupError("no such weights")

    with pytest.raises(LookupError, match="no such weights"):
        layers.Layer(init, lambda params, x, *, key=None: x).init(0)


def test_many_equal_leaves_are_drawn_by_themselves():
    draw = functools.partial(jax.random.normal, shape=(3,))
    model, calls = counted(lambda key: [draw(k) for k in jax.random.split(key, 8)])
    model.init(0)
    model.init(1)
    assert [isinstance(key, Tracer) for key in calls] == [True, False, False]


def test_trained_weights_are_returned_as_they_are():
    weight = jnp.ones((300, 300))
    model, calls = counted(lambda key: {"weight": weight})
    assert model.init(0)["weight"] is weight
    assert model.init(1)["weight"] is weight
    assert [isinstance(key, Tracer) for key in calls] == [True, False, False]

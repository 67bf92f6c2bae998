"""serial, parallel, residual: paths, keys, state, messages."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
import fngrad.tree as tree
from fngrad.layers import dropout, linear, parallel, residual, serial

# Adds its own parameter and noise of its key, so that a test sees both.
noisy = layers.Layer(
    init=lambda key: {"shift": jax.random.normal(key)},
    apply=lambda params, x, *, key=None: (
        x + params["shift"] if key is None else x + jax.random.normal(key)
    ),
)
# Counts its calls in training and adds the count.
counter = layers.StatefulLayer(
    init=lambda key: ({"shift": jax.random.normal(key)}, {"calls": jnp.float32(0)}),
    apply=lambda params, state, x, *, key=None: (
        x + state["calls"],
        state if key is None else {"calls": state["calls"] + 1},
    ),
)


def test_serial_applies_in_order():
    model = serial(lambda x: x + 1, lambda x: x * 10)
    assert model.apply((), 2.0) == 30.0


def test_serial_of_nothing_is_the_identity():
    assert serial().apply(serial().init(jax.random.key(0)), 2.0) == 2.0


def test_functions_and_parameterless_layers_move_no_leaf():
    bare = serial(linear(4, 3), linear(3, 2))
    dressed = serial(
        layers.flatten, linear(4, 3), jax.nn.relu, serial(dropout(0.1)), linear(3, 2)
    )
    key = jax.random.key(0)
    expected, got = tree.leaf_paths(bare.init(key)), tree.leaf_paths(dressed.init(key))
    assert list(expected) == [
        "layers/0/bias",
        "layers/0/weight",
        "layers/1/bias",
        "layers/1/weight",
    ]
    assert list(got) == list(expected)
    for path in expected:
        np.testing.assert_array_equal(got[path], expected[path])


def test_names_are_the_paths():
    model = serial(body=linear(2, 3), act=jax.nn.relu, head=residual(linear(3, 3)))
    paths = list(tree.leaf_paths(jax.eval_shape(model.init, jax.random.key(0))))
    assert paths == ["body/bias", "body/weight", "head/bias", "head/weight"]


def test_named_layers_apply_in_the_order_given():
    model = serial(z=linear(2, 3), a=linear(3, 1))
    params = model.init(jax.random.key(0))
    x = jnp.ones(2)
    expected = (x @ params["z"]["weight"]) @ params["a"]["weight"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-6)


def test_children_get_different_parameters():
    params = serial(noisy, noisy, noisy).init(jax.random.key(0))
    assert len(set(map(float, jax.tree.leaves(params)))) == 3


def test_children_get_different_keys():
    model = parallel(*[noisy] * 3)
    params = model.init(jax.random.key(0))
    assert len(set(map(float, model.apply(params, 0.0, key=jax.random.key(0))))) == 3


def test_a_childs_key_does_not_depend_on_later_ones():
    short, long = serial(noisy, noisy), serial(noisy, noisy, noisy)
    key = jax.random.key(0)
    few, many = short.init(key)["layers"], long.init(key)["layers"]
    assert few == many[:2]
    first = parallel(noisy).apply({"layers": few[:1]}, 0.0, key=key)
    both = parallel(noisy, noisy).apply({"layers": few}, 0.0, key=key)
    assert first == both[:1]


def test_no_key_means_none_for_every_child():
    model = serial(noisy, residual(noisy))
    params = model.init(jax.random.key(0))
    first, second = (layer["shift"] for layer in params["layers"])
    expected = 2 * (1.0 + first) + second
    np.testing.assert_allclose(model.apply(params, 1.0), expected, rtol=1e-6)


def test_parallel_combines_what_each_gives():
    model = parallel(jnp.sin, jnp.cos)
    x = jnp.ones(2)
    assert isinstance(model.apply((), x), tuple)
    added = parallel(jnp.sin, jnp.cos, combine=sum).apply((), x)
    np.testing.assert_allclose(added, np.sin(1) + np.cos(1) + np.zeros(2), rtol=1e-6)


def test_residual_keeps_the_paths_of_its_layer():
    params = residual(linear(2, 2)).init(jax.random.key(0))
    assert sorted(params) == ["bias", "weight"]


def test_residual_adds_the_input():
    assert residual(lambda x: 2 * x).apply((), 3.0) == 9.0


def test_residual_needs_the_same_shape():
    model = residual(linear(4, 3))
    with pytest.raises(ValueError, match=r"keeps the shape.*got \(3,\) from \(4,\)"):
        model.apply(model.init(jax.random.key(0)), jnp.ones(4))


@pytest.mark.parametrize(
    ("model", "is_stateful"),
    [
        (serial(noisy, jnp.sin), False),
        (serial(noisy, counter), True),
        (serial(a=serial(counter)), True),
        (parallel(noisy), False),
        (parallel(jnp.sin, counter), True),
        (residual(noisy), False),
        (residual(counter), True),
    ],
)
def test_a_combinator_is_stateful_where_a_child_is(model, is_stateful):
    assert isinstance(model, layers.StatefulLayer) == is_stateful
    assert isinstance(model, layers.Layer) != is_stateful


def test_state_has_the_paths_of_the_parameters_and_is_carried():
    model = serial(jnp.abs, noisy, residual(serial(a=counter, b=counter)))
    params, state = model.init(jax.random.key(0))
    assert list(tree.leaf_paths(params)) == [
        "layers/0/shift",
        "layers/1/a/shift",
        "layers/1/b/shift",
    ]
    assert list(tree.leaf_paths(state)) == ["layers/1/a/calls", "layers/1/b/calls"]
    _, same = model.apply(params, state, 0.0)
    assert list(tree.leaf_paths(same).values()) == [0.0, 0.0]
    _, moved = model.apply(params, state, 0.0, key=jax.random.key(0))
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert list(tree.leaf_paths(moved).values()) == [1.0, 1.0]


def test_parallel_carries_each_childs_state():
    model = parallel(counter, noisy, counter)
    params, state = model.init(jax.random.key(0))
    outputs, moved = model.apply(params, state, 0.0, key=jax.random.key(0))
    assert len(outputs) == 3
    assert list(tree.leaf_paths(moved)) == ["layers/0/calls", "layers/2/calls"]
    assert model.apply(params, moved, 0.0)[0][0] == 1.0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            serial(linear(63, 8), jax.nn.relu, linear(8, 8), linear(64, 2)),
            "layers/2: need x with last axis 64, got shape (8,)",
        ),
        (
            serial(linear(63, 8), serial(jnp.sin, linear(9, 9))),
            "layers/1/layers/0: need x with last axis 9, got shape (8,)",
        ),
        (serial(body=linear(9, 8)), "body: need x with last axis 9, got shape (63,)"),
        (
            serial(linear(63, 8), layers.max_pool((2, 2))),
            "entry 1: need x of shape (height, width, channels), got shape (8,)",
        ),
        (
            parallel(linear(63, 1), linear(62, 1)),
            "layers/1: need x with last axis 62, got shape (63,)",
        ),
    ],
)
def test_a_message_begins_with_the_layers_path(model, message):
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        jax.eval_shape(model.apply, params, jnp.ones(63))


@pytest.mark.parametrize("make", [serial, parallel])
def test_layers_come_by_position_or_by_name(make):
    with pytest.raises(ValueError, match=r"need layers by position or by name"):
        make(noisy, a=noisy)


def test_parallel_needs_a_layer():
    with pytest.raises(ValueError, match="at least one layer in parallel"):
        parallel()


@pytest.mark.parametrize("make", [serial, parallel, residual])
def test_an_entry_that_is_not_a_layer_is_refused(make):
    with pytest.raises(TypeError, match="need a layer or a function of x, got int: 3"):
        make(3)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (serial(noisy, noisy), {"layers": [{"shift": 0.0}]}),
        (serial(noisy), {"shift": 0.0}),
        (serial(noisy), ()),
        (serial(a=noisy), {"layers": [{"shift": 0.0}]}),
        (serial(a=noisy), {"a": {"shift": 0.0}, "b": {"shift": 0.0}}),
    ],
)
def test_parameters_of_another_model_are_refused(model, params):
    with pytest.raises(ValueError, match="need parameters that this model's init made"):
        model.apply(params, 0.0)


def test_a_model_state_of_another_model_is_refused():
    model = serial(counter)
    params, _ = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="need model state that this model's init"):
        model.apply(params, (), 0.0)


def test_the_error_for_a_forgotten_model_state_names_the_remedy():
    model = serial(noisy, counter)
    made = model.init(jax.random.key(0))
    remedy = "params, model_state = model.init(key)"
    with pytest.raises(ValueError, match="got a tuple of 2 entries; ") as caught:
        model.apply(made, (), 0.0)
    assert remedy in str(caught.value)
    with pytest.raises(ValueError, match="got a tuple of 0 entries; ") as caught:
        model.apply(made[0], (), 0.0)
    assert remedy in str(caught.value)
    assert "PyTreeDef" not in str(caught.value)


def test_the_error_names_what_was_given_instead_of_parameters():
    with pytest.raises(ValueError, match="under 'layers', got a dict with the entries"):
        serial(noisy).apply({"shift": 0.0}, 0.0)
    with pytest.raises(
        ValueError, match=r"need parameters .* got 1 entries under"
    ) as e:
        serial(noisy, noisy).apply({"layers": [{"shift": 0.0}]}, 0.0)
    assert "model_state" not in str(e.value)

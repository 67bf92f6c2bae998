"""Chains, names, reports, and what is refused at `init` and `update`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_groups import GRADS, PARAMS, apply, paths

import fngrad as fg
import fngrad.tree as tree
from fngrad.optimizers import adam, sgd
from fngrad.transforms.core import (
    Transform,
    apply_updates,
    chain,
    named,
)
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.scaling import scale, scale_by_learning_rate


def test_a_chain_applies_its_parts_in_order():
    updates = apply(chain(scale(3.0), lambda_transform(lambda u: u + 1.0)))
    np.testing.assert_array_equal(updates["head"]["bias"], [4.0])


def lambda_transform(fn):
    return Transform(
        init=lambda params: (),
        update=lambda updates, state, params: (jax.tree.map(fn, updates), state),
    )


def test_an_unnamed_transform_is_named_after_its_maker():
    def count_up():
        def init(params):
            return {"n": jnp.zeros(())}

        return Transform(init, lambda u, s, p: (u, {"n": s["n"] + 1}))

    assert paths(chain(count_up())) == ["count_up/n"]


def test_two_stateful_parts_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two parts with state are called 'trace'"):
        chain(trace(0.9), trace(0.99)).init(PARAMS)
    both = chain(named("fast", trace(0.9)), named("slow", trace(0.99)))
    assert {path.split("/")[0] for path in paths(both)} == {"fast", "slow"}


@pytest.mark.parametrize("name", ["", "a/b"])
def test_an_empty_name_or_one_with_a_slash_is_refused(name):
    with pytest.raises(ValueError, match="need a name"):
        named(name, trace(0.9))


def test_a_named_chain_is_one_part():
    inner = named("inner", chain(trace(0.9), scale_by_learning_rate(0.1)))
    assert set(inner.init(PARAMS)) == {"inner"}
    assert set(inner.init(PARAMS)["inner"]) == {"trace", "scale_by_learning_rate"}
    expected = apply(chain(trace(0.9), scale_by_learning_rate(0.1)))
    chex.assert_trees_all_equal(apply(inner), expected)


def test_a_value_that_is_not_a_transform_is_refused():
    with pytest.raises(TypeError, match=r"need a transform.*got int"):
        chain(3)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ValueError, "at least one leaf"),
        ({"a": {"n": jnp.arange(3)}}, TypeError, "got int32 at 'a/n'"),
        ({"a": jax.nn.relu}, TypeError, r"got jit|got PjitFunction|got .* at 'a'"),
    ],
)
def test_bad_parameters_are_refused_at_init(params, error, message):
    with pytest.raises(error, match=message):
        sgd(0.1).init(params)


def test_functions_among_the_parameters_are_refused_with_a_hint_to_split():
    with pytest.raises(TypeError, match=r"fngrad\.split"):
        sgd(0.1).init({"w": jnp.ones(1), "f": lambda x: x})


def test_gradients_that_do_not_fit_are_refused_by_path():
    optimizer = sgd(0.1)
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"need gradients.*'head/bias' is missing"):
        optimizer.update({"embed": GRADS["embed"], "head": {}}, state, PARAMS)
    wrong = tree.map_with_path(
        lambda path, g: g[None] if path == "head/bias" else g, GRADS
    )
    with pytest.raises(ValueError, match=r"'head/bias' needs shape \(1,\)"):
        optimizer.update(wrong, state, PARAMS)
    wrong = tree.map_with_path(
        lambda path, g: g.astype(complex) if path == "head/bias" else g, GRADS
    )
    with pytest.raises(ValueError, match=r"real gradient .*complex64 at 'head/bias'"):
        optimizer.update(wrong, state, PARAMS)


def test_an_integer_gradient_of_a_float_leaf_is_refused():
    optimizer = sgd(0.1)
    wrong = jax.tree.map(lambda g: g.astype(int), GRADS)
    with pytest.raises(TypeError, match=r"float array as gradient, got int32"):
        optimizer.update(wrong, optimizer.init(PARAMS), PARAMS)


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="need one path per leaf, got 'a/b' twice"):
        sgd(0.1).init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}, "c": jnp.ones(1)})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sgd(0.1), "'trace/momentum/embed/weight' is missing|'trace/.*' is missing"),
        (adam(0.1), "'scale_by_adam/.*' is not expected"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(other, message):
    optimizer = sgd(0.1, momentum=0.9)
    with pytest.raises(ValueError, match=message):
        optimizer.update(GRADS, other.init(PARAMS), PARAMS)


def test_a_state_of_another_dtype_or_shape_is_refused():
    optimizer = sgd(0.1, momentum=0.9)
    state = optimizer.init(PARAMS)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["trace"])
    with pytest.raises(ValueError, match="needs dtype"):
        optimizer.update(GRADS, state | {"trace": narrow}, PARAMS)
    short = jax.tree.map(lambda x: x[:1] if x.ndim else x, state["trace"])
    with pytest.raises(ValueError, match="needs shape"):
        optimizer.update(GRADS, state | {"trace": short}, PARAMS)


def test_updates_are_added_in_the_wider_dtype():
    params = jnp.array([256.0], jnp.bfloat16)
    update = jnp.array([0.75], jnp.float32)  # half a unit in the last place and more
    moved = apply_updates(params, jnp.array([1.5], jnp.float32))
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved.astype(jnp.float32), [258.0])
    np.testing.assert_array_equal(apply_updates(params, update), params)
    with pytest.raises(ValueError, match="need updates shaped like the parameters"):
        apply_updates({"a": params}, {"b": params})


def test_foreign_code_receives_gradients_in_the_dtype_of_its_parameters():
    seen = []

    class Foreign:
        def init(self, params):
            return jax.tree.map(jnp.zeros_like, params)

        def update(self, updates, state, params):
            seen.append(updates.dtype)
            return updates, state + updates

    params = jnp.ones(2, jnp.bfloat16)
    optimizer = chain(scale(1.0), Foreign())
    state = optimizer.init(params)
    _, state = optimizer.update(params.astype(jnp.float32), state, params)
    assert seen == [jnp.bfloat16]
    assert state["Foreign"].dtype == jnp.bfloat16


@pytest.mark.parametrize("params", [jnp.ones(2), {"a": jnp.ones(2)}, [jnp.ones(2)] * 2])
@pytest.mark.parametrize("is_bare", [True, False])
def test_an_update_that_returns_no_state_is_refused_by_name(params, is_bare):
    def scale_by_half():
        def update(updates, state, params):
            return tree.scale(0.5, updates)

        return Transform(lambda params: (), update)

    own = scale_by_half()
    optimizer = own if is_bare else chain(own, sgd(0.1))
    step = fg.make_step(lambda params, batch: tree.vdot(params, params), optimizer)
    state = fg.init_state(params, optimizer, key=0)
    message = r"need \(updates, state\) from the update of 'scale_by_half', got "
    with pytest.raises(TypeError, match=message):
        step(state, ())

"""The place of weight decay in a chain decides which kind of decay it is."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import REGISTRY, adam, adamw, sgd
from fngrad.transforms.core import chain
from fngrad.transforms.decay import (
    add_cautious_weight_decay,
    add_decayed_weights,
    proximal_decay,
)
from fngrad.transforms.scaling import scale, scale_by_learning_rate

PARAMS = {"weight": jnp.array([2.0, -4.0]), "bias": jnp.array([3.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def first_update(transform, updates=ZEROS, params=PARAMS):
    return transform.update(updates, transform.init(params), params)[0]


def test_the_parameters_are_added():
    got = first_update(add_decayed_weights(0.5), {**ZEROS, "bias": jnp.ones(1)})
    np.testing.assert_array_equal(got["weight"], [1.0, -2.0])
    np.testing.assert_array_equal(got["bias"], [2.5])


@pytest.mark.parametrize(
    "mask",
    [
        "weight",
        {"weight": True, "bias": False},
        lambda path, leaf: leaf.size > 1,
    ],
    ids=["glob", "tree", "function"],
)
def test_leaves_that_are_not_selected_do_not_decay(mask):
    gradient = {**ZEROS, "bias": jnp.ones(1)}
    got = first_update(add_decayed_weights(0.5, mask), gradient)
    np.testing.assert_array_equal(got["weight"], [1.0, -2.0])
    np.testing.assert_array_equal(got["bias"], [1.0])


def test_a_glob_that_selects_nothing_is_refused():
    with pytest.raises(ValueError, match=r"selects a leaf, got 'wieght'.*'weight'"):
        add_decayed_weights(0.5, "wieght").init(PARAMS)


def test_decay_may_be_a_schedule():
    transform = add_decayed_weights(lambda step: 0.5 * step.astype(jnp.float32))
    state = transform.init(PARAMS)
    seen = []
    for _ in range(3):
        updates, state = transform.update(ZEROS, state, PARAMS)
        seen.append(float(updates["bias"][0]))
    assert seen == [0.0, 1.5, 3.0]


def test_l2_passes_through_adam_and_decoupled_decay_does_not():
    l2 = first_update(chain(add_decayed_weights(1e-2), adam(0.1)))
    decoupled = first_update(adamw(0.1, weight_decay=1e-2))
    np.testing.assert_allclose(l2["weight"], [-0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(decoupled["weight"], [-2e-3, 4e-3], rtol=1e-6)


def test_decay_after_the_learning_rate_does_not_depend_on_it():
    for learning_rate in (0.1, 0.001):
        optimizer = chain(
            scale(2.0),
            scale_by_learning_rate(learning_rate),
            add_decayed_weights(-0.01),
        )
        got = first_update(optimizer)["weight"]
        np.testing.assert_allclose(got, [-0.02, 0.04], rtol=1e-6)


def test_proximal_decay_ignores_leaves_outside_its_mask():
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    decay = proximal_decay(0.5, 1.0, "w")
    updates, _ = decay.update(tree.zeros_like(params), decay.init(params), params)
    np.testing.assert_allclose(updates["w"], -1 / 3 * np.ones(2), rtol=1e-6)
    assert not np.any(updates["b"])
    with pytest.raises(ValueError, match=r"selects a leaf, got 'x'.*\['b', 'w'\]"):
        proximal_decay(0.5, 1.0, "x").init(params)


@pytest.mark.parametrize("factor", [0.5, -0.5])
def test_cautious_decay_is_added_where_it_agrees_with_the_update(factor):
    values = np.array([-2.0, 0.0, 3.0], np.float32)
    u, w = (x.ravel() for x in np.meshgrid(np.sign(factor) * values, values))
    got = first_update(
        add_cautious_weight_decay(factor), jnp.asarray(u), jnp.asarray(w)
    )
    for value, update, weight in zip(got, u, w, strict=True):
        agrees = update * factor * weight >= 0
        assert value == update + factor * weight * agrees


def test_cautious_decay_after_an_optimizer_is_the_one_before_its_learning_rate():
    gradient = {"weight": jnp.array([1.0, 1.0]), "bias": jnp.array([-1.0])}
    decay = add_cautious_weight_decay(0.1, "weight")
    before = first_update(chain(decay, sgd(0.5)), gradient)
    after = first_update(
        chain(sgd(0.5), add_cautious_weight_decay(lambda step: -0.5 * 0.1, "weight")),
        gradient,
    )
    np.testing.assert_allclose(before["weight"], [-0.6, -0.5], rtol=1e-6)
    np.testing.assert_allclose(before["bias"], [0.5])
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_cautious_decay_of_complex_weights_goes_by_the_angle_at_any_size():
    u = jnp.array([1e30 + 1e30j, 1e30 - 1e30j, 1e-30j], jnp.complex64)
    w = jnp.array([1e30, -1e30, -1e-30j], jnp.complex64)
    got = first_update(add_cautious_weight_decay(1.0), u, w)
    want = np.asarray(u) + np.asarray(w) * np.array([1, 0, 0])
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_cautious_decay_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="weight_decay=nan"):
        add_cautious_weight_decay(float("nan"))


def without_decay(name):
    arguments = inspect.signature(REGISTRY[name]).parameters
    return "weight_decay" in arguments and arguments["weight_decay"].default is None


WITHOUT = [name for name in REGISTRY if without_decay(name)]
FORMS = [(name, {}) for name in WITHOUT] + [
    (name, {"momentum": 0.9, "learning_rate_first": first})
    for name in ("sgd", "rmsprop")
    for first in (False, True)
]


@pytest.mark.parametrize(("name", "arguments"), FORMS, ids=str)
def test_every_rule_decays_by_its_learning_rate_where_the_mask_selects(name, arguments):
    optimizer = REGISTRY[name](0.5, weight_decay=0.2, mask="weight", **arguments)
    plain = first_update(REGISTRY[name](0.5, **arguments))
    updates = first_update(optimizer)
    decay = updates["weight"] - plain["weight"]
    np.testing.assert_allclose(decay, [-0.2, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], plain["bias"])


@pytest.mark.parametrize("name", WITHOUT)
def test_a_rule_without_decay_has_no_part_for_it_and_refuses_a_mask(name):
    assert "add_decayed_weights" not in REGISTRY[name](0.5).init(PARAMS)
    assert "add_decayed_weights" in REGISTRY[name](0.5, weight_decay=0.0).init(PARAMS)
    with pytest.raises(ValueError, match="need a weight_decay to mask, got mask='w'"):
        REGISTRY[name](0.5, mask="w")


CONSTRAINED = {"scion", "muonh", "adamh"}  # to a ball or a sphere, in place of decay


def test_every_rule_without_a_constraint_takes_a_weight_decay():
    assert len(WITHOUT) > 12
    for name in REGISTRY.keys() - CONSTRAINED:
        names = {"weight_decay", "weight_decay_rate"}
        assert names & inspect.signature(REGISTRY[name]).parameters.keys(), name

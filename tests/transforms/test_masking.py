"""Groups, masks and frozen leaves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_groups import GRADS, PARAMS, apply, paths

import fngrad.tree as tree
from fngrad.optimizers import adam, sgd
from fngrad.transforms.core import (
    identity,
    report,
)
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.scaling import scale


def test_a_leaf_belongs_to_the_first_group_that_selects_it():
    updates = apply(
        partition(
            [("**/bias", scale(1.0)), ("head/**", scale(2.0)), ("**", scale(3.0))]
        )
    )
    assert float(updates["head"]["bias"][0]) == 1.0
    assert float(updates["head"]["weight"][0, 0]) == 2.0
    assert float(updates["embed"]["weight"][0, 0]) == 3.0


def test_a_partition_is_its_groups_run_apart():
    whole = partition([("embed/**", adam(0.1)), ("**", sgd(0.2, momentum=0.9))])
    apart = [(adam(0.1), "embed"), (sgd(0.2, momentum=0.9), "head")]
    state = whole.init(PARAMS)
    states = [tx.init(PARAMS[part]) for tx, part in apart]
    for scale_of_step in (1.0, -2.0, 0.5):
        grads = tree.scale(scale_of_step, GRADS)
        updates, state = whole.update(grads, state, PARAMS)
        for i, (tx, part) in enumerate(apart):
            expected, states[i] = tx.update(grads[part], states[i], PARAMS[part])
            chex.assert_trees_all_equal(updates[part], expected)


def test_a_leaf_without_a_group_is_refused():
    with pytest.raises(ValueError, match="got none for 'head/bias'"):
        partition([("embed/**", sgd(0.1))]).init(PARAMS)


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="at least one group"):
        partition([])
    with pytest.raises(ValueError, match="need a different glob for each group"):
        partition([("**", sgd(0.1)), ("**", sgd(0.2))])
    with pytest.raises(ValueError, match=r"need a glob that selects a leaf.*'embd/\*'"):
        partition([("embd/*", freeze()), ("**", sgd(0.1))]).init(PARAMS)


@pytest.mark.parametrize(
    "mask",
    [
        "head/**",
        {"embed": False, "head": True},
        lambda path, leaf: path.startswith("head"),
    ],
)
def test_an_unselected_leaf_never_gets_its_raw_gradient(mask):
    updates = apply(masked(sgd(0.1), mask))
    np.testing.assert_array_equal(updates["embed"]["weight"], 0.0)
    np.testing.assert_allclose(updates["head"]["bias"], -0.1)


def test_masked_can_pass_the_other_leaves_on_unchanged():
    updates = apply(masked(scale(5.0), "head/**", otherwise=identity()))
    np.testing.assert_array_equal(updates["embed"]["weight"], 1.0)
    np.testing.assert_array_equal(updates["head"]["bias"], 5.0)


def test_frozen_leaves_keep_no_state_and_are_not_trainable():
    optimizer = partition([("embed/**", freeze()), ("**", adam(0.1))])
    assert not any("embed/weight" in path for path in paths(optimizer))
    assert not optimizer.trainable("embed/weight", None)
    assert optimizer.trainable("head/bias", None)
    assert sgd(0.1).trainable is None


def test_frozen_leaves_may_be_integers():
    params = {"table": jnp.arange(3), "w": jnp.ones(2)}
    optimizer = partition([("table", freeze()), ("**", sgd(0.1))])
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_array_equal(updates["table"], 0)
    assert updates["table"].dtype == params["table"].dtype


def test_the_float0_gradient_of_a_frozen_integer_leaf_is_taken():
    params = {"table": jnp.arange(3), "w": jnp.ones(3)}
    loss = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)
    optimizer = partition([("table", freeze()), ("**", sgd(0.1))])
    updates, _ = optimizer.update(loss(params), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["table"], 0)
    np.testing.assert_allclose(updates["w"], -0.2)


def test_the_report_of_a_group_is_found_under_its_glob():
    optimizer = partition([("embed/**", sgd(0.1)), ("**", sgd(0.2))])
    told = report(optimizer, GRADS, optimizer.init(PARAMS), PARAMS)
    assert {name: round(float(v), 6) for name, v in told.items()} == {
        "partition/embed/**/scale_by_learning_rate/learning_rate": 0.1,
        "partition/**/scale_by_learning_rate/learning_rate": 0.2,
    }

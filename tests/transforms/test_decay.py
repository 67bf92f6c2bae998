"""Weight decay: coupled or decoupled by its position in a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.optimizers import adam, adamw
from fngrad.transforms.core import chain
from fngrad.transforms.decay import add_decayed_weights
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
def test_other_leaves_than_the_selected_do_not_decay(mask):
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

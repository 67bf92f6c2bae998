"""Hyperparameters in the state: the same bits, and no compilation for a new value."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_groups import GRADS, PARAMS, apply

import fngrad.tree as tree
from fngrad.optimizers import adam, rmsprop, sgd
from fngrad.transforms.core import (
    apply_updates,
    chain,
    report,
)
from fngrad.transforms.masking import partition
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.noise import add_noise
from fngrad.transforms.scaling import scale
from fngrad.transforms.tunable_hyperparameters import set_hyperparameters, tunable

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles


def test_a_tunable_has_the_bits_of_constant_hyperparameters():
    baked = rmsprop(3e-3, decay=0.95, momentum=0.9, centered=True)
    tuned = tunable(
        rmsprop, learning_rate=3e-3, decay=0.95, momentum=0.9, centered=True
    )
    assert trajectory(baked) == trajectory(tuned)


def trajectory(optimizer, steps=20):
    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(p * t), params)
        updates, state = optimizer.update(grads, state, params)
        return apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for t in range(1, steps):
        params, state = step(params, state, jnp.float32(t))
    return [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(params))]


def test_a_new_value_compiles_nothing():
    optimizer = tunable(adam, learning_rate=1e-3, b1=0.9)
    update = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    state = optimizer.init(PARAMS)
    _, state = update(GRADS, state, PARAMS)
    before, _ = update(GRADS, state, PARAMS)
    state = set_hyperparameters(state, learning_rate=2e-3)
    after, _ = update(GRADS, state, PARAMS)
    chex.assert_trees_all_close(after, tree.scale(2.0, before), rtol=1e-6)


def test_arguments_that_are_not_floats_stay_static():
    state = tunable(rmsprop, learning_rate=0.1, centered=True, momentum=None).init(
        PARAMS
    )
    assert set(state["tunable"].hyperparameters) == {"learning_rate"}
    with pytest.raises(ValueError, match="at least one float"):
        tunable(sgd, learning_rate=lambda step: 0.1)


def test_tunables_work_in_chains_groups_and_under_vmap():
    optimizer = chain(
        scale(1.0),
        partition([("embed/**", tunable(sgd, learning_rate=0.1)), ("**", sgd(0.2))]),
    )
    state = optimizer.init(PARAMS)

    def first_update(learning_rate):
        new = set_hyperparameters(state, learning_rate=learning_rate)
        return optimizer.update(GRADS, new, PARAMS)[0]

    updates = jax.vmap(first_update)(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(updates["embed"]["weight"][:, 0, 0], [-0.5, -1.0])
    np.testing.assert_allclose(updates["head"]["bias"][:, 0], [-0.2, -0.2])


def test_tunables_inside_tunables_are_set():
    def outer(momentum):
        return chain(trace(momentum), tunable(sgd, learning_rate=0.1))

    state = tunable(outer, momentum=0.9).init(PARAMS)
    state = set_hyperparameters(state, learning_rate=0.5, momentum=0.8)
    inner = state["tunable"].inner["tunable"].hyperparameters
    np.testing.assert_allclose(inner["learning_rate"], 0.5)
    np.testing.assert_allclose(state["tunable"].hyperparameters["momentum"], 0.8)


def test_keys_and_flags_of_arrays_stay_static():
    noisy = tunable(add_noise, eta=0.1, gamma=0.5, key=jax.random.key(0))
    assert set(noisy.init(PARAMS)["tunable"].hyperparameters) == {"eta", "gamma"}
    flagged = tunable(sgd, learning_rate=0.1, momentum=0.9, nesterov=np.bool_(True))
    apply(flagged)


def test_unknown_hyperparameters_are_refused():
    state = tunable(sgd, learning_rate=0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"\['learning_rate'\], got \['lr'\]"):
        set_hyperparameters(state, lr=0.2)
    with pytest.raises(ValueError, match="need a scalar for learning_rate"):
        set_hyperparameters(state, learning_rate=jnp.ones(2))
    with pytest.raises(ValueError, match=r"0.0 <= learning_rate"):
        tunable(sgd, learning_rate=-0.1)


def test_tunables_report_their_values():
    optimizer = tunable(sgd, learning_rate=0.1)
    told = report(optimizer, GRADS, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(told["tunable/learning_rate"], 0.1)

"""Hyperparameters in the state: the same bits, and no compilation for a new value."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_groups import GRADS, PARAMS, apply

import fngrad.tree as tree
from fngrad.optimizers import adam, rmsprop, sgd
from fngrad.training import init_state
from fngrad.transforms.core import (
    apply_updates,
    chain,
    named,
    report,
)
from fngrad.transforms.masking import partition
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.noise import add_noise
from fngrad.transforms.scaling import scale
from fngrad.transforms.tunable_hyperparameters import (
    hyperparameters,
    set_hyperparameters,
    tunable,
)

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


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda: tunable(adam), r"got \{\}"),
        (lambda: tunable(adam(1e-3)), "got Transform"),
        (lambda: tunable(sgd, learning_rate=lambda step: 0.1), "schedule is not kept"),
        (
            lambda: set_hyperparameters(adam(1e-3).init(PARAMS), learning_rate=1.0),
            "dict",
        ),
    ],
    ids=["no arguments", "an optimizer", "a schedule", "a state without one"],
)
def test_what_is_not_tunable_says_how_it_would_be(made, got):
    with pytest.raises((TypeError, ValueError), match=got) as error:
        made()
    assert "fngrad.tunable(fngrad.adam, learning_rate=1e-3)" in str(error.value)


def test_a_schedule_is_not_kept_and_the_message_says_so():
    state = tunable(adam, learning_rate=lambda step: 0.1, b1=0.9).init(PARAMS)
    message = (
        r"keeps, \['b1'\], got \['learning_rate'\]; .*not what it got as a schedule"
    )
    with pytest.raises(ValueError, match=message):
        set_hyperparameters(state, learning_rate=1.0)


def rates(state):
    return {path: float(value) for path, _, value in hyperparameters(state)}


def test_one_group_is_set_by_its_glob():
    def rule():
        return tunable(sgd, learning_rate=0.5)

    groups = [("embed/**", rule()), ("**/bias", named("own", rule())), ("**", rule())]
    optimizer = partition(groups)
    state = init_state(PARAMS, optimizer, 0)
    start = "opt_state/partition/"
    embed, bias, rest = (
        start + end for end in ("embed/**/tunable", "**/bias/own", "**/tunable")
    )
    for group, path in (("embed/**", embed), ("**", rest), ("own", bias)):
        changed = rates(set_hyperparameters(state, group=group, learning_rate=0.25))
        assert changed == {embed: 0.5, bias: 0.5, rest: 0.5} | {path: 0.25}
    with pytest.raises(ValueError, match=r"got 'bias'.*partition/embed/\*\*/tunable"):
        set_hyperparameters(state, "bias", learning_rate=0.25)
    with pytest.raises(
        ValueError, match=r"in the group 'own' keeps, \['learning_rate'"
    ):
        set_hyperparameters(state, "own", momentum=0.25)


def test_a_group_inside_a_tunable_is_set():
    def outer(factor):
        inner = partition(
            [("embed/**", tunable(sgd, learning_rate=0.5)), ("**", sgd(1))]
        )
        return chain(inner, scale(factor))

    state = tunable(outer, factor=2.0).init(PARAMS)
    changed = rates(set_hyperparameters(state, "embed/**", learning_rate=0.25))
    assert changed == {
        "tunable": 2.0,
        "tunable/inner/partition/embed/**/tunable": 0.25,
    }

"""Sophia's updates and its estimates of the Hessian's diagonal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_steps as oracles
import problems
import pytest
from float64_mode import x64

import fngrad.steps as steps
import fngrad.tree as tree
from fngrad.optimizers import sgd
from fngrad.optimizers.sophia import ScaleBySophiaState, add_estimate, sophia
from fngrad.training import init_state
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.nonfinite_updates import skip_nonfinite
from fngrad.transforms.queries import find
from fngrad.transforms.stacking import stack, stack_leaves

W = np.linspace(-2, 2, 6)
STEPS = 25
SOPHIA = {
    "b1": 0.5,
    "b2": 0.5,
    "eps": 3.0,
    "weight_decay": 0.1,
    "gamma": 0.5,
    "clip_threshold": 0.1,
}


def sophia_updates(dtype, **arguments):
    """Return what Sophia does with given gradients and estimates, and its oracle."""
    params = np.tile(W, (STEPS, 1)) * 0.95 ** np.arange(STEPS)[:, None]
    gradients = problems.hard_gradients(STEPS)
    estimates = {t: 5 * gradients[t] * gradients[t - 1] for t in range(0, STEPS, 4)}
    rates = problems.decaying(0.1, STEPS)
    table = jnp.asarray(rates, dtype)
    optimizer = sophia(lambda t: table[t], **arguments)
    update, put = jax.jit(optimizer.update), jax.jit(add_estimate)
    state, got = optimizer.init(jnp.asarray(params[0], dtype)), []
    for t in range(STEPS):
        if t in estimates:
            node = put(state["scale_by_sophia"], jnp.asarray(estimates[t], dtype))
            state = {**state, "scale_by_sophia": node}
        updates, state = update(
            jnp.asarray(gradients[t], dtype), state, jnp.asarray(params[t], dtype)
        )
        got.append(updates)
    want = oracles.sophia(gradients, params, rates, estimates, **arguments)
    return np.array(got), want


@functools.cache
def usual_updates():
    return sophia_updates(jnp.float32)[0]


@pytest.mark.parametrize("name", [None, *SOPHIA])
def test_sophias_updates_are_the_oracles(name):
    arguments = {name: SOPHIA[name]} if name else {}
    with x64():
        got, want = sophia_updates(jnp.float64, **arguments)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    single, _ = sophia_updates(jnp.float32, **arguments)
    np.testing.assert_allclose(single, want, rtol=2e-5, atol=2e-6)
    if name:
        default = usual_updates()
        assert not np.allclose(single, default, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_the_estimates_average_to_the_diagonal(distribution):
    def cubic(w, batch):
        return jnp.sum(w**3) + w[0] * w[1]

    step = steps.sophia(cubic, sophia(0.1, b2=0.0), 1, distribution)

    def estimate(seed):
        state = init_state(jnp.array([1.0, -0.5, 2.0]), sophia(0.1, b2=0.0), seed)
        new, _ = step(state, None)
        return find(new.opt_state, ScaleBySophiaState)[0].hessian

    drawn = np.asarray(jax.jit(jax.vmap(estimate))(jnp.arange(4000)))
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    want = np.array([6.0, -3.0, 12.0])
    assert np.all(np.abs(drawn.mean(axis=0) - want) < 4 * error + 1e-4)
    assert (error[2] < 1e-6) == (distribution == "rademacher")  # no off-diagonal


def test_estimates_come_every_few_steps_before_the_update():
    step = jax.jit(steps.sophia(lambda w, b: jnp.sum(w**2), sophia(0.1), 3))
    state, hessians = init_state(jnp.ones(2), sophia(0.1), 0), []
    for _ in range(7):
        state, _ = step(state, None)
        hessians.append(np.asarray(state.opt_state["scale_by_sophia"].hessian))
    changed = [np.any(b != a) for a, b in zip([0, *hessians], hessians, strict=False)]
    assert changed == [True, False, False, True, False, False, True]
    assert np.all(hessians[0] > 0)


def test_sophia_in_a_group_sees_its_own_leaves():
    optimizer = partition(
        [("a", sophia(0.1, b2=0.0)), ("b", sgd(0.1)), ("**", freeze())]
    )
    step = steps.sophia(
        lambda p, batch: sum(jnp.sum((i + 1) * x**2) for i, x in enumerate(p.values())),
        optimizer,
        1,
        "rademacher",
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)}
    state, _ = jax.jit(step)(init_state(params, optimizer, 0), None)
    [node] = find(state.opt_state, ScaleBySophiaState)
    assert list(tree.leaf_paths(node.hessian)) == ["a"]
    np.testing.assert_allclose(node.hessian["a"], 2.0)


def test_an_estimate_that_is_not_finite_is_forgotten():
    optimizer = skip_nonfinite(sophia(0.1))
    step = jax.jit(steps.sophia(lambda w, b: jnp.sum(b * w**2), optimizer, 1))
    state, moved = init_state(jnp.ones(2), optimizer, 0), []
    for factor in (1.0, jnp.nan, 1.0):
        before = state.params
        state, metrics = step(state, jnp.float32(factor))
        moved.append(bool(jnp.any(state.params != before)))
        assert metrics["is_finite"]
    assert moved == [True, False, True]


def test_sophia_of_stacks_requires_stacked_parameters():
    def loss_of(params, batch):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    optimizer, params = stack_leaves(sophia(0.1)), {"a": jnp.ones(2), "b": jnp.ones(2)}
    step = steps.sophia(loss_of, optimizer, 1, "rademacher")
    with pytest.raises(ValueError, match=r"need scale_by_sophia of .*float32\[2\]"):
        step(init_state(params, optimizer, 0), None)
    state, _ = jax.jit(step)(init_state(stack(params)[0], optimizer, 0), None)
    [node] = find(state.opt_state, ScaleBySophiaState)
    np.testing.assert_allclose(node.hessian["float32[2]"].leaves, 0.02, rtol=1e-6)


def test_bad_arguments_of_sophia_are_refused():
    with pytest.raises(ValueError, match="need gamma > 0"):
        sophia(0.1, gamma=0.0)
    with pytest.raises(ValueError, match="need clip_threshold > 0"):
        sophia(0.1, clip_threshold=0.0)
    with pytest.raises(TypeError, match="need real parameters for scale_by_sophia"):
        sophia(0.1).init(jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match="need an int update_interval >= 1, got"):
        steps.sophia(lambda w, batch: w**2, sophia(0.1), 0)
    with pytest.raises(ValueError, match='need distribution="normal" or "radem'):
        steps.sophia(lambda w, batch: w**2, sophia(0.1), 1, "cauchy")

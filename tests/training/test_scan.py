"""Runs as pure functions: mapped, differentiated, with batches of any size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from linear_regression import ARRAYS, DATA, PARAMS, loss_fn

import fngrad.data.dataset as dataset
from fngrad.optimizers import sgd
from fngrad.training import init_state, make_step, run


def test_runs_are_mapped_over_seeds_and_rates():
    def train_fn(seed, learning_rate):
        optimizer = sgd(learning_rate)
        state = init_state(PARAMS, optimizer, seed)
        step = make_step(loss_fn, optimizer)
        return run(step, state, DATA.reseed(seed), 6)[1]["loss"]

    seeds, rates = jnp.arange(3), jnp.array([0.01, 0.1, 0.2])
    together = jax.jit(jax.vmap(train_fn))(seeds, rates)
    alone = [jax.jit(train_fn)(s, r) for s, r in zip(seeds, rates, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5)


def test_a_run_can_be_differentiated():
    def final_loss(learning_rate):
        optimizer = sgd(learning_rate)
        state = init_state(PARAMS, optimizer, 0)
        last, _ = run(make_step(loss_fn, optimizer), state, DATA, 3)
        return loss_fn(last.params, ARRAYS)

    slope = jax.jit(jax.grad(final_loss))(0.05)
    difference = (final_loss(0.051) - final_loss(0.049)) / 0.002
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_batch_size_n_is_gradient_descent():
    def trained(batch_size, shuffle):
        data = dataset.from_arrays(ARRAYS, batch_size, shuffle=shuffle)
        step = make_step(loss_fn, sgd(0.1))
        return run(step, init_state(PARAMS, sgd(0.1), 0), data, 5)[0].params

    gradient = jax.jit(jax.grad(loss_fn))
    state = init_state(PARAMS, sgd(0.1), 0)
    for _ in range(5):
        grads = gradient(state.params, ARRAYS)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
        state = state._replace(params=moved)
    expected = state.params
    for batch_size, shuffle in (("all", True), (20, False), (20, True)):
        chex.assert_trees_all_close(trained(batch_size, shuffle), expected, rtol=1e-5)

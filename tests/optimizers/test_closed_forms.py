"""Optimizers whose steps have a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_mode import x64

from fngrad.optimizers import REGISTRY
from fngrad.transforms.core import apply_updates


def steps_of(optimizer, gradient, steps=40, params=1.0):
    """Return parameters of shape (steps + 1,) under a constant gradient."""

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(params)
    _, visited = jax.lax.scan(body, (start, optimizer.init(start)), length=steps)
    return np.concatenate([[params], visited])


@pytest.mark.parametrize("gradient", [3e-4, -0.2, 1e5])
def test_adam_without_epsilon_steps_by_the_sign_of_a_constant_gradient(gradient):
    with x64():
        visited = steps_of(REGISTRY["adam"](0.1, eps=0.0), gradient)
    np.testing.assert_allclose(np.diff(visited), -0.1 * np.sign(gradient), rtol=1e-10)


def test_adagrad_steps_fall_with_the_root_of_time():
    adagrad = REGISTRY["adagrad"](0.1, initial_accumulator_value=0.0, eps=0.0)
    with x64():
        visited = steps_of(adagrad, 7.0)
    t = np.arange(1, 41)
    np.testing.assert_allclose(np.diff(visited), -0.1 / np.sqrt(t), rtol=1e-12)


def test_rmsprop_steps_fall_to_the_learning_rate():
    with x64():
        visited = steps_of(REGISTRY["rmsprop"](0.1, decay=0.9, eps=0.0), -2.0)
    t = np.arange(1, 41)
    np.testing.assert_allclose(np.diff(visited), 0.1 / np.sqrt(1 - 0.9**t), rtol=1e-12)


def test_adamw_without_gradients_shrinks_by_learning_rate_times_decay():
    with x64():
        visited = steps_of(REGISTRY["adamw"](0.1, weight_decay=0.2), 0.0)
    np.testing.assert_allclose(visited, (1 - 0.1 * 0.2) ** np.arange(41), rtol=1e-12)

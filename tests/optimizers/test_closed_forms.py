"""Steps, rates and noise floors that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from precision import x64
from trajectories import case_id

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


def test_tuned_heavy_ball_converges_at_its_known_rate():
    A = jnp.asarray(problems.quadratic(np.array([1.0, 3.0, 10.0, 100.0])))
    kappa = 100.0
    rate = (kappa**0.5 - 1) / (kappa**0.5 + 1)
    optimizer = REGISTRY["momentum"]((2 / (100.0**0.5 + 1)) ** 2, momentum=rate**2)

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(A @ x, state, x)
        x = x + updates
        return (x, state), jnp.linalg.norm(x)

    x = jnp.ones(4)
    norms = jax.lax.scan(body, (x, optimizer.init(x)), length=60)[1]
    # Twice-repeated eigenvalues at both ends give t rate**t; hence the window.
    np.testing.assert_allclose((norms[59] / norms[29]) ** (1 / 30), rate, rtol=0.03)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("adam", {"learning_rate": 0.02}), ("momentum", {"learning_rate": 1e-3})],
    ids=case_id,
)
def test_rosenbrocks_minimum_is_found(name, arguments):
    optimizer = REGISTRY[name](**arguments)

    def body(carry, _):
        x, state = carry
        gradient = jax.grad(problems.rosenbrock)(x)
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), None

    x = jnp.array([-1.0, 1.0])
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), length=5000)
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-2)


def test_gradient_descent_under_noise_ends_on_its_noise_floor():
    optimizer = REGISTRY["sgd"](0.2)

    def body(carry, key):
        x, state = carry
        gradient = 3.0 * x + 0.5 * jax.random.normal(key, x.shape)
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), None

    x = jnp.zeros(20_000)
    keys = jax.random.split(jax.random.key(0), 50)
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), keys)
    floor = problems.noise_floor(3.0, 0.25, 0.2)
    # The relative error of a variance from n samples is sqrt(2 / n) = 1 %.
    np.testing.assert_allclose(jnp.mean(x**2), floor, rtol=0.04)

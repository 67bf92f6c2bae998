"""Adagrad's sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.optimizers.adagrad import adagrad, scale_by_rss
from fngrad.optimizers.rmsprop import rmsprop
from fngrad.transforms.core import apply_updates
from fngrad.transforms.tunable_hyperparameters import tunable


def first_update(transform, gradient):
    params = jnp.zeros_like(gradient)
    return transform.update(gradient, transform.init(params), params)


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_a_coordinate_without_a_history_stays(eps_in_sqrt, eps):
    transform = scale_by_rss(0.0, eps, eps_in_sqrt)
    updates, _ = first_update(transform, jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(updates, [0.0, 1.0], rtol=1e-6)


def test_the_place_of_epsilon():
    gradient = jnp.array([3.0])
    inside, _ = first_update(scale_by_rss(7.0, 9.0), gradient)
    outside, _ = first_update(scale_by_rss(7.0, 9.0, eps_in_sqrt=False), gradient)
    np.testing.assert_allclose(inside, 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(outside, 3 / 13, rtol=1e-6)


def test_the_derivative_of_an_update_at_a_zero_gradient_is_finite():
    transform = scale_by_rss(0.0, 0.0)

    def total(gradient):
        return jnp.sum(first_update(transform, gradient)[0])

    assert np.all(np.isfinite(jax.grad(total)(jnp.array([0.0, 1.0]))))


def test_complex_parameters_have_real_sums():
    updates, state = first_update(scale_by_rss(0.0), jnp.array([3 + 4j]))
    assert state["scale_by_rss"].sum_of_squares.dtype == jnp.float32
    np.testing.assert_allclose(updates, [0.6 + 0.8j], rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "numbers"),
    [
        (adagrad, {"initial_accumulator_value": 0.1, "eps": 1e-7}),
        (rmsprop, {"decay": 0.9, "eps": 1e-8, "initial_scale": 0.0}),
    ],
)
def test_steps_from_constants_and_from_data_have_the_same_bits(factory, numbers):
    start = {"w": jnp.arange(6.0).reshape(3, 2) / 4 - 0.6, "v": jnp.array([0.3, -0.2])}
    for rate in (0.1, 0.3, 0.7):
        ends = []
        for make in (factory, functools.partial(tunable, factory)):
            optimizer = make(learning_rate=rate, **numbers)

            @jax.jit
            def step(params, state, t, optimizer=optimizer):
                gradient = jax.tree.map(lambda p: p + 0.3 * jnp.cos(7 * p + t), params)
                updates, state = optimizer.update(gradient, state, params)
                return apply_updates(params, updates), state

            params, state = start, optimizer.init(start)
            for t in range(4):
                params, state = step(params, state, jnp.float32(t))
            ends.append(params)
        jax.tree.map(np.testing.assert_array_equal, *ends)

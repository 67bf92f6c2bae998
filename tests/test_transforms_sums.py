"""Adagrad's sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.transforms.sums import scale_by_rss


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

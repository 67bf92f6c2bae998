"""Steps that see the loss, where slopes and squares do not fit into float32."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg


@pytest.mark.parametrize("size", [1.0, 1e20])
def test_a_line_search_moves_where_the_slope_overflows(size):
    def loss_fn(w, batch):
        return size * jnp.sum(w**2) / 2

    step = fg.steps.line_search(
        loss_fn, fg.sgd(1.0), max_learning_rate=0.5 / size, max_evaluations=10
    )
    state = fg.init_state(jnp.array([1.0, -2.0]), fg.sgd(1.0), key=0)
    state, metrics = step(state, None)
    np.testing.assert_allclose(metrics["step_length"] * size, 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.params, [0.5, -1.0], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_polyak_step_is_right_at_any_size(size):
    step = fg.steps.polyak(
        lambda w, batch: size * jnp.sum(w**2), max_learning_rate=1e30
    )
    state = fg.init_state(jnp.array([1.0, 0.0]), fg.sgd(1.0), key=0)
    state, metrics = step(state, None)
    np.testing.assert_allclose(metrics["step_length"] * size, 0.25, rtol=1e-5)
    np.testing.assert_allclose(state.params, [0.5, 0.0], rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e38, 2.4e38])
def test_a_polyak_step_is_right_where_its_length_overflows(size):
    start = np.array([0.5, -0.25, 0.125, 0.5])
    step = fg.steps.polyak(
        lambda w, batch: size * jnp.sum(w**2), max_learning_rate=1e30
    )
    state, _ = step(fg.init_state(jnp.array(start), fg.sgd(1.0), key=0), None)
    np.testing.assert_allclose(state.params, start / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 2.4e38])
def test_sharpness_is_measured_at_its_radius_at_any_size(size):
    start = np.array([0.5, -0.25, 0.125, 0.5])
    uphill = start * (1 + 0.1 / np.linalg.norm(start))
    step = fg.steps.sam(lambda w, _: size * jnp.sum(w**2), fg.sgd(0.0), rho=0.1)
    _, metrics = step(fg.init_state(jnp.array(start), fg.sgd(0.0), key=0), None)
    rise = np.sum(uphill**2) - np.sum(start**2)
    np.testing.assert_allclose(metrics["sharpness"] / size, rise, rtol=1e-5)

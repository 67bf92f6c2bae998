"""Adadelta, Rprop and MADGRAD, which determine step sizes themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_mode import x64

import fngrad.optimizers as optimizers
from fngrad.optimizers.adadelta import scale_by_adadelta
from fngrad.optimizers.madgrad import scale_by_madgrad
from fngrad.transforms.core import apply_updates, report


def falling(step):
    return 0.1 / (1.0 + step.astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=(0, 2))
def descend(optimizer, curvature, steps):
    """Return the losses curvature x**2 / 2 along a descent from x = 1."""

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(curvature * x, state, x)
        x = apply_updates(x, updates)
        return (x, state), jnp.sum(curvature * x**2) / 2

    x = jnp.ones_like(curvature)
    return jax.lax.scan(body, (x, optimizer.init(x)), length=steps)[1]


def test_adadelta_descends_with_its_default_learning_rate():
    losses = descend(optimizers.adadelta(), jnp.array([1.0, 30.0]), 300)
    assert losses[0] < 15.5
    assert losses[-1] < 0.5


def test_rprop_finds_a_badly_scaled_minimum():
    losses = descend(optimizers.rprop(0.1), jnp.array([1e-4, 1.0, 1e4]), 150)
    assert losses[-1] < 1e-6


def test_a_changed_learning_rate_leaves_rprops_step_sizes_alone():
    params = jnp.ones(2)
    optimizer = optimizers.rprop(lambda t: jnp.where(t == 0, 0.1, jnp.nan))
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    for want in (0.1, 0.12):
        updates, state = update(params, state, params)
        np.testing.assert_allclose(updates, -want * np.ones(2), rtol=1e-6)


def test_madgrads_first_step_is_its_closed_form():
    with x64():
        params, gradient = np.zeros(3), np.array([8.0, -1e-3, 2e5])
        optimizer = optimizers.madgrad(0.1, momentum=0.0, eps=0.0)
        update = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))
        updates, _ = update(gradient, params)
        want = -(0.1 ** (2 / 3)) * np.cbrt(gradient)
    np.testing.assert_allclose(updates, want, rtol=1e-13)


def test_madgrad_reports_the_learning_rate_in_force():
    optimizer = optimizers.madgrad(falling)

    @jax.jit
    def second_report(params):
        _, state = optimizer.update(params, optimizer.init(params), params)
        return report(optimizer, params, state, params)

    told = second_report(jnp.ones(2))
    np.testing.assert_allclose(told["scale_by_madgrad/learning_rate"], 0.05)


@pytest.mark.parametrize("name", ["scale_by_adadelta", "scale_by_madgrad"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_derivatives_at_zero_gradients_are_finite(name, eps):
    rule = {
        "scale_by_adadelta": scale_by_adadelta,
        "scale_by_madgrad": scale_by_madgrad,
    }
    arguments = (0.9, eps) if name == "scale_by_adadelta" else (0.1, 0.9, eps)
    optimizer = rule[name](*arguments)
    params = jnp.ones(2)

    def second_update(gradient):
        state = optimizer.init(params)
        _, state = optimizer.update(gradient, state, params)
        return optimizer.update(gradient, state, params)[0]

    assert np.all(np.isfinite(jax.jacobian(second_update)(jnp.zeros(2))))

"""Shampoo: its first step, its roots and their derivatives."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_mode import x64

from fngrad.optimizers.shampoo import scale_by_shampoo, shampoo
from fngrad.optimizers.soap import scale_by_soap


@functools.partial(jax.jit, static_argnums=0)
def first_update(optimizer, gradient):
    params = jax.tree.map(jnp.zeros_like, gradient)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def polar(x):
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (2, 5)])
def test_one_step_of_shampoo_is_the_polar_factor_of_the_gradient(shape):
    gradient = np.random.default_rng(1).normal(size=shape)
    for b2 in (1.0, 0.9):
        with x64():
            optimizer = shampoo(1.0, b2=b2, eps=0.0)
            update = first_update(optimizer, jnp.asarray(gradient))
        np.testing.assert_allclose(update, -polar(gradient), rtol=1e-7, atol=1e-7)


def test_one_step_of_shampoo_on_a_vector_is_its_direction():
    gradient = jnp.array([3.0, -4.0])
    update = first_update(shampoo(1.0, full_vectors=True), gradient)
    np.testing.assert_allclose(update, [-0.6, 0.8], rtol=1e-3)


def test_shampoo_is_diagonal_adagrad_on_vectors():
    gradient = jnp.array([3.0, -4.0, 0.0])
    update = first_update(shampoo(1.0), gradient)
    np.testing.assert_allclose(update, [-1.0, 1.0, 0.0], rtol=1e-6)


def test_roots_are_computed_once_per_period():
    rule = scale_by_shampoo(update_every=3)
    params = jnp.ones((3, 2))
    state, update, kept = jax.jit(rule.init)(params), jax.jit(rule.update), []
    rng = np.random.default_rng(0)
    for _ in range(7):
        gradient = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
        _, state = update(gradient, state, params)
        kept.append(np.asarray(state["scale_by_shampoo"].roots[0]))
    changes = [not np.array_equal(a, b) for a, b in itertools.pairwise(kept)]
    assert changes == [False, False, True, False, False, True]


@pytest.mark.parametrize("rule", [scale_by_shampoo(eps=1e-3), scale_by_soap()])
def test_derivatives_are_finite_where_eigenvalues_are_equal(rule):
    def second_update(gradient):
        _, state = rule.update(gradient, rule.init(gradient), gradient)
        return rule.update(2 * gradient, state, gradient)[0]

    for jacobian in (jax.jacfwd(second_update), jax.jacrev(second_update)):
        jitted = jax.jit(jacobian)
        for gradient in (jnp.zeros((3, 3)), jnp.eye(3)):
            assert jnp.all(jnp.isfinite(jitted(gradient)))


def test_shampoos_derivative_is_that_of_finite_differences():
    with x64():
        rule = scale_by_shampoo(eps=1e-3)
        x, dx = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)))

        @jax.jit
        def update(gradient):
            return rule.update(gradient, rule.init(gradient), gradient)[0]

        for start in (x, jnp.eye(3)):
            got = jax.jvp(update, (start,), (dx,))[1]
            h = 1e-5
            want = (update(start + h * dx) - update(start - h * dx)) / (2 * h)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)

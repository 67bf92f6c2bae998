"""Curvature of a convolutional network against dense matrices of the native one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fngrad.layers as layers
import fngrad.steps as steps
from fngrad import curvature
from fngrad.optimizers import sgd
from fngrad.training import init_state

pytestmark = pytest.mark.usefixtures("x64")


def network(implementation):
    conv = functools.partial(layers.conv, implementation=implementation)
    return layers.serial(
        conv(1, 2, 2),
        jnp.tanh,
        layers.max_pool(2),
        conv(2, 2, 2, groups=2),
        layers.flatten,
        layers.linear(8, 2),
    )


def outputs_of(implementation):
    model = layers.batched(network(implementation))
    return lambda params, batch: model(params, batch["x"])


def cross_entropy(outputs, batch):
    return -jnp.mean(jnp.sum(batch["y"] * jax.nn.log_softmax(outputs), axis=1))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network(None).init, jax.random.key(0))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), shapes)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), shapes)
    batch = {"x": rng.normal(size=(3, 4, 4, 1)), "y": np.eye(2)[[0, 1, 1]]}
    return params, batch, direction


def test_hessian_products_equal_the_dense_hessian(problem):
    params, batch, direction = problem

    def loss_of(implementation):
        outputs = outputs_of(implementation)
        return lambda params, batch: cross_entropy(outputs(params, batch), batch)

    flat, unravel = ravel_pytree(params)
    native = loss_of("native")
    dense = jax.jit(jax.jacfwd(jax.grad(lambda w: native(unravel(w), batch))))(flat)

    @jax.jit
    def product(params, direction):
        return curvature.hvp(loss_of(None), params, batch)(direction)

    found = ravel_pytree(product(params, direction))[0]
    expected = dense @ ravel_pytree(direction)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_gauss_newton_products_equal_the_dense_matrix(problem):
    params, batch, direction = problem
    flat, unravel = ravel_pytree(params)
    outputs = outputs_of("native")(params, batch)
    jacobian = jax.jit(
        jax.jacrev(lambda w: outputs_of("native")(unravel(w), batch).ravel())
    )(flat)
    inner = jax.hessian(lambda y: cross_entropy(y.reshape(outputs.shape), batch))
    dense = jacobian.T @ inner(outputs.ravel()) @ jacobian

    @jax.jit
    def product(params, direction):
        apply = curvature.ggn_vp(outputs_of(None), params, batch, loss_fn=cross_entropy)
        return apply(direction)

    found = ravel_pytree(product(params, direction))[0]
    expected = dense @ ravel_pytree(direction)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_a_gauss_newton_step_solves_the_damped_equations(problem, solver):
    params, batch, _ = problem
    flat, unravel = ravel_pytree(params)

    def residuals(implementation):
        outputs = outputs_of(implementation)
        return lambda params, batch: outputs(params, batch) - batch["y"]

    def flat_residuals(w):
        return residuals("native")(unravel(w), batch).ravel()

    J = jax.jit(jax.jacrev(flat_residuals))(flat)
    damped = J.T @ J + 0.1 * np.eye(flat.size)
    move = np.linalg.solve(damped, J.T @ flat_residuals(flat))
    step = steps.gauss_newton(
        residuals(None), damping=0.1, solver=solver, cg_tolerance=1e-12
    )
    after, _ = jax.jit(step)(init_state(params, sgd(1.0), 0), batch)
    found = ravel_pytree(after.params)[0]
    np.testing.assert_allclose(found, flat - move, rtol=1e-6, atol=1e-8)

"""Closed forms against scikit-learn and each other, and where they fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import sklearn.datasets
import sklearn.linear_model

from fngrad.closed_form import linear_regression, newton


@functools.partial(jax.jit, static_argnames=("intercept", "method"))
def regression(x, y, ridge=0.0, *, intercept=True, method="svd"):
    return linear_regression(x, y, ridge=ridge, intercept=intercept, method=method)


METHODS = ("svd", "normal")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("intercept", [True, False])
def test_diabetes_is_fitted_as_scikit_learn_does(x64, method, ridge, intercept):
    x, y = sklearn.datasets.load_diabetes(return_X_y=True)
    peer = sklearn.linear_model.Ridge(alpha=ridge, fit_intercept=intercept)
    if ridge == 0.0:
        peer = sklearn.linear_model.LinearRegression(fit_intercept=intercept)
    peer.fit(x, y)
    fit = regression(x, y, ridge, intercept=intercept, method=method)
    np.testing.assert_allclose(fit.weights, peer.coef_, rtol=1e-10)
    np.testing.assert_allclose(fit.intercept, peer.intercept_, rtol=1e-10)


def test_several_outputs_are_fitted_at_once(x64):
    x = np.random.default_rng(0).normal(size=(20, 3))
    y = np.stack([x @ np.array([1.0, 2.0, 3.0]) + 1.0, x[:, 0]], axis=1)
    fit = regression(x, y)
    np.testing.assert_allclose(fit.weights, [[1, 1], [2, 0], [3, 0]], atol=1e-12)
    np.testing.assert_allclose(fit.intercept, [1.0, 0.0], atol=1e-12)


def test_the_normal_equations_square_the_condition_number(x64):
    x = np.random.default_rng(0).normal(size=(30, 4))
    x = x * np.array([1.0, 1.0, 1.0, 1e-3])
    y = np.ones(30)
    svd, normal = (float(regression(x, y, method=m).condition) for m in METHODS)
    np.testing.assert_allclose(normal, svd**2, rtol=1e-6)


def test_a_repeated_feature_breaks_the_normal_equations_but_not_the_svd(x64):
    x = np.array([[1.0], [2.0], [4.0]]) * np.ones((1, 2))
    y = np.array([2.0, 4.0, 8.0])
    shortest = regression(x, y, intercept=False)
    np.testing.assert_allclose(shortest.weights, [1.0, 1.0], rtol=1e-12)
    normal = regression(x, y, intercept=False, method="normal")
    assert not np.allclose(normal.weights, [1.0, 1.0], rtol=1e-12)


def test_newton_solves_a_quadratic_in_one_step(x64):
    a = jnp.asarray(problems.quadratic(np.array([0.1, 1.0, 50.0])))
    target = {"u": jnp.array([1.0]), "v": jnp.array([-2.0, 3.0])}

    def f(w):
        gap = jnp.concatenate([w["u"] - target["u"], w["v"] - target["v"]])
        return gap @ a @ gap / 2

    w, history = newton(f, jax.tree.map(jnp.zeros_like, target), num_steps=2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), w, target)
    assert history["gradient_norm"][0] > 1
    assert history["gradient_norm"][1] < 1e-12


def test_newton_doubles_the_correct_digits_near_a_minimum(x64):
    start = jnp.array([1.05, 1.1])
    _, history = newton(problems.rosenbrock, start, num_steps=6)
    errors = np.sqrt(history["value"])  # about the distance
    assert history["value"][-1] < 1e-20
    assert errors[4] < 50 * errors[3] ** 2


def test_newton_converges_to_a_saddle(x64):
    w, _ = newton(lambda w: w[0] ** 2 - w[1] ** 2, jnp.array([0.3, 0.4]))
    np.testing.assert_allclose(w, [0.0, 0.0], atol=1e-12)


def test_damping_shortens_the_step(x64):
    w, _ = newton(lambda w: jnp.sum(w**2), jnp.array([3.0]), damping=2.0)
    np.testing.assert_allclose(w, [1.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ridge": -1.0}, "need 0.0 <= ridge"),
        ({"method": "qr"}, 'need method="svd" or "normal"'),
        ({"y": jnp.ones(4)}, r"got \(3, 1\) and \(4,\)"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    arguments = {"y": jnp.ones(3), **arguments}
    with pytest.raises(ValueError, match=message):
        linear_regression(jnp.ones((3, 1)), **arguments)


def test_integer_targets_are_fitted_in_the_dtype_of_x():
    x = jnp.array([[0.0], [1.0], [2.0]])
    fit = linear_regression(x, jnp.array([1, 3, 5]), ridge=2.0)
    np.testing.assert_allclose(fit.weights, [1.0], rtol=1e-6)  # 4 / (2 + 2)
    assert fit.weights.dtype == fit.intercept.dtype == x.dtype


def test_integers_are_refused_where_floats_are_needed():
    with pytest.raises(TypeError, match=r"need x of real floats .*, got int32"):
        linear_regression(jnp.ones((3, 1), jnp.int32), jnp.ones(3))
    with pytest.raises(TypeError, match=r"y of real numbers, .* complex64"):
        linear_regression(jnp.ones((3, 1)), jnp.ones(3, jnp.complex64))
    params = {"a": jnp.arange(2), "b": jnp.ones(2)}
    with pytest.raises(TypeError, match="got int32 at 'a'"):
        newton(lambda p: jnp.sum(p["b"] ** 2), params)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="need an int num_steps >= 0"):
        newton(jnp.sum, jnp.ones(2), num_steps=-1)

"""Optimizers near a minimum: rates, relevant parts of the state, noise floors."""

import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.linalg

import fngrad as fg
from fngrad import curvature

SPECTRUM = np.array([1.0, 3.0, 8.0])
A = problems.quadratic(SPECTRUM)


def quadratic(x, A):
    return x @ A @ x / 2


def spring(x, stiffness):
    return stiffness * x**2 / 2


def momentum_radius(curvatures, learning_rate, momentum, nesterov=False):
    """Return the largest root of the characteristic polynomials, one per curvature.

    z**2 - (1 + b - c) z + b with c = a * curvature; looking ahead
    z**2 - (1 + b) (1 - c) z + b (1 - c).
    """
    c, b = learning_rate * np.asarray(curvatures), momentum
    if nesterov:
        polynomials = [(1, -(1 + b) * (1 - x), b * (1 - x)) for x in c]
    else:
        polynomials = [(1, -(1 + b - x), b) for x in c]
    return max(np.abs(np.roots(p)).max() for p in polynomials)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("learning_rate", "momentum"), [(0.05, 0.9), (0.2, 0.3), (0.01, 0.99), (0.3, 0.8)]
)
def test_the_rate_is_the_largest_root_of_the_characteristic_polynomial(
    learning_rate, momentum, nesterov
):
    optimizer = fg.momentum(learning_rate, momentum, nesterov)
    found = curvature.local_rate(optimizer, quadratic, np.zeros(3), A)
    expected = momentum_radius(SPECTRUM, learning_rate, momentum, nesterov)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_eigenvalues_that_differ_by_more_than_rounding_stay_distinct():
    found = curvature.local_rate(
        fg.sgd(1.0), quadratic, np.zeros(2), np.diag([1e-9, 2e-9])
    )
    np.testing.assert_allclose(1 - found, 1e-9, rtol=1e-6)


def test_single_precision_parameters_are_converted_to_double():
    params, single = np.zeros(3, np.float32), A.astype(np.float32)
    found = curvature.local_rate(fg.sgd(0.1), quadratic, params, single)
    expected = np.abs(1 - 0.1 * np.linalg.eigvalsh(single.astype(np.float64))).max()
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_the_jacobian_and_noise_input_of_heavy_ball_are_exact():
    step = curvature.step_jacobian(
        fg.momentum(0.25, 0.5), spring, np.zeros(()), np.float64(2.0)
    )
    # b' = b / 2 + 2 x + e and x' = x - b' / 4
    np.testing.assert_allclose(step.J, [[0.5, -0.125], [2.0, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(step.B, [[-0.25], [1.0]], rtol=1e-15)


def test_values_that_multiply_a_zero_gradient_are_left_out():
    sgd, ball = fg.sgd(0.1), fg.momentum(0.1, 0.5)
    for plain, padded in [
        (sgd, fg.tunable(fg.sgd, learning_rate=0.1)),
        (ball, fg.tunable(fg.momentum, learning_rate=0.1, momentum=0.5)),
    ]:
        found, expected = (
            curvature.step_jacobian(optimizer, quadratic, np.zeros(3), A)
            for optimizer in (padded, plain)
        )
        np.testing.assert_allclose(found.J, expected.J, rtol=1e-14)


def adam_radius(learning_rate, b1, scale, stiffness):
    """Return the spectral radius of (x, m) where the step is a m / scale."""
    a, push = learning_rate / scale, (1 - b1) * stiffness
    return np.abs(np.linalg.eigvals([[1 - a * push, -a * b1], [push, b1]])).max()


@pytest.mark.parametrize(
    ("step", "seen"),
    [(2**31 - 1, (1.0, 1.0)), (0, (0.2, 0.001))],
    ids=["last", "first"],
)
def test_adams_rate_is_that_of_momentum_at_its_second_moment(step, seen):
    optimizer = fg.adam(0.01, b1=0.8, b2=0.999, eps=1e-3)
    state = optimizer.init(jnp.zeros(()))
    adam = state["scale_by_adam"]._replace(nu=jnp.array(0.25))
    found = curvature.local_rate(
        optimizer,
        spring,
        np.zeros(()),
        3.0,
        state={**state, "scale_by_adam": adam},
        step=step,
    )
    root = np.sqrt(0.999 * 0.25 / seen[1])
    expected = adam_radius(0.01, 0.8, (root + 1e-3) * seen[0], 3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_schedules_are_evaluated_at_the_given_step():
    schedule = fg.schedules.piecewise_constant(0.1, {5: 0.5})
    for step, learning_rate in [(0, 0.1), (10, 0.05), (2**31 - 1, 0.05)]:
        found = curvature.local_rate(
            fg.sgd(schedule), quadratic, np.zeros(3), A, step=step
        )
        np.testing.assert_allclose(found, 1 - learning_rate, rtol=1e-7)


def test_a_tree_of_parameters_and_a_curved_function_are_linearised():
    def f(params, scale):
        x, y = params["x"], params["y"]
        return scale * jnp.sum(jnp.cosh(x)) + jnp.sum(x) * y + y**2 + y**4

    params = {"x": np.zeros(2, np.float32), "y": np.zeros((), np.float32)}
    H = np.array([[3.0, 0, 1], [0, 3, 1], [1, 1, 2]])
    found = curvature.step_jacobian(fg.sgd(0.1), f, params, 3.0)
    np.testing.assert_allclose(found.J, np.eye(3) - 0.1 * H, rtol=1e-14, atol=1e-15)


def test_the_noise_floor_of_gradient_descent_equals_its_closed_form():
    for stiffness, learning_rate in [(3.0, 0.2), (1.0, 1.9), (1e-3, 0.01)]:
        floor = curvature.noise_floor(
            fg.sgd(learning_rate), spring, np.zeros(()), stiffness, noise=0.25
        )
        expected = problems.noise_floor(stiffness, 0.25, learning_rate)
        np.testing.assert_allclose(floor.second_moment, expected, rtol=1e-10)
        np.testing.assert_allclose(floor.loss, stiffness * expected / 2, rtol=1e-10)


def test_the_noise_floor_of_heavy_ball_equals_its_closed_form():
    a, b, c, s2 = 0.2, 0.7, 3.0, 0.25
    floor = curvature.noise_floor(fg.momentum(a, b), spring, np.zeros(()), c, noise=s2)
    # Yule-Walker of x'' = (1 + b - a c) x' - b x - a e.
    expected = a * s2 * (1 + b) / (c * (1 - b) * (2 * (1 + b) - a * c))
    np.testing.assert_allclose(floor.second_moment, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [fg.sgd(0.1), fg.momentum(0.02, 0.95), fg.momentum(0.05, 0.9, nesterov=True)],
    ids=["sgd", "heavy ball", "nesterov"],
)
def test_the_noise_floor_solves_lyapunovs_equation(optimizer):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    C = root @ root.T
    params = {"a": np.zeros(2), "b": np.zeros(())}

    def f(params, A):
        return quadratic(jnp.concatenate([params["a"], params["b"][None]]), A)

    step = curvature.step_jacobian(optimizer, f, params, A)
    expected = scipy.linalg.solve_discrete_lyapunov(step.J, step.B @ C @ step.B.T)
    floor = curvature.noise_floor(optimizer, f, params, A, noise=C)
    np.testing.assert_allclose(floor.covariance, expected[:3, :3], rtol=1e-10)
    diagonal = np.diag(expected)
    np.testing.assert_allclose(floor.second_moment["a"], diagonal[:2], rtol=1e-10)
    np.testing.assert_allclose(floor.second_moment["b"], diagonal[2], rtol=1e-10)
    loss = np.trace(A @ expected[:3, :3]) / 2
    np.testing.assert_allclose(floor.loss, loss, rtol=1e-10)


def test_a_step_that_diverges_has_no_noise_floor():
    with pytest.raises(
        ValueError, match="need a step that converges, got the local rate 1"
    ):
        curvature.noise_floor(fg.sgd(0.3), quadratic, np.zeros(3), A, noise=1.0)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"need noise of shape \(\) or \(3, 3\), got"):
        curvature.noise_floor(fg.sgd(0.1), quadratic, np.zeros(3), A, noise=np.ones(3))


def test_complex_parameters_are_refused():
    params = {"w": np.zeros(2, np.complex64)}
    with pytest.raises(TypeError, match=r"need real float .*complex128 at 'w'"):
        curvature.local_rate(fg.sgd(0.1), lambda p: 0.0, params)


def test_an_integer_parameter_is_refused_whether_it_is_an_array_or_not():
    w = {"w": 1.0}
    for n in (1, np.ones(2, np.int32)):
        with pytest.raises(TypeError, match=r"need real float .*int(32|64) at 'n'"):
            curvature.local_rate(fg.sgd(0.1), lambda p: p["w"], {**w, "n": n})

"""Gauss-Newton and Levenberg-Marquardt against closed forms and other solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_steps as oracles
import pytest
import scipy.optimize
from float64_mode import x64

import fngrad.steps as steps
from fngrad.optimizers import sgd
from fngrad.optimizers.adagrad import scale_by_rss
from fngrad.training import init_state, run
from fngrad.transforms.core import chain
from fngrad.transforms.damping import adaptive_damping
from fngrad.transforms.masking import freeze

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 4)), RNG.normal(size=20)
T = np.linspace(0, 4, 30)
DECAY = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.02 * np.sin(40 * T)
SOLVERS = [
    {"solver": "dense", "jacobian": "forward"},
    {"solver": "dense", "jacobian": "reverse"},
    {"solver": "cg", "cg_tolerance": 1e-13},
]


def linear(params, batch):
    return {"fit": batch["x"] @ params["w"] + params["b"] - batch["y"]}


def exponential(w, batch):
    return w[0] * jnp.exp(-w[1] * batch["t"]) + w[2] - batch["y"]


def damped(tau=1e-3):
    return chain(adaptive_damping(tau), sgd(1.0))


def double(arrays):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arrays)


@pytest.mark.parametrize("arguments", SOLVERS)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_one_step_on_linear_residuals_solves_the_normal_equations(arguments, damping):
    with x64():
        params = double({"w": np.ones(4), "b": 0.3})
        batch = double({"x": X, "y": Y})
        step = jax.jit(steps.gauss_newton(linear, damping=damping, **arguments))
        state, metrics = step(init_state(params, sgd(1.0), 0), batch)
    J = np.hstack([np.ones((20, 1)), X])
    start = np.array([0.3, 1, 1, 1, 1])
    r = J @ start - Y
    want = start - np.linalg.solve(J.T @ J + damping * np.eye(5), J.T @ r)
    np.testing.assert_allclose(state.params["b"], want[0], rtol=1e-10)
    np.testing.assert_allclose(state.params["w"], want[1:], rtol=1e-10)
    np.testing.assert_allclose(metrics["loss"], 0.5 * r @ r, rtol=1e-12)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.linalg.norm(J.T @ r), rtol=1e-12
    )


def test_single_precision_solves_without_squaring_the_condition():
    scales = np.array([1.0, 1e-2, 1e-3])
    batch = {"x": jnp.asarray(X[:, :3] * scales, jnp.float32)}
    truth = np.array([1.0, -2.0, 3.0])
    batch["y"] = batch["x"] @ jnp.asarray(truth, jnp.float32)
    step = steps.gauss_newton(lambda w, b: b["x"] @ w - b["y"])
    state, _ = jax.jit(step)(init_state(jnp.zeros(3), sgd(1.0), 0), batch)
    np.testing.assert_allclose(state.params, truth, rtol=1e-3)


def test_of_many_solutions_the_step_is_the_shortest():
    x, y = X[:2], Y[:2]
    step = jax.jit(steps.gauss_newton(lambda w, b: b["x"] @ w - b["y"]))
    with x64():
        state, _ = step(init_state(jnp.zeros(4), sgd(1.0), 0), double({"x": x, "y": y}))
    np.testing.assert_allclose(state.params, np.linalg.pinv(x) @ y, rtol=1e-10)


def test_the_optimizer_is_given_the_direction():
    optimizer = chain(scale_by_rss(0.0, eps=0.0), sgd(0.5))
    step = steps.gauss_newton(linear, optimizer)
    params = {"w": jnp.ones(4), "b": jnp.array(0.3)}
    batch = {"x": jnp.asarray(X, jnp.float32), "y": jnp.asarray(Y, jnp.float32)}
    state, _ = jax.jit(step)(init_state(params, optimizer, 0), batch)
    np.testing.assert_allclose(np.abs(state.params["w"] - 1), 0.5, rtol=1e-5)


@pytest.mark.parametrize("arguments", SOLVERS)
@pytest.mark.parametrize("tau", [1e-6, 1.0])
def test_levenberg_marquardt_is_the_oracles_step_by_step(arguments, tau):
    start = np.array([1.0, -1.0, 0.0])  # the first steps go too far and are refused

    def jacobian(w):
        e = np.exp(-w[1] * T)
        return np.stack([e, -w[0] * T * e, np.ones_like(T)], axis=1)

    points, dampings, accepted = oracles.levenberg_marquardt(
        lambda w: w[0] * np.exp(-w[1] * T) + w[2] - DECAY, jacobian, start, tau, 12
    )
    with x64():
        batch = double({"t": T, "y": DECAY})
        step = steps.levenberg_marquardt(exponential, damped(tau), **arguments)
        _, history = jax.jit(
            lambda state: run(with_params(step), state, lambda t: batch, 12)
        )(init_state(double(start), damped(tau), 0))
    got = np.stack([history[f"w{i}"] for i in range(3)], axis=1)
    np.testing.assert_array_equal(history["is_accepted"], accepted)
    np.testing.assert_allclose(history["damping"], dampings, rtol=1e-6)
    np.testing.assert_allclose(got, points, rtol=1e-7)
    assert tau == 1.0 or not all(accepted)


def with_params(step):
    def recorded(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {f"w{i}": state.params[i] for i in range(3)}

    return recorded


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_it_reaches_scipys_fit(solver):
    found = scipy.optimize.least_squares(
        lambda w: w[0] * np.exp(-w[1] * T) + w[2] - DECAY,
        [1.0, 0.2, 0.0],
        method="lm",
        xtol=1e-14,
        ftol=1e-14,
    )
    with x64():
        step = steps.levenberg_marquardt(exponential, damped(), solver=solver)
        batch = double({"t": T, "y": DECAY})
        start = init_state(double([1.0, 0.2, 0.0]), damped(), 0)
        state, history = jax.jit(lambda s: run(step, s, lambda t: batch, 40))(start)
    print(f"fngrad {history['loss'][-1]:.15f}, scipy {found.cost:.15f}")
    np.testing.assert_allclose(history["loss"][-1], found.cost, rtol=1e-12)
    np.testing.assert_allclose(state.params, found.x, rtol=1e-6)
    assert np.all(np.diff(history["loss"]) <= 1e-15)  # it is rounded anew


def overshot(w, batch):
    """Solved by exp(-5); the Gauss-Newton step from 1 leads to -4."""
    return jnp.log(w) + 5.0


def test_a_refused_step_leaves_everything_but_the_damping():
    optimizer = damped(1e-6)
    step = jax.jit(steps.levenberg_marquardt(overshot, optimizer))
    state = init_state(jnp.array([1.0]), optimizer, 0)
    new, metrics = step(state, None)
    assert not metrics["is_accepted"]
    np.testing.assert_array_equal(new.params, state.params)
    assert metrics["update_norm"] == 0
    before, after = (s.opt_state["adaptive_damping"] for s in (state, new))
    np.testing.assert_allclose(after.damping, 2 * metrics["damping"], rtol=1e-6)
    assert after.growth == 4
    others = [s.opt_state["scale_by_learning_rate"] for s in (state, new)]
    assert others[0] == others[1]
    assert (before.step, after.step, new.step) == (0, 1, 1)


def test_values_that_are_not_finite_are_refused():
    optimizer = damped(1e-6)
    step = steps.levenberg_marquardt(overshot, optimizer)
    start = init_state(jnp.array([1.0]), optimizer, 0)
    state, history = jax.jit(lambda s: run(step, s, lambda t: None, 30))(start)
    assert not history["is_accepted"][0]
    assert np.all(np.isfinite(history["loss"]))
    np.testing.assert_allclose(state.params, np.exp(-5.0), rtol=1e-4)


SHAPES = {"tall": (4, 2), "wide": (2, 4), "orthogonal": (2, 2)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_step_has_derivatives_also_where_singular_values_are_equal(shape, x64):
    # In the wide case the solution is the shortest, in the others the only one.
    square = shape == (2, 2)
    J = jnp.eye(2) if square else jnp.asarray(RNG.normal(size=shape))
    K = jnp.asarray(RNG.normal(size=shape))
    y = jnp.arange(1.0, shape[0] + 1)

    def end(t):
        optimizer = chain(adaptive_damping(0.3 + t), sgd(0.9 + t))
        pairs = (
            (steps.gauss_newton, sgd(0.9 + t)),
            (steps.levenberg_marquardt, optimizer),
        )
        start = jnp.zeros(shape[1])
        ends = [
            build(lambda w, b: (J + b * K) @ w - y, o)(init_state(start, o, 0), t)[0]
            for build, o in pairs
        ]
        return jnp.stack([e.params for e in ends])

    @jax.jit
    def derivatives(t):
        one = jnp.ones_like(t)

        def along(t):
            return jax.jvp(end, (t,), (one,))[1]

        forward, second = jax.jvp(along, (t,), (one,))
        return forward, jax.jacrev(end)(t), second

    forward, backward, second = derivatives(0.0)
    h, value = 1e-5, jax.jit(end)
    want = (value(h) - value(-h)) / (2 * h)
    np.testing.assert_allclose(forward, want, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(backward, want, rtol=1e-6, atol=1e-8)
    assert np.all(np.isfinite(second))


def test_a_step_from_a_solution_has_derivatives():
    def end(tau):
        step = steps.levenberg_marquardt(lambda w, b: w, damped(tau))
        return step(init_state(jnp.zeros(2), damped(tau), 0), None)[0].params

    np.testing.assert_array_equal(jax.jit(jax.jacfwd(end))(0.1), 0)
    np.testing.assert_array_equal(jax.jit(jax.jacrev(end))(0.1), 0)


def test_residuals_and_arguments_of_other_kinds_are_refused():
    start = init_state(jnp.array([1.0]), sgd(1.0), 0)
    with pytest.raises(TypeError, match="real parameters for least squares, got compl"):
        steps.gauss_newton(lambda w, b: w.astype(complex))(start, None)
    frozen = init_state(jnp.ones(1), freeze(), 0)
    with pytest.raises(ValueError, match="need at least one leaf that is not frozen"):
        steps.gauss_newton(lambda w, b: w, freeze())(frozen, None)
    with pytest.raises(ValueError, match='need solver="dense" or "cg", got'):
        steps.gauss_newton(linear, solver="lu")
    with pytest.raises(ValueError, match='need jacobian="forward" or "reverse"'):
        steps.gauss_newton(linear, jacobian="backward")
    with pytest.raises(ValueError, match=r"need 0.0 <= damping"):
        steps.gauss_newton(linear, damping=-1.0)
    with pytest.raises(ValueError, match="need cg_tolerance > 0"):
        steps.gauss_newton(linear, cg_tolerance=0.0)
    with pytest.raises(ValueError, match="need initial > 0"):
        adaptive_damping(0.0)

"""Line searches: what they accept, and what they never do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_steps as oracles
import pytest
from float64_mode import x64

import fngrad.steps as steps
from fngrad.optimizers import adam, sgd
from fngrad.steps.line_search_conditions import Point, backtrack, strong_wolfe
from fngrad.training import init_state, run
from fngrad.transforms.core import chain
from fngrad.transforms.scaling import scale
from fngrad.transforms.step_length import scale_by_step_length

CONDITIONS = ("armijo", "strong_wolfe")


def hill(a):
    """Moré and Thuente 1994, function 1: a shallow way down, a long way up."""
    return -a / (a**2 + 2)


def cliff(a):
    """Their function 2: flat, then steep."""
    return (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4


def waves(a):
    """Their function 3, smooth: many local minima."""
    bowl = jnp.sqrt(1e-4 + (a - 1) ** 2)
    return bowl + 2 * 0.99 / (39 * jnp.pi) * jnp.sin(39 * jnp.pi / 2 * a)


def wall(a):
    """Infinite from 0.3 on, NaN later."""
    return -jnp.log(0.3 - a) - 20 * a


LINES = {f.__name__: f for f in (hill, cliff, waves, wall)}


def searched(name, first, c2, most=60):
    value_and_slope = jax.value_and_grad(LINES[name])
    zero = jnp.zeros(())
    start = Point(zero, *value_and_slope(zero))
    found = strong_wolfe(
        lambda a: Point(a, *value_and_slope(a)),
        start,
        first,
        c1=jnp.asarray(1e-3),
        c2=c2,
        factor=jnp.asarray(2.0),
        longest=jnp.asarray(1e10),
        max_evaluations=most,
    )
    return found, start, value_and_slope(found.a)


@pytest.mark.parametrize("name", LINES)
def test_strong_wolfe_finds_a_point_on_hard_lines(name):
    firsts = jnp.array([1e-3, 1e-1, 1.0, 10.0, 1e3])
    with x64():
        for c2 in (0.9, 0.3):
            search = jax.jit(
                jax.vmap(lambda first, c2=c2: searched(name, first, jnp.asarray(c2)))
            )
            found, start, (value, slope) = search(firsts.astype(float))
            a = np.asarray(found.a)
            print(name, c2, a, np.asarray(found.evaluations))
            assert np.all(a > 0)
            assert np.all(found.evaluations < 30)
            assert np.all(value <= start.value + 1e-3 * a * start.slope)
            assert np.all(np.abs(slope) <= c2 * np.abs(start.slope))
            np.testing.assert_allclose(found.value, value, rtol=1e-14)


@pytest.mark.parametrize("first", [0.1, 3.0])
def test_more_evaluations_never_end_higher(first):
    with x64():
        found, _, (value, _) = jax.jit(
            jax.vmap(lambda m: searched("waves", jnp.asarray(first), 1e-12, m))
        )(jnp.arange(25, dtype=jnp.int32))
    np.testing.assert_array_equal(found.evaluations, np.arange(25))
    np.testing.assert_allclose(found.value, value, rtol=1e-14)
    assert np.all(np.diff(found.value) <= 0)


@pytest.mark.parametrize("name", LINES)
def test_backtracking_is_the_oracles(name):
    with x64():
        line = jax.jit(LINES[name])

        @functools.partial(jax.jit, static_argnums=2)
        def search(first, factor, most):
            zero = jnp.zeros_like(first)
            start = Point(zero, *jax.value_and_grad(line)(zero))
            arguments = {"factor": factor, "max_evaluations": most}
            return start, backtrack(line, start, first, c1=1e-3, **arguments)

        for first, factor, most in ((10.0, 0.8, 40), (1.0, 0.5, 40), (10.0, 0.8, 3)):
            start, got = search(first, factor, most)
            want = oracles.armijo_length(
                lambda a: float(line(a)), float(start.slope), first, 1e-3, factor, most
            )
            np.testing.assert_allclose(got.a, want, rtol=1e-12)
            tried = most if want == 0 else round(np.log(want / first) / np.log(factor))
            assert got.evaluations == tried + (want > 0)
            np.testing.assert_allclose(got.value, line(want), rtol=1e-12)


def bowl(w, batch):
    return 0.5 * jnp.sum(jnp.array([1.0, 30.0]) * w**2)


def barrier(w, batch):
    """Infinite or NaN unless |w| < 1, the minimum near its edge."""
    return -jnp.sum(jnp.log(1 - w**2)) - 3 * jnp.sum(w)


def first_steps(loss_fn, optimizer, start, count=1, **arguments):
    step = jax.jit(steps.line_search(loss_fn, optimizer, **arguments))
    state, visited = init_state(jnp.asarray(start), optimizer, 0), []
    for _ in range(count):
        state, metrics = step(state, None)
        visited.append((np.asarray(state.params), metrics))
    return visited


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_step_is_the_direction_times_the_length(condition):
    [(got, metrics)] = first_steps(bowl, sgd(1.0), [1.0, -1.0], condition=condition)
    a = float(metrics["step_length"])
    gradient = np.array([1.0, -30.0])
    np.testing.assert_allclose(got, [1.0, -1.0] - a * gradient, atol=1e-6)
    np.testing.assert_allclose(metrics["next_loss"], bowl(got, None), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["update_norm"], a * np.linalg.norm(gradient), rtol=1e-6
    )
    slope = -gradient @ gradient
    assert metrics["next_loss"] <= bowl(np.array([1.0, -1.0]), None) + 1e-4 * a * slope
    if condition == "armijo":
        line = lambda a: float(bowl(np.array([1.0, -1.0]) - a * gradient, None))  # noqa: E731
        want = oracles.armijo_length(line, slope, 1.0, 1e-4, 0.8, 30)
        np.testing.assert_allclose(a, want, rtol=1e-6)
    else:
        end = np.array([1.0, 30.0]) * got
        assert abs(end @ gradient) <= 0.9 * -slope


@pytest.mark.parametrize(
    ("condition", "argument", "value"),
    [
        ("armijo", "slope_rtol", 0.9),
        ("armijo", "decrease_factor", 0.5),
        ("armijo", "max_learning_rate", 0.7),
        ("armijo", "max_evaluations", 2),
        ("strong_wolfe", "slope_rtol", 0.6),
        ("strong_wolfe", "curv_rtol", 0.01),
        ("strong_wolfe", "max_learning_rate", 1e-3),
        ("strong_wolfe", "max_evaluations", 2),
    ],
)
def test_every_argument_changes_the_length(condition, argument, value):
    optimizer = sgd(0.01 if argument == "curv_rtol" else 1.0)
    lengths = []
    for more in ({}, {argument: value}):
        arguments = {"condition": condition, **more}
        [(_, metrics)] = first_steps(bowl, optimizer, [1.0, -1.0], **arguments)
        lengths.append(float(metrics["step_length"]))
    assert lengths[0] != lengths[1]


def test_the_increase_factor_is_how_a_search_grows():
    for condition in CONDITIONS:
        lengths = []
        for factor in (1.5, 4.0):
            optimizer = chain(sgd(1e-3), scale_by_step_length())
            visited = first_steps(
                bowl,
                optimizer,
                [1.0, 0.0],
                condition=condition,
                increase_factor=factor,
                max_learning_rate=1e4,
                curv_rtol=0.5,
            )
            lengths.append(float(visited[0][1]["step_length"]))
        assert lengths[0] != lengths[1]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("start", [[0.0, 0.5], [0.999, -0.999]])
def test_values_that_are_not_finite_are_refused(condition, start):
    visited = first_steps(barrier, sgd(1.0), start, count=40, condition=condition)
    losses = [float(m["next_loss"]) for _, m in visited]
    assert np.all(np.isfinite(losses))
    rises = np.diff([float(barrier(jnp.array(start), None)), *losses])
    assert np.all(rises <= 1e-6)  # each step rounds its first loss anew
    minimum = (np.sqrt(10) - 1) / 3
    np.testing.assert_allclose(visited[-1][0], minimum, atol=2e-3)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_loss_of_minus_infinity_is_refused(condition):
    def loss_fn(w, batch):
        return jnp.log(jnp.abs(w))  # the whole step from 1 leads to 0

    [(got, metrics)] = first_steps(loss_fn, sgd(1.0), 1.0, condition=condition)
    assert np.isfinite(metrics["next_loss"])
    assert 0 < got < 1


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_direction_uphill_gives_way_to_the_gradient(condition):
    visited = first_steps(bowl, scale(1.0), [1.0, -1.0], 10, condition=condition)
    losses = [float(m["next_loss"]) for _, m in visited]
    assert losses[0] < 15.5
    assert np.all(np.diff(losses) <= 1e-6)  # each step rounds its first loss anew
    assert losses[-1] < 1.0


@pytest.mark.parametrize("condition", CONDITIONS)
def test_without_a_decrease_parameters_stay_bit_for_bit(condition):
    for loss_fn, start in (
        (bowl, [0.0, 0.0]),
        (lambda w, batch: jnp.sum(jnp.abs(w)), [0.0, 0.0]),
        (lambda w, batch: jnp.nan * jnp.sum(w), [1.0, 2.0]),
        (lambda w, batch: jnp.where(jnp.all(w == 1), 0.0, 1.0) + w[0], [1.0, 1.0]),
    ):
        [(got, metrics)] = first_steps(loss_fn, sgd(1.0), start, condition=condition)
        np.testing.assert_array_equal(got, np.float32(start))
        assert metrics["step_length"] == 0
        assert metrics["update_norm"] == 0


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_loss_never_rises_whatever_the_direction(condition):
    def loss_fn(w, batch):
        return jnp.sum(jnp.sin(3 * w) + 0.1 * w**2)

    step = steps.line_search(loss_fn, adam(0.5), condition)

    def trained(seed):
        start = 3 * jax.random.normal(jax.random.key(seed), (3,))
        _, history = run(step, init_state(start, adam(0.5), 0), lambda t: None, 25)
        return history

    history = jax.jit(jax.vmap(trained))(jnp.arange(20))
    assert np.all(np.diff(history["loss"], axis=1) <= 1e-6)
    assert np.all(history["next_loss"] <= history["loss"])
    assert np.all(history["evaluations"] <= 30)


def test_a_search_begins_with_the_last_length():
    optimizer = chain(sgd(1.0), scale_by_step_length(0.01))
    visited = first_steps(bowl, optimizer, [1.0, 0.0], 3, max_learning_rate=10.0)
    lengths = [float(m["step_length"]) for _, m in visited]
    np.testing.assert_allclose(lengths, [0.015, 0.0225, 0.03375], rtol=1e-6)
    assert [int(m["evaluations"]) for _, m in visited] == [1, 1, 1]
    reported = [float(m["scale_by_step_length/step_length"]) for _, m in visited]
    np.testing.assert_allclose(reported, [0.01, 0.015, 0.0225], rtol=1e-6)


def test_complex_parameters_descend():
    def loss_fn(z, batch):
        return jnp.sum(jnp.abs(z - (1 + 2j)) ** 2)

    for condition in CONDITIONS:
        start = jnp.array([0.0 + 0.0j, 3.0 - 1.0j])
        visited = first_steps(loss_fn, sgd(0.1), start, 25, condition=condition)
        np.testing.assert_allclose(visited[-1][0], [1 + 2j] * 2, atol=5e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": "goldstein"}, 'need condition="armijo" or "strong_wolfe"'),
        ({"max_evaluations": 0}, "need an int max_evaluations >= 1, got"),
        ({"slope_rtol": 0.0}, "need slope_rtol > 0"),
        ({"curv_rtol": 1.5}, "need 0.0 <= curv_rtol <= 1.0"),
        ({"slope_rtol": 1.0}, "need slope_rtol < 1.0, got slope_rtol=1.0"),
        ({"increase_factor": 0.5}, "need 1.0 <= increase_factor"),
        ({"increase_factor": 1.0}, "need increase_factor > 1.0"),
        (
            {"condition": "strong_wolfe", "slope_rtol": 0.5, "curv_rtol": 0.1},
            "need 0.5 <= curv_rtol",
        ),
        ({"max_learning_rate": 0.0}, "need max_learning_rate > 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        steps.line_search(bowl, sgd(1.0), **arguments)

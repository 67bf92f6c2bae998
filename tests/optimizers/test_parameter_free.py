"""Rules without a learning rate: convergence, estimates and reports."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_parameter_free
import problems
import pytest
from families_parameter_free import FAMILY, gradients
from float64_mode import x64
from trajectories import (
    STEPS,
    Visit,
)

from fngrad.optimizers.dadapt import dadapt_adamw, dadapt_sgd
from fngrad.optimizers.dog import dog
from fngrad.optimizers.prodigy import prodigy
from fngrad.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from fngrad.transforms.core import apply_updates, report
from fngrad.transforms.evaluation_point import evaluation_point
from fngrad.transforms.masking import partition

RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        *(schedule_free_sgd, schedule_free_adamw),
        *(prodigy, dadapt_adamw, dadapt_sgd, dog),
    )
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [("prodigy", 300), ("dadapt_adamw", 300), ("dadapt_sgd", 600), ("dog", 2000)],
)
def test_a_quadratic_is_minimised_without_a_learning_rate(name, steps):
    A = problems.quadratic(np.array([1.0, 2.0, 4.0])).astype(np.float32)
    optimizer = RECIPES[name]()

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(A @ x, state, x)
        return (x + updates, state), None

    @jax.jit
    def end(x):
        return jax.lax.scan(body, (x, optimizer.init(x)), length=steps)[0][0]

    start = np.full(3, 5.0, np.float32)
    x = np.asarray(end(start))
    assert x @ A @ x < 1e-2 * (start @ A @ start)


def first_report(optimizer, params):
    return jax.jit(lambda p: report(optimizer, p, optimizer.init(p), p))(params)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_a_report_has_the_distance_and_the_step_size(name):
    told = first_report(RECIPES[name](0.5), jnp.array([3.0, 4.0]))
    kinds = {key.rpartition("/")[2]: float(value) for key, value in told.items()}
    factor = {"prodigy": 0.5, "dadapt_adamw": 0.5, "dadapt_sgd": 0.5 / 5.0}[name]
    if name != "dadapt_sgd":
        factor *= 0.001**0.5 / 0.1  # Adam's correction of the first step
    assert kinds["d"] == pytest.approx(1e-6)
    assert kinds["learning_rate"] == pytest.approx(1e-6 * factor, rel=1e-4)


def test_dog_reports_the_distance_and_the_largest_step_size():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    optimizer = dog(init_step=("heuristic", 0.1), layerwise=True, eps=0.0)
    told = first_report(optimizer, params)
    assert told["scale_by_dog/distance"] == pytest.approx(0.1 * (1 + 5))
    assert told["scale_by_dog/step_size"] == pytest.approx(0.1 * (1 + 1) / 1)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_a_learning_rate_that_starts_at_zero_does_not_change_the_estimate(name):
    optimizer = RECIPES[name](lambda t: jnp.where(t < 2, 0.0, 1.0))
    params = jnp.array([1.0, -2.0])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(3):
        updates, state = update(params, state, params)
        assert bool(np.all(np.asarray(updates) == 0)) == (t < 2)
        assert np.all(np.isfinite(updates))


def test_dadapt_sgd_takes_its_scale_from_the_first_gradient_that_is_not_zero():
    optimizer, params = dadapt_sgd(estim_lr0=0.1), jnp.array([1.0, 1.0])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    updates, state = update(jnp.zeros(2), state, params)
    np.testing.assert_array_equal(updates, [0.0, 0.0])
    updates, state = update(jnp.array([3.0, 4.0]), state, params)
    np.testing.assert_allclose(updates, [-0.06, -0.08], rtol=1e-5)


def test_a_derivative_through_the_estimate_is_finite():
    def end(coefficient):
        optimizer, x = prodigy(estim_lr_coef=coefficient), jnp.array([1.0, 0.0])

        def body(carry, _):
            x, state = carry
            updates, state = optimizer.update(2 * x, state, x)
            return (x + updates, state), None

        return jnp.sum(jax.lax.scan(body, (x, optimizer.init(x)), length=4)[0][0])

    assert np.isfinite(jax.jit(jax.grad(end))(1.0))


def test_dog_accepts_complex_parameters():
    z, w = jnp.array([1 + 2j]), jnp.array([1.0, 2.0])
    optimizer = dog(init_step=("distance", 0.5))
    update = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p))
    steps = [np.asarray(update(params)[0]) for params in (z, w)]
    np.testing.assert_allclose(steps[0].view(np.float32), steps[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_the_estimates_of_these_trajectories_grow(name):
    rows = np.tile(np.linspace(-2, 2, 6), (STEPS, 1))
    still_visit = Visit(gradients(), rows, None)
    _, still = FAMILY.whole(name, {"estim_lr0": 1e-6}, still_visit)
    assert still[0] == 1e-6
    with x64():
        visit = FAMILY.visit(name, {}, jnp.float64, double=True)
    _, estimates = FAMILY.whole(name, {}, visit)
    assert np.all(np.diff(estimates) >= 0)
    assert estimates[-1] > 1.5 * estimates[0]


def test_dogs_average_is_the_oracles():
    arguments: dict[str, Any] = {"init_step": ("distance", 0.1), "averaging": 8.0}
    with x64():
        optimizer = dog(**arguments)
        params = np.linspace(-2.0, 2.0, 6)
        state, given, at, got = jax.jit(optimizer.init)(params), gradients(), [], []

        @jax.jit
        def step(gradient, state, params):
            updates, state = optimizer.update(gradient, state, params)
            params = apply_updates(params, updates)
            return state, params, evaluation_point(state, params)

        for g in given:
            at.append(params)
            state, params, point = step(g, state, params)
            got.append(point)
    _, want = oracles_parameter_free.dog(
        given, np.array(at), np.ones(STEPS), **arguments
    )
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_prodigy_in_groups_estimates_a_distance_for_each():
    rng = np.random.default_rng(0)
    gradients = {"near": rng.normal(size=(6, 3)) + 1.0}
    gradients["far"] = 3.0 * rng.normal(size=(6, 2)) - 5.0
    rule = prodigy(estim_lr0=1e-2)
    optimizer = partition([("near", rule), ("far", rule)])
    visited = {name: [] for name in gradients}
    with x64():
        params = {name: jnp.ones(g.shape[1]) for name, g in gradients.items()}
        state = optimizer.init(params)
        for t in range(6):
            given = {name: jnp.asarray(g[t]) for name, g in gradients.items()}
            updates, state = optimizer.update(given, state, params)
            for name, update in updates.items():
                visited[name].append((params[name], update))
            params = apply_updates(params, updates)
    distances = {}
    for name, rows in visited.items():
        places, updates = (np.array(x) for x in zip(*rows, strict=True))
        want, estimates = oracles_parameter_free.prodigy(
            gradients[name], places, np.ones(6), estim_lr0=1e-2
        )
        np.testing.assert_allclose(updates, want, rtol=1e-9)
        distances[name] = estimates[-1]
    assert distances["far"] > 1.5 * distances["near"] > 0.015

"""Schedule-free: its three sequences, their weights, and the inner optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_parameter_free as oracles
import problems
import pytest
from float64_mode import x64

import fngrad as fg
from fngrad.optimizers.schedule_free import (
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
)
from fngrad.transforms.core import apply_updates, report

STEPS = 25


def visited(optimizer, start, gradient_fn, steps=STEPS):
    """Return the parameters and the states after each step."""

    def body(carry, t):
        params, state = carry
        updates, state = optimizer.update(gradient_fn(params, t), state, params)
        params = apply_updates(params, updates)
        return (params, state), (params, state["schedule_free"])

    carry = (start, optimizer.init(start))
    return jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(steps)))(carry)[1]


def rates(step):
    return 0.1 * 0.9 ** step.astype(jnp.float64)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("schedule_free_sgd", {"b1": 0.8, "weight_decay": 0.1, "warmup_steps": 4}),
        ("schedule_free_sgd", {"b1": 0.0}),
        ("schedule_free_adamw", {"weight_lr_power": 1.0, "b2": 0.9}),
    ],
)
def test_the_evaluation_point_is_the_oracles(name, arguments):
    factory = {"schedule_free_sgd": schedule_free_sgd}.get(name, schedule_free_adamw)
    given = problems.hard_gradients(STEPS)
    start = np.linspace(-2, 2, 6)
    with x64():
        gradients = jnp.asarray(given)
        optimizer = factory(rates, **arguments)
        params, states = visited(
            optimizer, jnp.asarray(start), lambda _, t: gradients[t]
        )
    at = np.concatenate([start[None], params[:-1]])
    oracle = getattr(oracles, name)
    _, want = oracle(given, at, problems.decaying(0.1, STEPS), **arguments)
    np.testing.assert_allclose(states.x, want, rtol=1e-12, atol=1e-13)


def test_without_interpolation_it_is_the_inner_optimizer_and_the_mean_of_its_path():
    start = jnp.array([4.0, -1.0])
    optimizer = schedule_free(fg.sgd(0.1), 0.1, b1=0.0)
    params, states = visited(optimizer, start, lambda w, _: w)
    t = np.arange(1, STEPS + 1)[:, None]
    path = 0.9**t * np.array([4.0, -1.0])
    np.testing.assert_allclose(params, path, rtol=1e-5)
    np.testing.assert_allclose(states.x, np.cumsum(path, axis=0) / t, rtol=1e-5)


def test_full_interpolation_trains_at_the_average():
    optimizer = schedule_free_sgd(0.5, b1=1.0)
    params, states = visited(optimizer, jnp.array([3.0]), lambda w, _: w)
    np.testing.assert_allclose(params, states.x, rtol=1e-6)


def test_the_first_step_has_the_schedules_first_value():
    def schedule(step):
        return jnp.where(step == 0, 1.0, 0.25)

    optimizer = schedule_free(fg.sgd(schedule), schedule, weight_lr_power=1.0)
    _, states = visited(optimizer, jnp.array([1.0]), lambda w, t: jnp.ones(1), 2)
    # z = -0, then -1/4 more; the largest learning rate so far, 1, weighs both equally.
    np.testing.assert_allclose(states.z[:, 0], [0.0, -0.25])
    np.testing.assert_allclose(states.x[:, 0], [0.0, -0.125])
    np.testing.assert_array_equal(states.max_learning_rate, [1.0, 1.0])


def test_while_learning_rates_are_zero_nothing_moves():
    optimizer = schedule_free_sgd(lambda t: jnp.where(t < 3, 0.0, 0.5))
    params, states = visited(optimizer, jnp.array([2.0]), lambda w, _: w, 5)
    np.testing.assert_array_equal(params[:3, 0], [2.0, 2.0, 2.0])
    np.testing.assert_allclose(states.x[3], states.z[3])  # the first real weight is 1
    assert np.all(np.isfinite(params))


def test_a_power_of_zero_weighs_a_zero_learning_rate_too():
    schedule = lambda t: jnp.where(t < 1, 0.0, 0.5)  # noqa: E731
    optimizer = schedule_free(fg.sgd(schedule), schedule, 0.0, weight_lr_power=0.0)
    _, states = visited(optimizer, jnp.array([2.0]), lambda w, _: w, 2)
    np.testing.assert_allclose(states.x[1], [(2.0 + 1.0) / 2])


def test_warmup_rises_linearly_to_the_learning_rate():
    optimizer = schedule_free_sgd(0.4, warmup_steps=4, weight_lr_power=1.0)
    _, states = visited(optimizer, jnp.zeros(1), lambda w, t: jnp.ones(1), 6)
    rises = np.array([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    np.testing.assert_allclose(states.z[:, 0], -np.cumsum(rises), rtol=1e-6)
    np.testing.assert_allclose(states.weight_sum, np.cumsum(rises), rtol=1e-6)


def test_it_reports_the_weight_and_the_metrics_of_the_inner_optimizer():
    optimizer, params = schedule_free_sgd(0.5), jnp.ones(2)
    state = optimizer.init(params)
    for _ in range(3):
        told = report(optimizer, params, state, params)
        _, state = optimizer.update(params, state, params)
    assert told["schedule_free/averaging_weight"] == pytest.approx(1 / 3)
    assert told["schedule_free/scale_by_learning_rate/learning_rate"] == 0.5


def test_bfloat16_parameters_stay_on_the_float32_path():
    optimizer = schedule_free_sgd(1e-3)
    _, narrow = visited(
        optimizer, jnp.ones(2, jnp.bfloat16), lambda w, t: jnp.ones(2), 200
    )
    _, wide = visited(optimizer, jnp.ones(2), lambda w, t: jnp.ones(2), 200)
    np.testing.assert_allclose(narrow.x[-1], wide.x[-1], rtol=1e-6)
    assert narrow.z.dtype == jnp.float32


def test_complex_parameters_move_as_pairs_of_reals():
    z, pair = jnp.array([3.0 - 4.0j]), jnp.array([3.0, -4.0])
    _, one = visited(schedule_free_sgd(0.1), z, lambda w, t: w, 5)
    _, two = visited(schedule_free_sgd(0.1), pair, lambda w, t: w, 5)
    got = np.stack([one.x.real[:, 0], one.x.imag[:, 0]], axis=1)
    np.testing.assert_allclose(got, two.x, rtol=1e-6)


def test_hyperparameters_are_data():
    def end(learning_rate, b1):
        optimizer = schedule_free_adamw(learning_rate, warmup_steps=3, b1=b1)
        return visited(optimizer, jnp.array([2.0]), lambda w, _: w, 5)[0][-1]

    grid = jnp.array([0.1, 0.2]), jnp.array([0.9, 0.5])
    batched = jax.vmap(end)(*grid)
    alone = [end(*point) for point in zip(*grid, strict=True)]
    np.testing.assert_allclose(batched, jnp.stack(alone), rtol=1e-6)

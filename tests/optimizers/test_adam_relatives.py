"""Adam's relatives: the closed forms and edge cases that distinguish them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_moments
import pytest
from float64_mode import x64
from trajectories import case_id

import fngrad.schedules as schedules
from fngrad.optimizers.adabelief import adabelief
from fngrad.optimizers.adam import adam, adamw
from fngrad.optimizers.adamax import adamax
from fngrad.optimizers.adan import adan
from fngrad.optimizers.ademamix import ademamix, half_life_warmup
from fngrad.optimizers.adopt import adopt
from fngrad.optimizers.amsgrad import amsgrad
from fngrad.optimizers.nadam import nadam
from fngrad.optimizers.radam import radam
from fngrad.optimizers.yogi import scale_by_yogi, yogi
from fngrad.transforms.core import apply_updates, report

OPTIMIZERS = (adamax, amsgrad, nadam, radam, adabelief, adan, adopt, ademamix, yogi)
ROWS = np.random.default_rng(3).normal(size=(12, 5))


def name_of(value):
    return getattr(value, "__name__", None) or case_id(value)


def run(optimizer, gradients, params=None):
    """Return the updates along these gradients, shape (steps, size)."""
    params = jnp.zeros(gradients.shape[1]) if params is None else params

    def body(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (apply_updates(params, updates), state), updates

    start = params, optimizer.init(params)
    return jax.lax.scan(body, start, jnp.asarray(gradients))[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_a_quadratic_is_descended_from_a_learning_rate_alone(optimizer):
    made = optimizer(0.1)
    params = jnp.array([1.0, -2.0])

    def body(carry, _):
        params, state = carry
        updates, state = made.update(params, state, params)
        return (apply_updates(params, updates), state), None

    start = params, made.init(params)
    (end, _), _ = jax.lax.scan(body, start, length=300)
    assert jnp.linalg.norm(end) < 0.2 * jnp.linalg.norm(params)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_zero_gradients_move_nothing_and_have_finite_derivatives(optimizer):
    made = optimizer(0.1, eps=0.0)

    def total(gradients):
        return jnp.sum(run(made, gradients))

    zeros = jnp.zeros((8, 3))
    if optimizer is not yogi:  # its averages do not start at zero
        assert not jnp.any(run(made, zeros))
    assert jnp.all(jnp.isfinite(jax.grad(total)(zeros)))


def test_nadam_without_a_warm_up_is_adam_that_looks_ahead():
    with x64():
        got, want = run(nadam(0.1), ROWS), run(adam(0.1, nesterov=True), ROWS)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        decayed = nadam(0.1, weight_decay=0.2)
        like = adamw(0.1, weight_decay=0.2, nesterov=True)
        np.testing.assert_allclose(run(decayed, ROWS), run(like, ROWS), rtol=1e-12)


def test_a_huge_momentum_decay_ends_nadams_warm_up_in_one_step():
    with x64():
        np.testing.assert_allclose(
            run(nadam(0.1, momentum_decay=1e6), ROWS), run(nadam(0.1), ROWS), rtol=1e-12
        )


def test_amsgrad_is_adam_while_the_second_moment_grows():
    growing = np.abs(ROWS[:1]) * np.arange(1.0, 13.0)[:, None] ** 2
    with x64():
        want = run(adam(0.1), growing)
        for debias in ("before_max", "after_max"):
            got = run(amsgrad(0.1, debias=debias), growing)
            np.testing.assert_allclose(got, want, rtol=1e-12)


def test_amsgrad_keeps_the_second_moment_of_one_huge_gradient():
    spike = np.ones((120, 1))
    spike[0] = 1e3
    steps = np.abs(run(amsgrad(0.1, b2=0.5), spike))[-1] / 0.1
    np.testing.assert_allclose(steps, 1e-3, rtol=1e-2)
    assert np.abs(run(adam(0.1, b2=0.5), spike))[-1] > 0.09


def test_adamax_steps_by_the_sign_of_a_constant_gradient():
    with x64():
        got = run(adamax(0.1, eps=0.0), np.full((20, 2), [3e-4, -1e5]))
    np.testing.assert_allclose(got, np.full((20, 2), [-0.1, 0.1]), rtol=1e-12)


def test_radam_becomes_adam_and_reports_its_rectification():
    with x64():
        made = radam(0.1, b2=0.9)
        gradients = np.tile(ROWS[:, :1], (30, 1))
        got, want = run(made, gradients), run(adam(0.1, b2=0.9), gradients)
        np.testing.assert_allclose(got[-1], want[-1], rtol=1e-10)
        params = jnp.zeros(1)
        state = made.init(params)
        told = []
        for _ in range(8):
            told.append(report(made, params, state, params))
            _, state = made.update(params, state, params)
    values = [float(t["scale_by_radam/rectification"]) for t in told]
    assert values[:5] == [0.0] * 5
    assert 0 < values[5] < values[6] < values[7] < 1


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.9999])
def test_radams_rectification_in_float32_has_seven_digits(b2):
    steps = range(6, 26)
    held = float(np.float32(b2))
    ones, zeros = np.ones((25, 1)), np.zeros((25, 1))
    # With equal gradients Adam's direction is 1, so the update is r itself.
    want = oracles_moments.radam(ones, zeros, np.ones(25), b2=held, eps=0.0)
    made = radam(1.0, b2=b2, eps=0.0)
    got = np.array(run(made, ones))
    for t in steps:
        np.testing.assert_allclose(got[t - 1], want[t - 1], rtol=5e-7)


def test_adan_looks_ahead_along_a_growing_gradient():
    with x64():
        # Of g = t all averages of changes are 1: mu_hat + b2 over rms(t + b2).
        gradients = np.arange(1.0, 4.0)[:, None]
        made = adan(1.0, b1=0.0, b2=0.5, b3=0.0, eps=0.0)
        got = run(made, gradients)[:, 0]
    # d = 0, 1, 1; averages of d: 0, 1/2 / (3/4), 3/4 / (7/8).
    want = [-1.0, -(2 + 0.5 * 2 / 3) / 2.5, -(3 + 0.5 * 6 / 7) / 3.5]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_proximal_decay_shrinks_without_gradients_and_never_changes_sign():
    params = jnp.array([1.0, -2.0])
    made = adan(10.0, weight_decay=1.0)
    updates = run(made, np.zeros((3, 2)), params)
    np.testing.assert_allclose(
        params + jnp.sum(updates, 0), params / 11.0**3, rtol=1e-3
    )


def test_adopt_does_not_step_along_its_first_gradient():
    gradients = np.full((3, 2), [1e30, -3.0], np.float32)
    updates = run(adopt(0.1, use_clipping=False), gradients)
    assert not np.any(updates[0])
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(updates[1:, 1], [0.01, 0.019], rtol=1e-5)
    assert np.all(np.isfinite(updates))


def test_adopt_does_not_divide_by_the_gradient_it_divides():
    gradients = np.array([[1.0], [1e6]])
    clipped = run(adopt(1.0, b1=0.0), gradients)
    free = run(adopt(1.0, b1=0.0, use_clipping=False), gradients)
    np.testing.assert_allclose(clipped[1], -1.0, rtol=1e-6)
    np.testing.assert_allclose(free[1], -1e6, rtol=1e-6)


def test_yogis_second_moment_falls_by_the_square_of_a_small_gradient():
    rule = scale_by_yogi(b2=0.9, initial_accumulator_value=4.0)
    params = jnp.zeros(1)
    _, state = rule.update(jnp.array([0.5]), rule.init(params), params)
    np.testing.assert_allclose(state["scale_by_yogi"].nu, 4.0 - 0.1 * 0.25, rtol=1e-6)


def test_ademamix_without_its_slow_average_is_adam():
    with x64():
        got, want = run(ademamix(0.1, alpha=0.0), ROWS), run(adam(0.1), ROWS)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_ademamix_accepts_the_papers_warm_ups():
    with x64():
        alpha = schedules.linear(0.0, 5.0, 10)
        b3 = half_life_warmup(0.9, 0.9999, 10)
        got = run(ademamix(0.1, b3=b3, alpha=alpha), ROWS)
        want = oracles_moments.ademamix(
            ROWS,
            np.zeros_like(ROWS),
            np.full(12, 0.1),
            b3=lambda step: oracles_moments.half_life_warmup(0.9, 0.9999, 10, step),
            alpha=lambda step: 5.0 * min(step / 10, 1.0),
        )
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_a_half_life_warm_up_rises_in_a_straight_line_of_half_lives():
    schedule = half_life_warmup(0.5, 0.999, steps=8)
    values = np.array([schedule(step) for step in range(12)], np.float64)
    half_lives = np.log(0.5) / np.log(values)
    assert values[0] == np.float32(0.5)
    assert np.all(values[8:] == np.float32(0.999))
    np.testing.assert_allclose(
        np.diff(half_lives[:9]), np.ptp(half_lives) / 8, rtol=0.01
    )


def test_a_half_life_warm_up_may_start_at_zero():
    schedule = half_life_warmup(0.0, 0.99, steps=4)
    assert schedule(0) == 0
    np.testing.assert_allclose(schedule(2), 0.99**2, rtol=1e-6)


def test_a_warm_up_out_of_range_is_refused():
    with pytest.raises(ValueError, match="need end_value < 1"):
        half_life_warmup(0.9, 1.0, 10)
    with pytest.raises(ValueError, match="need 0 <= steps"):
        half_life_warmup(0.9, 0.99, -1)


def test_rules_without_bias_correction_accept_a_decay_of_one():
    for made in (amsgrad(0.1, b2=1.0, debias="never"), yogi(0.1, b2=1.0, debias=False)):
        assert np.all(np.isfinite(run(made, ROWS)))

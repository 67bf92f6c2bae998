"""Traces and averages of updates, compared with explicit sums."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from fngrad.transforms.momentum_buffers import ema, trace

GRADIENTS = problems.hard_gradients()


def updates_of(transform, gradients=GRADIENTS):
    """Return the updates for a sequence of gradients, in the same shape."""

    def body(state, gradient):
        updates, state = transform.update(gradient, state, params)
        return state, updates

    params = jnp.zeros_like(gradients[0])
    scan = jax.jit(lambda s, g: jax.lax.scan(body, s, g))
    return np.asarray(scan(transform.init(params), jnp.asarray(gradients))[1])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"nesterov": True},
        {"dampening": 0.3},
        {"dampening": 0.9},
        {"dampening": 0.3, "damp_first": False},
        {"dampening": 0.3, "damp_first": False, "nesterov": True},
    ],
)
def test_trace_is_the_oracles(arguments):
    want = np.array(list(oracles.heavy_ball(GRADIENTS, 0.9, **arguments)))
    scale = np.maximum(np.abs(want).max(axis=0), 1e-30)  # terms cancel
    got = updates_of(trace(0.9, **arguments))
    np.testing.assert_allclose(got / scale, want / scale, rtol=1e-6, atol=1e-6)


def test_pytorchs_dampening_is_not_an_average():
    ones = np.ones((3, 1))
    average = updates_of(trace(0.5, dampening=0.5), ones)
    pytorch = updates_of(trace(0.5, dampening=0.5, damp_first=False), ones)
    np.testing.assert_array_equal(average[:, 0], [0.5, 0.75, 0.875])
    np.testing.assert_array_equal(pytorch[:, 0], [1.0, 1.0, 1.0])


def test_a_trace_damped_by_its_decay_is_the_average():
    damped = updates_of(trace(0.9, dampening=0.9))
    np.testing.assert_allclose(
        damped, updates_of(ema(0.9, debias=False)), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("debias", [True, False])
def test_ema_is_its_weighted_mean(debias):
    t = np.arange(len(GRADIENTS))
    weights = np.where(t[:, None] >= t, 0.1 * 0.9 ** (t[:, None] - t), 0.0)
    if debias:
        weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        updates_of(ema(0.9, debias)), weights @ GRADIENTS, rtol=3e-6, atol=1e-10
    )


def test_a_decay_may_be_a_schedule():
    def forget(step):
        return jnp.where(step == 2, 0.0, 0.9)

    ones = np.ones((4, 1))
    np.testing.assert_allclose(
        updates_of(trace(forget), ones)[:, 0], [1.0, 1.9, 1.0, 1.9], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trace(1.1), r"need 0.0 <= decay <= 1.0, got decay=1.1"),
        (lambda: trace(0.9, dampening=-1), "need 0.0 <= dampening <= 1.0"),
        (lambda: ema(1.0), r"need decay < 1 to correct for bias, got decay=1.0"),
        (lambda: ema(-0.1, debias=False), "need 0.0 <= decay"),
    ],
)
def test_a_decay_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_average_without_correction_accepts_a_decay_of_one():
    assert np.all(updates_of(ema(1.0, debias=False)) == 0)

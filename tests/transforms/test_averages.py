"""Slow weights and averages, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import adam, momentum, sgd
from fngrad.transforms.accumulation import accumulate
from fngrad.transforms.averages import ema_params, lookahead
from fngrad.transforms.core import apply_updates, chain, named
from fngrad.transforms.evaluation_point import evaluation_point
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.scaling import scale
from fngrad.transforms.tunable_hyperparameters import set_hyperparameters, tunable

STEPS = 25
RATE, DECAY = 0.3, 0.9


def falling(step):
    return RATE / (1.0 + step.astype(jnp.result_type(float)))


def growing(step):
    t = step.astype(jnp.result_type(float))
    return jnp.minimum(0.95, (1.0 + t) / (10.0 + t))


def gradients():
    rng = np.random.default_rng(3)
    return rng.normal(size=(STEPS, 4)) * np.array([1.0, 1e-3, 1e3, 0.0])


def visit(optimizer, params, given):
    """Return the parameters and the evaluation points after each update."""
    return visit_from(optimizer, params, optimizer.init(params), given)


def visit_from(optimizer, params, state, given):

    def body(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = apply_updates(params, updates)
        return (params, state), (params, evaluation_point(state, params))

    start = params, state
    return jax.jit(lambda s, g: jax.lax.scan(body, s, g)[1])(start, given)


def lookahead_oracle(w, gradients, k, alpha, reset):
    """Zhang et al. 2019, algorithm 1, around heavy ball with a falling rate."""
    fast, slow, buffer, t, visited = w.copy(), w.copy(), np.zeros_like(w), 0, []
    for i, g in enumerate(gradients, start=1):
        buffer = DECAY * buffer + g
        fast = fast - RATE / (1 + t) * buffer
        t += 1
        if i % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow.copy()
            if reset:
                buffer, t = np.zeros_like(w), 0
        visited.append((fast, slow))
    return [np.array(column) for column in zip(*visited, strict=True)]


@pytest.mark.parametrize(
    ("k", "alpha", "reset"), [(6, 0.5, False), (4, 0.8, False), (4, 0.8, True)]
)
def test_lookahead_is_the_algorithm(k, alpha, reset, x64):
    start = np.array([1.0, -2.0, 0.5, 3.0])
    optimizer = lookahead(momentum(falling, DECAY), k, alpha, reset)
    got = visit(optimizer, jnp.asarray(start), jnp.asarray(gradients()))
    want = lookahead_oracle(start, gradients(), k, alpha, reset)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_lookahead_with_a_slow_step_of_one_is_the_inner_optimizer(x64):
    start, given = jnp.ones(4), jnp.asarray(gradients())
    want, _ = visit(adam(falling), start, given)
    got, _ = visit(lookahead(adam(falling), 3, 1.0), start, given)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_values_that_were_changed_outlive_a_reset():
    inner = chain(
        named("slow", tunable(scale, step_size=1.0)), tunable(sgd, learning_rate=1.0)
    )
    optimizer, params = lookahead(inner, 2, 1.0, reset_state=True), jnp.zeros(1)
    state = set_hyperparameters(
        optimizer.init(params), learning_rate=0.25, step_size=2.0
    )
    params, _ = visit_from(optimizer, params, state, jnp.ones((5, 1)))
    np.testing.assert_allclose(params[:, 0], [-0.5, -1.0, -1.5, -2.0, -2.5])


def test_slow_weights_of_bfloat16_parameters_keep_float32():
    optimizer, params = lookahead(sgd(2.0**-10), 1, 0.5), jnp.ones((), jnp.bfloat16)
    state = optimizer.init(params)
    for _ in range(4):
        _, state = optimizer.update(jnp.ones((), jnp.bfloat16), state, params)
    assert state["lookahead"].slow.dtype == jnp.float32
    assert 1 - 2.0**-9 < state["lookahead"].slow < 1


def test_lookahead_keeps_no_slow_weights_of_frozen_leaves():
    inner = partition([("head", sgd(1.0)), ("**", freeze())])
    params = {"ids": jnp.arange(3), "head": jnp.ones(2)}
    optimizer = lookahead(inner, 1)
    state = optimizer.init(params)
    assert state["lookahead"].slow["ids"] is None
    given = {"ids": jnp.zeros(3), "head": jnp.ones(2)}
    updates, state = optimizer.update(given, state, params)
    np.testing.assert_array_equal(updates["head"], [-0.5, -0.5])
    np.testing.assert_array_equal(evaluation_point(state, params)["ids"], [0, 1, 2])


def ema_oracle(w, visited, decay, debias, every, start):
    average, weight, points = w.copy() * (not debias), float(not debias), []
    for t, new in enumerate(visited):
        if t < start:
            average = average if debias else new
        elif (t - start + 1) % every == 0:
            beta = decay(t)
            average = beta * average + (1 - beta) * new
            weight = beta * weight + (1 - beta)
        points.append(average / weight if weight else new)
    return np.array(points)


EMAS = {
    "debiased": {},
    "from the parameters": {"debias": False},
    "seldom": {"every": 3},
    "late": {"start_step": 5},
    "late from there": {"start_step": 5, "every": 2, "debias": False},
}


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("case", EMAS)
def test_ema_params_is_the_average(case, scheduled, x64):
    start = np.array([1.0, -2.0, 0.5, 3.0])
    average = ema_params(growing if scheduled else 0.9, **EMAS[case])
    optimizer = chain(sgd(falling), average)
    params, points = visit(optimizer, jnp.asarray(start), jnp.asarray(gradients()))
    decay = (lambda t: min(0.95, (1 + t) / (10 + t))) if scheduled else lambda t: 0.9
    arguments = {"debias": True, "every": 1, "start_step": 0, **EMAS[case]}
    want = ema_oracle(start, np.asarray(params), decay, *arguments.values())
    np.testing.assert_allclose(points, want, rtol=1e-12)


def test_slow_averages_are_debiased_without_loss_in_float32():
    optimizer, params = chain(sgd(0.1), ema_params(0.99999)), jnp.full(1, 3.0)
    _, points = visit(optimizer, params, jnp.zeros((STEPS, 1)))
    np.testing.assert_allclose(points, np.full((STEPS, 1), 3.0), rtol=1e-6)


@pytest.mark.parametrize("debias", [True, False])
def test_before_any_update_the_average_is_the_parameters(debias):
    params = {"w": jnp.array([1.5, -2.0], jnp.bfloat16), "ids": jnp.arange(2)}
    average = ema_params(0.9, debias)
    optimizer = chain(partition([("ids", freeze()), ("**", sgd(0.1))]), average)
    state = optimizer.init(params)
    assert tree.mismatch(params, evaluation_point(state, params)) is None
    jax.tree.map(np.testing.assert_array_equal, evaluation_point(state, params), params)
    assert state["ema_params"].average["w"].dtype == jnp.float32


def test_ema_params_inside_an_accumulation_counts_updates():
    optimizer = accumulate(chain(sgd(1.0), ema_params(0.5, debias=False)), 2)
    params, points = visit(optimizer, jnp.zeros(1), jnp.ones((4, 1)))
    np.testing.assert_allclose(params[:, 0], [0, -1, -1, -2])
    np.testing.assert_allclose(points[:, 0], [0, -0.5, -0.5, -1.25])


def test_ema_params_passes_updates_on_and_averages_what_they_lead_to():
    optimizer = chain(sgd(2.0**-10), ema_params(0.0))
    params = jnp.ones((), jnp.bfloat16)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert updates == -(2.0**-10)
    assert state["ema_params"].average == 1.0  # bfloat16 cannot hold 1 - 2**-10


@pytest.mark.parametrize(
    "transform",
    [lookahead(momentum(0.1), 2, reset_state=True), chain(sgd(0.1), ema_params(0.9))],
    ids=["lookahead", "ema_params"],
)
def test_the_laws_hold(transform):
    check_transform(transform)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lookahead(sgd(0.1), 0), "need an int sync_period >= 1, got .*=0"),
        (lambda: lookahead(sgd(0.1), 6, 1.5), "need 0.0 <= slow_step_size <= 1.0"),
        (lambda: ema_params(1.0), "need decay < 1 to correct for bias"),
        (lambda: ema_params(1.5, debias=False), "need 0.0 <= decay <= 1.0"),
        (lambda: ema_params(every=0), "need an int every >= 1, got every=0"),
        (lambda: ema_params(start_step=-1), "need an int start_step >= 0"),
        (lambda: ema_params(every=True), "need an int every >= 1, got every=True"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""SAM, the Polyak step and plateaus against their oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_steps as oracles
import problems
import pytest
from float64_mode import x64

import fngrad.steps as steps
from fngrad.fitting.training_loop import fit
from fngrad.optimizers import adam, momentum, sgd
from fngrad.training import init_state, make_step, run
from fngrad.transforms.core import chain
from fngrad.transforms.plateau import reduce_on_plateau

A = problems.quadratic(np.array([0.1, 1.0, 3.0, 10.0, 30.0, 100.0]))
W = np.linspace(-2, 2, 6)
STEPS = 25


def loss_fn(w, batch):
    return 0.5 * w @ jnp.asarray(A, w.dtype) @ w + jnp.sum(w**4) + 0.5


def gradient(w):
    return A @ w + 4 * w**3


def loss(w):
    return 0.5 * w @ A @ w + np.sum(w**4) + 0.5


def trajectory(step, optimizer, start=W, count=STEPS):
    """Return parameters before each step, and what the steps report."""

    def visited(state, batch):
        new, metrics = step(state, batch)
        return new, metrics | {f"w{i}": state.params[i] for i in range(len(start))}

    state = init_state(jnp.asarray(start), optimizer, 0)
    state, history = jax.jit(lambda s: run(visited, s, lambda t: None, count))(state)
    columns = [history[f"w{i}"] for i in range(len(start))]
    points = np.vstack([np.stack(columns, axis=1), state.params])
    return points, history


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_steps_by_the_gradient_uphill(adaptive):
    def rho(t):
        return 0.3 * 0.9**t

    with x64():
        optimizer = momentum(1e-3)
        step = steps.sam(
            loss_fn, optimizer, lambda t: rho(t.astype(float)), adaptive=adaptive
        )
        points, history = trajectory(step, optimizer)
    buffer = 0.0
    for t in range(STEPS):
        w = points[t]
        uphill = oracles.sam_point(w, gradient(w), rho(t), adaptive)
        buffer = 0.9 * buffer + gradient(uphill)
        np.testing.assert_allclose(points[t + 1], w - 1e-3 * buffer, rtol=1e-12)
        rise = loss(uphill) - loss(w)
        np.testing.assert_allclose(history["sharpness"][t], rise, rtol=1e-9)
        np.testing.assert_allclose(
            history["grad_norm"][t], np.linalg.norm(gradient(w)), rtol=1e-12
        )


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_without_a_radius_is_the_plain_step_bit_for_bit(adaptive):
    plain, _ = trajectory(make_step(loss_fn, adam(0.1)), adam(0.1), np.float32(W))
    step = steps.sam(loss_fn, adam(0.1), rho=0.0, adaptive=adaptive)
    got, history = trajectory(step, adam(0.1), np.float32(W))
    np.testing.assert_array_equal(got, plain)
    np.testing.assert_array_equal(history["sharpness"], 0)


def test_sam_at_a_minimum_stays():
    step = steps.sam(lambda w, batch: jnp.sum(w**2), sgd(0.1), adaptive=True)
    state, metrics = jax.jit(step)(init_state(jnp.zeros(3), sgd(0.1), 0), None)
    np.testing.assert_array_equal(state.params, 0)
    assert metrics["sharpness"] == 0


def test_sam_reports_that_its_second_evaluation_is_not_finite():
    def edged(w, batch):
        return jnp.sum(jnp.where(w > 1.2, jnp.nan, 1.0) * w**2)

    step = jax.jit(steps.sam(edged, sgd(0.1), rho=0.5))
    state, metrics = step(init_state(jnp.ones(1), sgd(0.1), 0), None)
    assert np.isnan(state.params[0])
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not metrics["is_finite"]


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_of_complex_parameters_is_that_of_pairs_of_real_ones(adaptive):
    def loss_of(z, batch):
        return jnp.sum(jnp.abs(z) ** 4)

    def loss_of_pairs(pairs, batch):
        return jnp.sum(jnp.sum(pairs**2, axis=0) ** 2)

    # With |z| of a pair's entries one by one it is the same only on the real axis.
    z = jnp.array([3.0 + 0.0j, -0.5] if adaptive else [1.0 + 2.0j, 0.5 - 1.0j])
    pairs = jnp.stack([z.real, z.imag])
    ends = []
    for loss, start in ((loss_of, z), (loss_of_pairs, pairs)):
        step = jax.jit(steps.sam(loss, sgd(0.01), 0.5, adaptive))
        ends.append(step(init_state(start, sgd(0.01), 0), None)[0].params)
    np.testing.assert_allclose([ends[0].real, ends[0].imag], ends[1], rtol=1e-6)


def test_sam_keeps_the_model_state_of_its_first_look():
    def with_state(w, model_state, batch):
        return jnp.sum(w**2), ({"first": w[0]}, w[0])

    step = jax.jit(steps.sam(with_state, sgd(0.1), rho=0.5))
    first = init_state(jnp.ones(1), sgd(0.1), 0, model_state=jnp.zeros(()))
    state, metrics = step(first, None)
    assert state.model_state == 1
    assert metrics["first"] == 1
    np.testing.assert_allclose(state.params, 1 - 0.1 * 2 * 1.5, rtol=1e-6)


POLYAK = [
    {},
    {"f_min": 0.5},
    {"max_learning_rate": 0.01},
    {"eps": 30.0},
    {"f_min": 300.0},
    {"f_min": 300.0, "variant": "sps+"},
]


@pytest.mark.parametrize("arguments", POLYAK)
def test_polyak_steps_are_as_long_as_the_oracles(arguments):
    with x64():
        step = steps.polyak(loss_fn, sgd(0.7), **arguments)
        points, history = trajectory(step, sgd(0.7))
    for t in range(STEPS):
        w = points[t]
        length = oracles.polyak_length(loss(w), gradient(w), **arguments)
        np.testing.assert_allclose(
            history["step_length"][t], length, rtol=1e-10, atol=1e-15
        )
        want = w - 0.7 * length * gradient(w)
        np.testing.assert_allclose(points[t + 1], want, rtol=1e-10, atol=1e-13)


def test_every_argument_of_polyak_changes_the_steps():
    ends = [
        trajectory(steps.polyak(loss_fn, **arguments), sgd(1.0), np.float32(W), 6)[0]
        for arguments in POLYAK
    ]
    for i, one in enumerate(ends):
        assert not any(np.allclose(one, other, rtol=1e-3) for other in ends[:i])


def test_polyak_with_the_known_minimum_needs_no_learning_rate():
    def absolute(w, batch):
        return jnp.sum(jnp.abs(w))

    with x64():
        points, history = trajectory(steps.polyak(absolute), sgd(1.0), W[:1])
    np.testing.assert_allclose(points[2:], 0, atol=1e-15)
    assert float(history["step_length"][-1]) == 0


PLATEAU = {
    "factor": 0.5,
    "patience": 2,
    "rtol": 0.1,
    "atol": 0.2,
    "cooldown": 3,
    "accumulation_size": 2,
    "min_scale": 0.2,
}
VALUES = {
    "falling and flat": np.r_[np.linspace(3, 1, 5), np.ones(20)],
    "negative": np.r_[np.linspace(-1, -3, 5), -3 * np.ones(20)],
    "rising": np.linspace(-1, 1, 25),
    "noisy": 1 + np.random.default_rng(0).normal(size=25),
    "not finite": np.r_[2.0, np.nan, 1.0, np.inf, np.ones(21)],
}


def scales_of(values, **arguments):
    """Return the scale after each value was observed."""
    scan = plateau_program(tuple(arguments.items()))
    return np.asarray(scan(np.asarray(values, np.float32)))


@functools.cache
def plateau_program(arguments):
    optimizer = reduce_on_plateau(**dict(arguments))
    params = jnp.ones(())

    def body(state, value):
        state = steps.observe(state, value)
        updates, state = optimizer.update(params, state, params)
        return state, updates

    return jax.jit(lambda v: jax.lax.scan(body, optimizer.init(params), v)[1])


@pytest.mark.parametrize("name", VALUES)
def test_scales_are_the_oracles(name):
    singles = [{"patience": 2, k: v} for k, v in PLATEAU.items()]
    for arguments in ({"patience": 3}, PLATEAU, *singles):
        want = oracles.plateau_scales(VALUES[name], **arguments)
        np.testing.assert_allclose(scales_of(VALUES[name], **arguments), want, 1e-5)


def test_every_argument_of_the_plateau_changes_the_scales():
    falling = np.r_[1.0 - 0.06 * np.arange(6), 0.7 - 0.01 * np.arange(10)]
    values = np.r_[falling, np.full(14, 0.61)]
    start = {"patience": 3, "factor": 0.3}
    first = scales_of(values, **start)
    for name, value in PLATEAU.items():
        assert not np.allclose(first, scales_of(values, **{**start, name: value})), name


def test_a_plateau_is_seen_at_negative_losses_too():
    scales = scales_of(np.full(12, -5.0), patience=5)
    np.testing.assert_allclose(scales[[5, 6, 10, 11]], [0.1, 0.1, 0.01, 0.01], 1e-6)
    assert scales[4] == 1


def test_a_watched_step_slows_down_without_compiling_again():
    optimizer = chain(sgd(0.5), reduce_on_plateau(factor=0.5, patience=2))
    traces = []

    def oscillating(w, batch):
        traces.append(None)
        return 2 * w**2 - 7.0  # a step of 0.5 turns w into -w

    step = jax.jit(steps.plateau(make_step(oscillating, optimizer)))
    state, scales = init_state(jnp.array(1.0), optimizer, 0), []
    for _ in range(10):
        state, metrics = step(state, None)
        scales.append(float(metrics["reduce_on_plateau/scale"]))
    assert len(traces) == 1
    assert scales[:4] == [1, 1, 1, 0.5]
    assert state.params == 0


def test_a_validation_loss_can_be_observed_from_a_callback():
    optimizer = chain(sgd(0.1), reduce_on_plateau(factor=0.5, patience=1))

    def watch(step, state, values):
        if "val/loss" in values:
            return steps.observe(state, -1.0)
        return None

    result = fit(
        make_step(lambda w, batch: jnp.mean(batch["x"] * w), optimizer),
        init_state(jnp.array(1.0), optimizer, 0),
        lambda step: {"x": jnp.ones(2)},
        num_steps=8,
        metric_fn=lambda w, batch: {"loss": batch["x"] * w},
        eval_data={"x": jnp.ones(4)},
        eval_every=2,
        callbacks=[watch],
        progress=False,
        loop="python",
    )
    scales = result.history["reduce_on_plateau/scale"]
    np.testing.assert_allclose(scales, [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1.0}, "need factor < 1"),
        ({"factor": 0.0}, "need factor > 0"),
        ({"patience": 0}, "need patience >= 1, got patience=0"),
        ({"cooldown": -1}, "need cooldown >= 0"),
        ({"accumulation_size": 0}, "need accumulation_size >= 1"),
        ({"rtol": -1.0}, "need 0.0 <= rtol"),
        ({"atol": -1.0}, "need 0.0 <= atol"),
        ({"min_scale": 2.0}, "need 0.0 <= min_scale <= 1.0"),
    ],
)
def test_bad_arguments_of_a_plateau_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        reduce_on_plateau(**arguments)


def test_what_cannot_be_observed_is_refused():
    state = reduce_on_plateau().init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"need a scalar to observe, got shape \(2,\)"):
        steps.observe(state, jnp.ones(2))
    optimizer = chain(sgd(0.1), reduce_on_plateau())
    step = steps.plateau(make_step(lambda w, b: w**2, optimizer), "val/loss")
    with pytest.raises(ValueError, match=r"need one of .*'loss'.* to observe, got"):
        step(init_state(jnp.ones(()), optimizer, 0), None)


def test_bad_arguments_of_polyak_and_sam_are_refused():
    with pytest.raises(ValueError, match='need variant="sps" or "sps\\+"'):
        steps.polyak(loss_fn, variant="max")
    with pytest.raises(ValueError, match=r"need 0.0 <= rho"):
        steps.sam(loss_fn, sgd(0.1), rho=-1.0)

"""A lane that diverges is frozen at its last good state; the others are untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import DATA, PARAMS, loss_fn
from sweep_problems import POINTS, STEPS, quiet_sweep

import fngrad.sweeps as sweeps
from fngrad.optimizers import momentum, sgd
from fngrad.steps import freeze_diverged
from fngrad.sweeps.results.result import diverged_at
from fngrad.training import init_state, make_step, run

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles

BAD = 3  # the point whose rate is 1e6


@pytest.fixture(scope="module")
def with_bad():
    return quiet_sweep()


def test_a_diverging_lane_does_not_change_the_bits_of_others(with_bad):
    calm = np.where(POINTS["learning_rate"] > 1, 0.05, POINTS["learning_rate"])
    without = quiet_sweep({"learning_rate": calm})
    others = [p for p in range(5) if p != BAD]
    for name in with_bad.history:
        np.testing.assert_array_equal(
            with_bad.history[name][others], without.history[name][others]
        )
    for ours, theirs in zip(
        jax.tree.leaves(with_bad.state.params),
        jax.tree.leaves(without.state.params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours[others], theirs[others])
        assert (ours[BAD] != theirs[BAD]).any()
    assert (with_bad.diverged_at[others] == -1).all()
    assert (with_bad.diverged_at[BAD] > 0).all()


def test_a_sweep_without_the_bad_lane_has_the_same_bits(with_bad):
    kept = np.delete(POINTS["learning_rate"], BAD)
    without = quiet_sweep({"learning_rate": kept})
    for name in with_bad.history:
        np.testing.assert_array_equal(
            np.delete(with_bad.history[name], BAD, axis=0), without.history[name]
        )


def test_a_frozen_state_is_the_last_good_one():
    optimizer = momentum(1e12)
    step = jax.jit(make_step(loss_fn, optimizer))
    frozen = jax.jit(freeze_diverged(make_step(loss_fn, optimizer)))
    state = good = ours = init_state(PARAMS, optimizer, 0)
    flags = []
    for _ in range(8):
        batch = DATA.batch(state.step)
        state, metrics = step(state, batch)
        finite = all(
            np.isfinite(x).all() for x in jax.tree.leaves(state._replace(key=0))
        )
        good = (
            state
            if finite and metrics["is_finite"] and len(flags) == sum(flags)
            else good
        )
        ours, own = frozen(ours, DATA.batch(ours.step))
        flags.append(bool(own["is_finite"]))
    assert flags == sorted(flags, reverse=True)
    assert 0 < sum(flags) < 8
    assert int(ours.step) == sum(flags)
    for a, b in zip(
        jax.tree.leaves(ours._replace(key=0)),
        jax.tree.leaves(good._replace(key=0)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_diverged_at_is_the_step_that_was_refused(with_bad):
    steps = np.where(with_bad.diverged_at < 0, STEPS, with_bad.diverged_at)
    np.testing.assert_array_equal(with_bad.state.step, steps)
    assert np.isfinite(with_bad.state.params["w"]).all()


def test_a_loss_over_the_bound_freezes():
    def fn(point, key):
        optimizer = sgd(point["learning_rate"])
        step = make_step(lambda w, batch: w**2, optimizer)
        step = freeze_diverged(step, bound=point["bound"])
        state = init_state(jnp.ones(()), optimizer, key)
        return run(step, state, lambda step: (), 5)

    points = {"learning_rate": [0.1, 1.5, 1.5], "bound": [10.0, 10.0, 100.0]}
    points = {name: np.array(column) for name, column in points.items()}
    result = quiet_sweep(points, 1, fn, metric=("loss", "min"))
    # With a rate of 1.5 the weight is multiplied by -2 a step: losses 1, 4, 16, 64...
    assert result.diverged_at[:, 0].tolist() == [-1, 2, 4]
    assert result.state.params[:, 0].tolist() == pytest.approx([0.8**5, 4.0, 16.0])


def test_a_bound_requires_a_loss():
    def step(state, batch):
        return state, {"error": jnp.ones(())}

    frozen = freeze_diverged(step, bound=1.0)
    with pytest.raises(ValueError, match=r"need a metric loss to bound, got \['error'"):
        frozen(init_state(PARAMS, sgd(0.1), 0), ())
    with pytest.raises(TypeError, match="need bound to be a number"):
        freeze_diverged(step, bound="high")


def test_a_step_without_metrics_is_checked_by_its_state():
    def step(state, batch):
        params = jax.tree.map(lambda x: x / 0.0 + batch, state.params)
        return state._replace(params=params), {}

    state = init_state(PARAMS, sgd(0.1), 0)
    after, metrics = freeze_diverged(step)(state, jnp.float32(1.0))
    assert not metrics["is_finite"]
    np.testing.assert_array_equal(after.params["w"], state.params["w"])


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ({"is_finite": [True, False, False], "m": [1.0, 1.0, 1.0]}, 1),
        ({"loss": [1.0, 1.0, np.inf], "m": [1.0]}, 2),
        ({"loss": [1.0] * 10, "m": [1.0, np.nan]}, 9),
        ({"loss": [1.0] * 10, "m": [np.nan, 1.0]}, 4),
        ({"loss": [1.0] * 9, "m": [1.0, np.nan]}, 8),
        ({"m": [1.0, np.nan]}, 1),
        ({"m": [1.0, 2.0]}, -1),
        ({"m": []}, -1),
    ],
)
def test_a_lane_diverged_at_its_first_bad_record(history, expected):
    arrays = {name: np.array(x)[None, None] for name, x in history.items()}
    at = diverged_at(arrays, "m")
    assert at.tolist() == [[expected]]
    assert at.dtype == np.int32


def test_a_lane_with_a_scalar_metric_that_is_not_finite_diverged():
    arrays = {"m": np.array([[1.0, np.nan]])}
    assert diverged_at(arrays, "m").tolist() == [[-1, 0]]


def test_divergence_is_found_in_any_training():
    def fn(point, key):
        return (), {"val/loss": jnp.array([1.0, 1.0]) / point["x"]}

    result = sweeps.sweep(fn, {"x": np.array([0.0, 1.0])}, 2, progress=False)
    assert result.diverged_at.tolist() == [[0, 0], [-1, -1]]

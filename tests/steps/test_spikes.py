"""Steps that are spikes against a running median are skipped."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.fitting.spikes import spikes

WINDOW = 5
OPTIMIZER = fg.chain(fg.adam(0.01), fg.recent_values(WINDOW))
PARAMS = jnp.zeros(2)
RNG = np.random.default_rng(3)
# Slopes of a linear loss, whose gradient norm they are, with two spikes.
SLOPES = np.abs(1 + 0.1 * RNG.normal(size=24)).astype(np.float32)
SLOPES[[9, 17]] *= 8


def loss_fn(w, batch):
    return batch * (w[0] + 3)


PLAIN = fg.make_step(loss_fn, OPTIMIZER)
STEP = jax.jit(fg.steps.skip_spikes(PLAIN, factor=6.0))


def train(step=STEP, optimizer=OPTIMIZER, slopes=SLOPES, first=None):
    state = fg.init_state(PARAMS, optimizer, 0) if first is None else first
    states, records = [state], []
    for slope in slopes:
        state, metrics = step(state, slope)
        states.append(state)
        records.append(metrics)
    return states, {k: np.array([float(m[k]) for m in records]) for k in records[0]}


def test_a_step_is_skipped_where_the_callback_would_warn():
    _, history = train()
    names = ("loss", "grad_norm")
    n = len(SLOPES)
    expected = [spikes(history[name], n, WINDOW, 6.0) for name in names]
    np.testing.assert_array_equal(history["is_spike"], expected[0] | expected[1])
    np.testing.assert_array_equal(np.flatnonzero(history["is_spike"]), [9, 17])


def test_a_skipped_step_keeps_every_bit_but_the_counter_and_the_values():
    states, history = train()
    before, after = states[9], states[10]
    assert after.step == before.step + 1
    kept = {k: v for k, v in after.opt_state.items() if k != "recent_values"}
    chex.assert_trees_all_equal(kept, {k: before.opt_state[k] for k in kept})
    chex.assert_trees_all_equal(after.params, before.params)
    values = after.opt_state["recent_values"].values["loss"]
    assert values[9 % WINDOW] == np.float32(history["loss"][9])


def test_a_run_without_spikes_keeps_every_bit():
    calm = np.linspace(1, 1.2, 12).astype(np.float32)
    states, history = train(slopes=calm)
    plain, _ = train(jax.jit(PLAIN), slopes=calm)
    assert not history["is_spike"].any()
    chex.assert_trees_all_equal(states[-1].params, plain[-1].params)


def test_after_a_lasting_rise_steps_are_taken_again():
    rise = np.array([1.0] * 8 + [10.0] * 6, np.float32)
    _, history = train(slopes=rise)
    # Three of the five values are then at the new level.
    np.testing.assert_array_equal(np.flatnonzero(history["is_spike"]), [8, 9, 10])


def test_equal_values_are_no_spikes_and_zeros_have_any_rise_as_one():
    _, history = train(slopes=np.array([0.0] * 7 + [1e-3], np.float32))
    np.testing.assert_array_equal(np.flatnonzero(history["is_spike"]), [7])


def test_values_that_are_not_finite_are_neither_skipped_nor_kept():
    slopes = np.ones(8, np.float32)
    slopes[6:] = np.nan, np.inf
    optimizer = fg.chain(fg.skip_nonfinite(fg.sgd(0.0)), fg.recent_values(WINDOW))
    step = jax.jit(fg.steps.skip_spikes(fg.make_step(loss_fn, optimizer)))
    states, history = train(step, optimizer, slopes)
    assert not history["is_spike"].any()
    recent = states[-1].opt_state["recent_values"]
    assert recent.step == 6
    np.testing.assert_array_equal(recent.values["grad_norm"], np.ones(WINDOW))


def test_a_run_resumed_from_a_checkpoint_skips_the_same_steps(tmp_path):
    states, history = train()
    fg.checkpoint.save(tmp_path, states[8])
    first = fg.checkpoint.restore(tmp_path, states[0])
    again, rest = train(slopes=SLOPES[8:], first=first)
    np.testing.assert_array_equal(rest["is_spike"], history["is_spike"][8:])
    chex.assert_trees_all_equal(again[-1], states[-1])


def test_a_step_is_skipped_lane_by_lane_under_vmap():
    def run(slopes):
        state = fg.init_state(PARAMS, OPTIMIZER, 0)
        return fg.run(STEP, state, lambda t: slopes[t], len(SLOPES))

    lanes = jnp.stack([SLOPES, jnp.full(len(SLOPES), 1.0)])
    _, history = jax.jit(jax.vmap(run))(lanes)
    np.testing.assert_array_equal(np.sum(history["is_spike"], axis=1), [2, 0])


def test_what_the_wrapper_needs_is_asked_for():
    state = fg.init_state(PARAMS, fg.sgd(0.1), 0)
    step = fg.steps.skip_spikes(fg.make_step(loss_fn, fg.sgd(0.1)))
    with pytest.raises(ValueError, match="one part recent_values, got 0"):
        step(state, SLOPES[0])
    short = fg.steps.skip_spikes(fg.make_step(loss_fn, OPTIMIZER, metrics="loss"))
    with pytest.raises(ValueError, match=r"among \['is_finite', .*'grad_norm'"):
        short(fg.init_state(PARAMS, OPTIMIZER, 0), SLOPES[0])
    with pytest.raises(ValueError, match="is_spike"):
        fg.steps.skip_spikes(STEP)(fg.init_state(PARAMS, OPTIMIZER, 0), SLOPES[0])
    with pytest.raises(ValueError, match="factor"):
        fg.steps.skip_spikes(PLAIN, factor=-1.0)
    with pytest.raises(ValueError, match="window"):
        fg.recent_values(0)
    with pytest.raises(TypeError, match="list of metrics' names, got metrics='loss'"):
        fg.recent_values(5, "loss")
    with pytest.raises(ValueError, match="at least one metric"):
        fg.recent_values(5, [])


def test_the_part_obeys_the_laws():
    fg.check_transform(fg.recent_values(3))

"""The average of the model state: its weights, who sees it, and resuming."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

SCALES = np.random.default_rng(0).uniform(0.5, 2, size=8).astype("f")
OPTIMIZER = fg.chain(fg.sgd(0.1), fg.ema_params(0.7))
PARAMS = jnp.array([1.0, -2.0])
STATISTICS = {
    "mean": jnp.zeros(2),
    "narrow": jnp.zeros((), jnp.bfloat16),
    "count": jnp.zeros((), jnp.int32),
}


def loss_fn(params, batch, model_state):
    """Return a loss whose model state holds the parameters before the step."""
    new = {
        "mean": params,
        "narrow": jnp.sum(batch).astype(jnp.bfloat16),
        "count": model_state["count"] + 1,
    }
    return jnp.sum(params**2 * batch), ({}, new)


PLAIN = fg.make_step(loss_fn, OPTIMIZER)


def first(model_state):
    return fg.init_state(PARAMS, OPTIMIZER, 0, model_state=model_state)


@functools.cache
def trained(decay=0.7):
    """Return the states after each step of a run with the average."""
    step = jax.jit(fg.steps.average_model_state(PLAIN, decay))
    states = [first(fg.steps.with_average(STATISTICS))]
    for scale in SCALES:
        states.append(step(states[-1], scale)[0])
    return states


def weighted_mean(values, decays):
    """Return the mean by (1 - b_i) times the product of the later b, in float64."""
    later = [np.prod(decays[i + 1 :]) for i in range(len(decays))]
    weights = (1 - np.array(decays)) * later
    return np.tensordot(weights / weights.sum(), np.stack(values), 1)


def rising(step):
    return (1 + step) / (4 + step)


@pytest.mark.parametrize("decay", [0.7, rising], ids=["number", "schedule"])
def test_the_average_has_the_weights_of_its_formula(decay):
    states = trained(decay)
    chex.assert_trees_all_equal(fg.eval_model_state(states[0]), STATISTICS)  # empty
    means = [np.asarray(s.model_state.current["mean"], float) for s in states[1:]]
    for t in (1, 2, len(SCALES)):
        decays = [decay(i) if callable(decay) else decay for i in range(t)]
        average = fg.eval_model_state(states[t])
        expected = weighted_mean(means[:t], decays)
        np.testing.assert_allclose(average["mean"], expected, rtol=1e-5)
        assert average["narrow"].dtype == jnp.bfloat16
        expected = weighted_mean(SCALES[:t].astype(float), decays)
        np.testing.assert_allclose(average["narrow"], expected, rtol=0.02)
        assert average["count"] == t  # an integer is the current one


def test_averaged_parameters_and_statistics_have_the_same_weights():
    """The statistics are the parameters of the step before."""
    states = trained()
    np.testing.assert_allclose(
        fg.eval_model_state(states[6])["mean"],
        weighted_mean([PARAMS, *[s.params for s in states[1:6]]], [0.7] * 6),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        fg.eval_params(states[6]),
        weighted_mean([s.params for s in states[1:7]], [0.7] * 6),
        rtol=1e-5,
    )


def test_training_keeps_every_bit():
    state, step = first(STATISTICS), jax.jit(PLAIN)
    for scale in SCALES:
        state, _ = step(state, scale)
    averaged = trained()[-1]
    chex.assert_trees_all_equal(averaged.params, state.params)
    chex.assert_trees_all_equal(averaged.opt_state, state.opt_state)
    chex.assert_trees_all_equal(averaged.model_state.current, state.model_state)


def metric_fn(params, batch, model_state):
    n = len(batch)
    shift = jnp.broadcast_to(model_state["mean"][0], (n,))
    return {"mean": shift, "param": jnp.broadcast_to(params[0], (n,))}


def test_evaluate_run_and_fit_see_the_average(tmp_path):
    state = trained()[-1]
    expected = {
        "mean": float(fg.eval_model_state(state)["mean"][0]),
        "param": float(fg.eval_params(state)[0]),
    }
    assert expected["mean"] != float(state.model_state.current["mean"][0])
    data = np.zeros(3, np.float32)
    assert fg.evaluate(metric_fn, state, data) == pytest.approx(expected)
    step = fg.steps.average_model_state(PLAIN, 0.7)
    start = first(fg.steps.with_average(STATISTICS))

    def batch_at(step):
        return jnp.asarray(SCALES)[step]

    options = {"metric_fn": metric_fn, "eval_data": data, "eval_every": len(SCALES)}
    state, history = fg.run(step, start, batch_at, len(SCALES), **options)
    assert float(history["val/mean"][-1]) == pytest.approx(expected["mean"])
    options |= {"num_steps": len(SCALES), "progress": False}
    whole = fg.fit(step, start, batch_at, **options)
    assert whole.history.last("val/mean") == pytest.approx(expected["mean"])
    folder = {"checkpoint_dir": tmp_path / "run"}
    half = {**options, **folder, "num_steps": 3, "eval_every": 3}
    fg.fit(step, start, batch_at, **half)
    resumed = fg.fit(step, start, batch_at, **{**half, "num_steps": len(SCALES)})
    chex.assert_trees_all_equal(
        jax.tree.map(jax.random.key_data, resumed.state.key),
        jax.tree.map(jax.random.key_data, whole.state.key),
    )
    chex.assert_trees_all_equal(
        resumed.state._replace(key=()), whole.state._replace(key=())
    )


def test_decays_in_a_vmap_are_those_one_by_one():
    start = first(fg.steps.with_average(STATISTICS))

    def means(decay):
        step = fg.steps.average_model_state(PLAIN, decay)
        state = start
        for scale in SCALES[:3]:
            state, _ = step(state, scale)
        return fg.eval_model_state(state)["mean"]

    made = jax.jit(jax.vmap(means))(jnp.array([0.7, 0.2]))
    np.testing.assert_allclose(
        made[0], fg.eval_model_state(trained()[3])["mean"], rtol=1e-6
    )
    assert abs(made[1] - made[0]).min() > 0.01


def test_a_skipped_step_keeps_the_average():
    step = fg.steps.skip_bad_steps(fg.steps.average_model_state(PLAIN, 0.7))
    state = trained()[2]
    bad, metrics = jax.jit(step)(state, jnp.float32(jnp.nan))
    assert metrics["skipped"]
    chex.assert_trees_all_equal(bad.model_state, state.model_state)


def test_the_step_keeps_its_gradients():
    step = fg.steps.average_model_state(PLAIN, 0.7)
    state = trained()[2]
    gradients = jax.jit(step.gradients)(state, SCALES[2])
    np.testing.assert_allclose(gradients, 2 * SCALES[2] * state.params, rtol=1e-6)


def test_a_loss_that_returns_its_model_state_unchanged_is_still_warned_about():
    def unchanged(params, batch, model_state):
        return jnp.sum(params**2) * batch, ({}, model_state)

    step = fg.steps.average_model_state(fg.make_step(unchanged, OPTIMIZER), 0.7)
    start = first(fg.steps.with_average(STATISTICS))
    with pytest.warns(UserWarning, match="the step returns model_state unchanged"):
        fg.fit(step, start, lambda t: jnp.float32(1), num_steps=1, progress=False)


def test_what_cannot_be_averaged_is_refused():
    step = fg.steps.average_model_state(PLAIN, 0.7)
    with pytest.raises(TypeError, match=r"with an average, got dict: init_state\("):
        step(first(STATISTICS), SCALES[0])
    for empty in ((), {"count": jnp.zeros((), jnp.int32)}):
        with pytest.raises(ValueError, match="need a model state with floats to av"):
            fg.steps.with_average(empty)
    with pytest.raises(ValueError, match="need decay < 1 to correct for bias"):
        fg.steps.average_model_state(PLAIN, 1.0)
    with pytest.raises(ValueError, match=r"need 0.0 <= decay <= 1.0"):
        fg.steps.average_model_state(PLAIN, -0.1)
    with pytest.raises(TypeError, match="a state with model_state, got tuple"):
        fg.eval_model_state(())

"""The training loop: bits, epochs, iterables, and bad arguments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import (
    ARRAYS,
    DATA,
    EXPECTED,
    EXPECTED_HISTORY,
    OPTIMIZER,
    STEP,
    first_state,
    loss_fn,
    metric_fn,
    quiet_fit,
)

import fngrad.data.dataset as dataset
from fngrad.fitting.early_stopping import EarlyStopping
from fngrad.fitting.training_loop import fit
from fngrad.optimizers import sgd
from fngrad.training import TrainState, init_state, make_step, run, snapshot

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles


@pytest.mark.parametrize("loop", ["python", "scan", "auto"])
def test_every_loop_ends_with_the_same_bits(loop):
    result = quiet_fit(num_steps=25, loop=loop)
    reference = quiet_fit(num_steps=25, loop="python")
    chex.assert_trees_all_equal(result.state.params, reference.state.params)
    chex.assert_trees_all_equal(result.state.opt_state, reference.state.opt_state)
    # Another program may round a reduction differently, in the last place.
    chex.assert_trees_all_close(result.state.params, EXPECTED.params, rtol=1e-5)
    recorded = result.history["loss"]
    np.testing.assert_allclose(recorded, EXPECTED_HISTORY["loss"], rtol=1e-5)
    np.testing.assert_array_equal(result.history.steps("loss"), np.arange(1, 26))
    assert result.stopped == "completed"
    assert result.history.notes["loop"] in ("python", "scan")


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_where_the_host_stops_never_changes_bits(loop):
    looked = quiet_fit(
        num_steps=25,
        loop=loop,
        log_every=3,
        loggers=[lambda step, values: None],
        metric_fn=metric_fn,
        eval_data=ARRAYS,
        eval_every=4,
    )
    reference = quiet_fit(num_steps=25, loop=loop).state.params
    chex.assert_trees_all_equal(looked.state.params, reference)
    halves = quiet_fit(
        quiet_fit(num_steps=11, loop=loop).state, num_steps=25, loop=loop
    )
    chex.assert_trees_all_equal(halves.state.params, reference)


def test_a_run_longer_than_the_metric_buffer_loses_no_record():
    from fngrad.fitting.loops import ROWS

    steps = 2 * ROWS + 5
    result = quiet_fit(num_steps=steps, loop="scan", log_every=steps)
    np.testing.assert_array_equal(result.history.steps("loss"), np.arange(1, steps + 1))
    _, history = jax.jit(lambda s, d: run(STEP, s, d, steps))(first_state(), DATA)
    np.testing.assert_allclose(
        result.history["loss"], history["loss"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:the step returns model_state")
def test_the_callers_arrays_are_never_donated():
    tied = jnp.ones(2)
    params = {"w": tied, "b": jnp.zeros(())}
    state = TrainState(
        jnp.int32(0), jax.random.key(0), params, OPTIMIZER.init(params), (tied, tied)
    )
    fit(STEP, state, DATA, num_steps=3, loop="scan", progress=False)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    np.testing.assert_array_equal(tied, 1.0)
    assert not DATA.arrays["x"].is_deleted()


def test_epochs_count_passes_over_the_data():
    result = quiet_fit(num_epochs=3)
    assert result.state.step == 10  # 3 * 20 examples in batches of 6


def test_evaluations_are_at_the_ends_of_epochs_and_of_the_run():
    result = quiet_fit(num_steps=9, metric_fn=metric_fn, eval_data=ARRAYS)
    np.testing.assert_array_equal(result.history.steps("val/loss"), [4, 7, 9])
    expected = loss_fn(result.state.params, ARRAYS)
    np.testing.assert_allclose(result.history.last("val/loss"), expected, rtol=1e-5)


def test_a_state_at_the_last_step_is_returned_with_a_message(capsys):
    reached = quiet_fit(num_steps=5).state
    again = quiet_fit(reached, num_steps=5)
    chex.assert_trees_all_equal(again.state.params, reached.params)
    assert (
        "nothing to do, the state is at step 5 and the run ends at step 5: num_steps"
        in capsys.readouterr().err
    )


def test_fitting_again_compiles_nothing():
    step = make_step(chex.assert_max_traces(loss_fn, n=3), OPTIMIZER)
    for seed in range(3):  # neither checks nor compiles again
        data = DATA.reseed(seed)
        fit(step, first_state(), data, num_steps=4, loop="python", progress=False)


def test_iterables_are_accepted_with_a_warning():
    batches = [jax.tree.map(np.asarray, DATA.batch(t)) for t in range(25)]
    with pytest.warns(UserWarning, match="cannot be resumed exactly"):
        result = quiet_fit(data=batches, num_steps=None)
    assert result.stopped == "exhausted"
    assert result.state.step == 25
    chex.assert_trees_all_close(result.state.params, EXPECTED.params, rtol=1e-6)


def test_a_batch_of_another_shape_is_named():
    batches = [DATA.batch(0), jax.tree.map(lambda x: x[:4], DATA.batch(1))]
    with pytest.warns(UserWarning, match="resumed|compiles again") as warned:
        quiet_fit(data=batches, num_steps=None)
    assert any(
        "leaf 'x' needs shape (6, 2), got (4, 2)" in str(w.message) for w in warned
    )


def test_a_function_of_the_step_is_data():
    result = quiet_fit(data=DATA.batch, num_steps=25, loop="scan")
    reference = quiet_fit(num_steps=25, loop="scan").state.params
    chex.assert_trees_all_equal(result.state.params, reference)


def test_a_step_that_changes_the_type_of_the_state_is_refused_naming_the_leaf():
    def widening(state, batch):
        state, metrics = STEP(state, batch)
        return state._replace(
            model_state=state.model_state.astype(jnp.float32)
        ), metrics

    def weakening(state, batch):
        state, metrics = STEP(state, batch)
        return state._replace(model_state=jnp.asarray(1.0)), metrics

    state = first_state()._replace(model_state=jnp.zeros((), jnp.bfloat16))
    with pytest.raises(ValueError, match="'model_state' needs dtype bfloat16"):
        fit(widening, state, DATA, num_steps=2, progress=False)
    state = first_state()._replace(model_state=jnp.zeros(()))
    with pytest.raises(ValueError, match="weak float32 at 'model_state'"):
        fit(weakening, state, DATA, num_steps=2, progress=False)


def test_a_donated_state_is_refused_with_the_remedy():
    state = snapshot(first_state())
    jax.jit(lambda s: s._replace(step=s.step + 1), donate_argnums=0)(state)
    with pytest.raises(RuntimeError, match="was donated to an earlier call"):
        quiet_fit(state, num_steps=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "need one of num_steps and num_epochs"),
        ({"num_steps": 1, "num_epochs": 1}, ValueError, "need one of num_steps"),
        ({"num_steps": -1}, ValueError, "need an int num_steps .*=-1"),
        ({"num_steps": 1.5}, ValueError, "need an int num_steps .*=1.5"),
        ({"num_steps": 1, "log_every": 0}, ValueError, "need an int log_every >= 1"),
        ({"num_steps": 1, "loop": "fori"}, ValueError, "need loop to be one of"),
        (
            {"num_steps": 1, "on_nonfinite": "stop"},
            ValueError,
            "need on_nonfinite to be one of",
        ),
        ({"num_steps": 1, "metric_fn": metric_fn}, ValueError, "need both metric_fn"),
        ({"num_steps": 1, "require": "tpu"}, RuntimeError, "need the backend 'tpu'"),
        ({"num_steps": 1, "data": 3}, TypeError, "need a dataset, a source"),
        (
            {"num_epochs": 1, "data": DATA.batch},
            ValueError,
            "need a dataset for num_ep",
        ),
        (
            {"num_steps": 1, "early_stopping": EarlyStopping()},
            ValueError,
            "need metric_fn and eval_data for early stopping",
        ),
        (
            {"num_steps": 1, "eval_every": 2},
            ValueError,
            "need metric_fn and eval_data for eval_every=2",
        ),
        (
            {
                "num_steps": 1,
                "metric_fn": metric_fn,
                "eval_data": ARRAYS,
                "eval_every": 0,
            },
            ValueError,
            'need eval_every="epoch" or an int >= 1, got 0',
        ),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        quiet_fit(**options)


def test_convolutions_agree_in_both_loops():
    kernel = jnp.ones((3, 3, 1, 2)) / 9
    images = jnp.sin(jnp.arange(8 * 6 * 6.0)).reshape(8, 6, 6, 1)

    def conv_loss(params, batch):
        out = jax.lax.conv_general_dilated(
            batch, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(jnp.tanh(out) ** 2) + jnp.mean(out)

    step = make_step(conv_loss, sgd(0.1))
    data = dataset.from_arrays(images, batch_size=4)
    ends = [
        fit(
            step,
            init_state(kernel, sgd(0.1), 0),
            data,
            num_steps=10,
            loop=loop,
            progress=False,
        ).state.params
        for loop in ("python", "scan")
    ]
    # XLA on CPU may round a convolution inside a loop differently, by one unit in
    # the last place of float32 per step.
    np.testing.assert_allclose(*ends, rtol=10 * 2**-23, atol=1e-7)

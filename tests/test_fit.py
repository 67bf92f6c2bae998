"""The loop people call."""

import json
import os
import signal
import threading
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.batching as batching
from fngrad.fit import fit
from fngrad.fitting.session import STOP, EarlyStopping, NonFiniteError
from fngrad.optimizers import momentum, sgd
from fngrad.training import TrainState, init_state, make_step, run, snapshot

X = jnp.sin(jnp.arange(40.0)).reshape(20, 2)
Y = X @ jnp.array([1.0, -2.0]) + 0.5
ARRAYS = {"x": X, "y": Y}
DATA = batching.from_arrays(ARRAYS, batch_size=6, seed=1)
PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(())}
OPTIMIZER = momentum(0.05)


def squared_errors(params, batch):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def loss_fn(params, batch):
    return jnp.mean(squared_errors(params, batch))


def metric_fn(params, batch):
    return {"loss": squared_errors(params, batch)}


STEP = make_step(loss_fn, OPTIMIZER)


def first_state():
    return init_state(PARAMS, OPTIMIZER, 0)


def quiet_fit(state=None, data=DATA, **options):
    options = {"progress": False, "loop": "python"} | options
    return fit(STEP, first_state() if state is None else state, data, **options)


EXPECTED, EXPECTED_HISTORY = jax.jit(lambda s, d: run(STEP, s, d, 25))(
    first_state(), DATA
)


@pytest.mark.parametrize("loop", ["python", "scan", "auto"])
def test_every_loop_ends_with_the_bits_of_run(loop):
    result = quiet_fit(num_steps=25, loop=loop)
    chex.assert_trees_all_equal(result.state.params, EXPECTED.params)
    chex.assert_trees_all_equal(result.state.opt_state, EXPECTED.opt_state)
    np.testing.assert_array_equal(result.history["loss"], EXPECTED_HISTORY["loss"])
    np.testing.assert_array_equal(result.history.steps("loss"), np.arange(1, 26))
    assert result.stopped == "completed"
    assert result.history.notes["loop"] in ("python", "scan")


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_where_the_host_looks_never_changes_bits(loop):
    looked = quiet_fit(
        num_steps=25,
        loop=loop,
        log_every=3,
        loggers=[lambda step, values: None],
        metric_fn=metric_fn,
        eval_data=ARRAYS,
        eval_every=4,
    )
    chex.assert_trees_all_equal(looked.state.params, EXPECTED.params)
    halves = quiet_fit(
        quiet_fit(num_steps=11, loop=loop).state, num_steps=25, loop=loop
    )
    chex.assert_trees_all_equal(halves.state.params, EXPECTED.params)


def test_a_run_longer_than_the_metric_buffer_loses_no_record():
    from fngrad.fitting.loops import ROWS

    steps = 2 * ROWS + 5
    result = quiet_fit(num_steps=steps, loop="scan", log_every=steps)
    np.testing.assert_array_equal(result.history.steps("loss"), np.arange(1, steps + 1))
    _, history = jax.jit(lambda s, d: run(STEP, s, d, steps))(first_state(), DATA)
    np.testing.assert_array_equal(result.history["loss"], history["loss"])


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


def test_evaluation_falls_on_epochs_and_the_end():
    result = quiet_fit(num_steps=9, metric_fn=metric_fn, eval_data=ARRAYS)
    np.testing.assert_array_equal(result.history.steps("val/loss"), [4, 7, 9])
    expected = loss_fn(result.state.params, ARRAYS)
    np.testing.assert_allclose(result.history.last("val/loss"), expected, rtol=1e-5)


def test_reaching_a_step_already_reached_does_nothing_and_says_so(capsys):
    reached = quiet_fit(num_steps=5).state
    again = quiet_fit(reached, num_steps=5)
    chex.assert_trees_all_equal(again.state.params, reached.params)
    assert "nothing to do, the state is at step 5 of 5" in capsys.readouterr().err


def test_fitting_again_compiles_nothing():
    step = make_step(chex.assert_max_traces(loss_fn, n=3), OPTIMIZER)
    for seed in range(3):  # checking, compiling: not once a call
        data = DATA.reseed(seed)
        fit(step, first_state(), data, num_steps=4, loop="python", progress=False)


def test_loggers_see_floats_and_are_closed():
    class Recorder:
        records = ()
        closed = False

        def __call__(self, step, values):
            self.records = (*self.records, (step, values))

        def close(self):
            self.closed = True

    logger = Recorder()
    quiet_fit(
        num_steps=10,
        log_every=4,
        loggers=[logger],
        metric_fn=metric_fn,
        eval_data=ARRAYS,
        eval_every=5,
    )
    assert [step for step, _ in logger.records] == [4, 5, 8, 10]
    assert all(
        type(v) is float for _, values in logger.records for v in values.values()
    )
    assert ["val/loss" in values for _, values in logger.records] == [
        False,
        True,
        False,
        True,
    ]
    assert logger.closed


def test_callbacks_may_stop_the_run():
    seen = []

    def stop_late(step, state, values):
        seen.append((step, int(state.step), values["loss"]))
        return STOP if step >= 6 else None

    result = quiet_fit(num_steps=20, log_every=3, callbacks=[stop_late])
    assert [step for step, _, _ in seen] == [at for _, at, _ in seen] == [3, 6]
    assert result.stopped == "callback"
    assert result.state.step == 6


def test_callbacks_may_change_the_state():
    kept = []

    def reset(step, state, values):
        kept.append(snapshot(state))
        return state._replace(params=jax.tree.map(jnp.zeros_like, state.params))

    result = quiet_fit(num_steps=4, log_every=2, callbacks=[reset])
    np.testing.assert_array_equal(result.state.params["w"], 0.0)
    assert float(jnp.abs(kept[0].params["w"]).sum()) > 0


def test_a_callback_that_changes_a_shape_is_refused():
    def widen(step, state, values):
        return state._replace(params=state.params | {"b": jnp.zeros(2)})

    with pytest.raises(ValueError, match=r"'params/b' needs shape \(\), got \(2,\)"):
        quiet_fit(num_steps=4, log_every=2, callbacks=[widen])


def test_early_stopping_waits_for_its_patience():
    rule = EarlyStopping("val/loss", patience=2, min_delta=1e9)
    result = quiet_fit(
        num_steps=50,
        metric_fn=metric_fn,
        eval_data=ARRAYS,
        eval_every=5,
        early_stopping=rule,
    )
    assert result.stopped == "early_stopping"
    assert result.state.step == 15  # the first evaluation is the best


def test_early_stopping_can_look_for_a_maximum():
    def scores(params, batch):
        return {"score": squared_errors(params, batch)}

    def stopped(mode):
        rule = EarlyStopping("val/score", patience=1, mode=mode)
        return quiet_fit(
            num_steps=40,
            metric_fn=scores,
            eval_data=ARRAYS,
            eval_every=10,
            early_stopping=rule,
        ).stopped

    assert stopped("min") == "completed"
    assert stopped("max") == "early_stopping"


def test_an_unknown_metric_to_stop_on_is_refused():
    with pytest.raises(
        ValueError, match=r"need a metric among .*'val/loss'.*got 'nope'"
    ):
        quiet_fit(
            num_steps=4,
            metric_fn=metric_fn,
            eval_data=ARRAYS,
            early_stopping=EarlyStopping("nope"),
        )


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_an_interrupt_returns_what_was_reached(loop):
    usual = signal.getsignal(signal.SIGINT)

    def interrupt(step, state, values):
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    result = quiet_fit(num_steps=100, loop=loop, log_every=4, callbacks=[interrupt])
    assert result.stopped == "interrupted"
    assert result.state.step == 8
    rest = quiet_fit(result.state, num_steps=25, loop=loop)
    chex.assert_trees_all_equal(rest.state.params, EXPECTED.params)
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_second_interrupt_stops_at_once():
    def interrupt_twice(step, state, values):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quiet_fit(num_steps=100, log_every=4, callbacks=[interrupt_twice])


def test_fit_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(quiet_fit(num_steps=25)))
    thread.start()
    thread.join()
    chex.assert_trees_all_equal(results[0].state.params, EXPECTED.params)


def test_nonfinite_loss_raises_with_the_step_and_keeps_the_history():
    bad = {"x": X, "y": Y.at[7].set(jnp.nan)}
    data = batching.from_arrays(bad, batch_size=6, shuffle=False)
    with pytest.raises(NonFiniteError, match=r"got step 2 with .*loss=nan") as error:
        quiet_fit(data=data, num_steps=10)
    assert error.value.step == 2
    assert np.isfinite(error.value.history["loss"][0])
    ignored = quiet_fit(data=data, num_steps=10, on_nonfinite="ignore")
    assert ignored.history["is_finite"].sum() == 1


def test_iterables_are_taken_with_a_warning():
    batches = [jax.tree.map(np.asarray, DATA.batch(t)) for t in range(25)]
    with pytest.warns(UserWarning, match="cannot be resumed exactly"):
        result = quiet_fit(data=batches, num_steps=None)
    assert result.stopped == "exhausted"
    assert result.state.step == 25
    chex.assert_trees_all_close(result.state.params, EXPECTED.params, rtol=1e-6)


def test_a_batch_of_another_shape_is_named():
    batches = [DATA.batch(0), jax.tree.map(lambda x: x[:4], DATA.batch(1))]
    with pytest.warns(UserWarning) as warned:
        quiet_fit(data=batches, num_steps=None)
    assert any(
        "leaf 'x' needs shape (6, 2), got (4, 2)" in str(w.message) for w in warned
    )


def test_a_function_of_the_step_is_data():
    result = quiet_fit(data=DATA.batch, num_steps=25, loop="scan")
    chex.assert_trees_all_equal(result.state.params, EXPECTED.params)


def test_a_step_whose_state_changes_is_refused_by_leaf():
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


def test_a_donated_state_is_explained():
    state = snapshot(first_state())
    jax.jit(lambda s: s._replace(step=s.step + 1), donate_argnums=0)(state)
    with pytest.raises(RuntimeError, match="was donated to an earlier call"):
        quiet_fit(state, num_steps=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "need one of num_steps and num_epochs"),
        ({"num_steps": 1, "num_epochs": 1}, ValueError, "need one of num_steps"),
        ({"num_steps": -1}, ValueError, "num_steps to be an int >= 0, got -1"),
        ({"num_steps": 1.5}, ValueError, "num_steps to be an int >= 0, got 1.5"),
        ({"num_steps": 1, "log_every": 0}, ValueError, "need log_every >= 1"),
        ({"num_steps": 1, "loop": "fori"}, ValueError, "need loop="),
        ({"num_steps": 1, "on_nonfinite": "skip"}, ValueError, "need on_nonfinite="),
        ({"num_steps": 1, "metric_fn": metric_fn}, ValueError, "need both metric_fn"),
        ({"num_steps": 1, "require": "tpu"}, RuntimeError, "need the backend 'tpu'"),
        ({"num_steps": 1, "data": 3}, TypeError, "need a dataset, a function"),
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


def test_the_progress_bar_shows_the_backend_and_the_loss(capsys):
    quiet_fit(num_steps=25, progress=True)
    shown = capsys.readouterr().err
    assert "training on cpu" in shown
    assert "25/25" in shown
    assert "loss=" in shown


def test_a_run_folder_holds_config_manifest_metrics_and_picture(tmp_path):
    folder = tmp_path / "run"
    options = {
        "run_dir": folder,
        "config": {"learning_rate": 0.05},
        "log_every": 5,
        "metric_fn": metric_fn,
        "eval_data": ARRAYS,
        "eval_every": 10,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fonts that matplotlib cannot cache
        quiet_fit(num_steps=20, loop="scan", **options)
    assert json.loads((folder / "config.json").read_text()) == {"learning_rate": 0.05}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["loop"] == "scan"
    assert manifest["data"] == DATA.fingerprint()
    lines = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text().split("\n")
        if line
    ]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    resumed = quiet_fit(num_steps=20, **options | {"loop": "auto"})
    assert resumed.history.notes["loop"] == "scan"
    with pytest.raises(ValueError, match="learning_rate"):
        quiet_fit(num_steps=20, **options | {"config": {"learning_rate": 0.1}})


def test_convolutions_end_alike_in_both_loops():
    kernel = jnp.ones((3, 3, 1, 2)) / 9
    images = jnp.sin(jnp.arange(8 * 6 * 6.0)).reshape(8, 6, 6, 1)

    def conv_loss(params, batch):
        out = jax.lax.conv_general_dilated(
            batch, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(jnp.tanh(out) ** 2) + jnp.mean(out)

    step = make_step(conv_loss, sgd(0.1))
    data = batching.from_arrays(images, batch_size=4)
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
    # the last place of float32 a step.
    np.testing.assert_allclose(*ends, rtol=10 * 2**-23, atol=1e-7)

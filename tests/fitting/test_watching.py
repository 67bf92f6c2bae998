"""Loggers, callbacks, early stopping, interrupts, the bar and the run folder."""

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
from linear_regression import (
    ARRAYS,
    DATA,
    EXPECTED,
    X,
    Y,
    metric_fn,
    quiet_fit,
    squared_errors,
)

import fngrad.data.dataset as dataset
from fngrad.fitting.early_stopping import EarlyStopping
from fngrad.fitting.hooks import STOP
from fngrad.fitting.nonfinite import NonFiniteError
from fngrad.training import snapshot

pytestmark = pytest.mark.usefixtures("usual_signals")

OTHER = {"learning_rate": 0.1}


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


def test_callbacks_see_the_evaluations():
    seen = {}
    quiet_fit(
        num_steps=9,
        log_every=100,
        callbacks=[lambda step, state, values: seen.update({step: values["val/loss"]})],
        metric_fn=metric_fn,
        eval_data=ARRAYS,
    )
    assert list(seen) == [4, 7, 9]


def test_a_callback_must_return_a_state_or_none():
    with pytest.raises(TypeError, match=r"or fngrad.STOP from a callback, got bool"):
        quiet_fit(num_steps=4, callbacks=[lambda step, state, values: True])


def test_a_callback_must_not_return_a_state_of_an_earlier_step():
    def rewind(step, state, values):
        return state._replace(step=state.step - 1)

    with pytest.raises(ValueError, match=r"need a state of step 4 or later .* step 3"):
        quiet_fit(num_steps=4, log_every=4, callbacks=[rewind])


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


def test_early_stopping_can_maximize_a_metric():
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
    undisturbed = quiet_fit(num_steps=25, loop=loop).state.params
    chex.assert_trees_all_equal(rest.state.params, undisturbed)
    assert signal.getsignal(signal.SIGINT) is usual


def test_an_interrupt_while_compiling_returns_the_first_state():
    calls = []

    def batch_at(step):
        if not calls:
            os.kill(os.getpid(), signal.SIGINT)
        calls.append(step)
        return DATA.batch(step)

    result = quiet_fit(data=batch_at, num_steps=10, loop="auto")
    assert (result.stopped, int(result.state.step)) == ("interrupted", 0)


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_the_steps_before_an_interrupt_are_logged():
    def batches():
        for step in range(1000):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)
            yield DATA.batch(step)

    records = []
    result = quiet_fit(
        data=batches(), log_every=500, loggers=[lambda step, _: records.append(step)]
    )
    assert result.stopped == "interrupted"
    assert 7 <= result.state.step < 500
    assert records == [int(result.state.step)]


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
    chex.assert_trees_all_close(results[0].state.params, EXPECTED.params, rtol=1e-5)


def test_nonfinite_loss_raises_with_the_step_and_keeps_the_history():
    bad = {"x": X, "y": Y.at[7].set(jnp.nan)}
    data = dataset.from_arrays(bad, batch_size=6, shuffle=False)
    with pytest.raises(NonFiniteError, match=r"got step 2 with .*loss=nan") as error:
        quiet_fit(data=data, num_steps=10)
    assert error.value.step == 2
    assert np.isfinite(error.value.history["loss"][0])
    ignored = quiet_fit(data=data, num_steps=10, on_nonfinite="ignore")
    assert ignored.history["is_finite"].sum() == 1


def test_the_progress_bar_shows_the_backend_and_the_loss(capsys):
    quiet_fit(num_steps=25, progress=True)
    shown = capsys.readouterr().err
    assert f"training on {jax.default_backend()}" in shown
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
        warnings.simplefilter("ignore")  # about fonts that matplotlib cannot cache
        first = quiet_fit(num_steps=20, loop="scan", **options)
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
    assert (manifest["stopped"], manifest["step"]) == ("completed", 20)
    with pytest.raises(ValueError, match=r"the state of step 20 .*, got step 0"):
        quiet_fit(num_steps=30, **options)
    resumed = quiet_fit(first.state, num_steps=30, **options | {"loop": "auto"})
    assert resumed.history.notes["loop"] == "scan"
    with pytest.raises(ValueError, match=r"learning_rate was 0\.05, is 0\.1"):
        quiet_fit(resumed.state, num_steps=31, **options | {"config": OTHER})


@pytest.mark.filterwarnings("ignore")  # about fonts that matplotlib cannot cache
def test_a_history_is_drawn_by_quantity_and_shown_in_a_notebook():
    history = quiet_fit(num_steps=8, metric_fn=metric_fn, eval_data=ARRAYS).history
    figure = history.plot()
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert set(panels) == {"loss", "norm"}
    assert figure.get_suptitle() == "constant: learning_rate = 0.05"
    assert len(panels["loss"].get_lines()) == 2  # of training and validation
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert len(history.plot("loss").axes) == 1
    with pytest.raises(KeyError, match="got 'nope'"):
        history.plot("nope")

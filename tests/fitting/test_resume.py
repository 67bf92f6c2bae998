"""Calls of fit that find checkpoints: they resume, refuse, or have nothing to do."""

import json
import shutil
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import DATA, first_state, quiet_fit
from resuming import (
    WATCHED,
    KilledError,
    assert_same_run,
    kill_at,
    killed_fit,
    saving_fit,
)

import fngrad.checkpoint as checkpoint
from fngrad.files.locks import LockError
from fngrad.fitting.checkpointing import DEFAULT_BEST, SaveError
from fngrad.fitting.early_stopping import EarlyStopping
from fngrad.fitting.hooks import STOP
from fngrad.logging import read_jsonl


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_a_killed_run_resumes_and_ends_with_the_same_bits(loop, tmp_path, capsys):
    killed_fit(tmp_path, at=12, loop=loop)
    resumed = saving_fit(tmp_path, loop=loop)
    said = capsys.readouterr().err
    assert f"fit: resumes at step 8 of 20 from {tmp_path}" in said
    assert_same_run(resumed, quiet_fit(num_steps=20, loop=loop, **WATCHED))
    assert resumed.history.notes["resumed"] == [8]


def test_a_resumed_run_keeps_its_loop(tmp_path):
    first = saving_fit(tmp_path, loop="scan", num_steps=8)
    assert saving_fit(tmp_path, loop="auto").history.notes["loop"] == "scan"
    assert first.history.notes["reason"] == "asked for"


def test_where_a_run_saves_does_not_change_what_callbacks_see(tmp_path):
    seen = {}

    def fit_watched(name, **options):
        steps = seen.setdefault(name, [])
        callbacks = [lambda step, state, values: steps.append(step)]
        return quiet_fit(num_steps=250, callbacks=callbacks, **options)

    plain = fit_watched("plain", log_every=100)
    killer = {"loggers": [kill_at(200)], "checkpoint_dir": tmp_path, "save_every": 70}
    killer["log_every"] = 100  # kept by the call that resumes
    with pytest.raises(KilledError):
        fit_watched("saved", **killer)
    resumed = fit_watched("saved", checkpoint_dir=tmp_path)
    assert_same_run(resumed, plain)
    assert seen == {"plain": [100, 200, 250], "saved": [100, 200, 250]}


def test_a_resumed_run_keeps_its_log_interval(tmp_path):
    def halve(step, state, values):
        return state._replace(params=jax.tree.map(lambda x: x / 2, state.params))

    plain = quiet_fit(num_steps=30_000, callbacks=[halve], loop="scan")
    stopper = {"callbacks": [halve, lambda step, *_: STOP if step > 15_000 else None]}
    options = {"checkpoint_dir": tmp_path, "loop": "scan"}
    assert quiet_fit(num_steps=30_000, **stopper, **options).stopped == "callback"
    assert_same_run(quiet_fit(num_steps=30_000, callbacks=[halve], **options), plain)
    seen = []
    further = {"callbacks": [lambda step, *_: seen.append(step)]}
    quiet_fit(num_steps=60_000, **further, **options)
    assert np.all(np.diff(seen) == 300)  # as a run of 30,000 steps


def test_a_completed_run_returns_its_state_and_history(tmp_path, capsys):
    first = saving_fit(tmp_path)
    again = saving_fit(tmp_path)
    told = capsys.readouterr().err
    assert "nothing to do, the state is at step 20" in told
    assert 'raise them to train on; to fine-tune, restore only part="params"' in told
    assert 'resume="overwrite" moves the old run aside and trains anew' in told
    assert (again.stopped, again.history.notes["resumed"]) == ("completed", [20])
    assert_same_run(again, first)


def test_more_steps_continue_a_completed_run(tmp_path):
    saving_fit(tmp_path, num_steps=10)
    plain = quiet_fit(num_steps=20, **WATCHED)
    assert_same_run(saving_fit(tmp_path), plain)


def test_a_run_that_early_stopping_ended_stays_ended(tmp_path, capsys):
    rule = EarlyStopping(patience=2, min_delta=1e9)
    first = saving_fit(tmp_path, early_stopping=rule)
    assert (first.stopped, int(first.state.step)) == ("early_stopping", 15)
    again = saving_fit(tmp_path, early_stopping=rule)
    assert again.stopped == "early_stopping"
    told = capsys.readouterr().err
    assert "early stopping ends the run at step 15: val/loss has not" in told
    assert "in the last 2 evaluations, with patience=2; more patience" in told
    assert 'resume="overwrite" moves the old run aside and trains anew' in told
    assert_same_run(again, first)
    patient = rule._replace(patience=3)
    further = saving_fit(tmp_path, early_stopping=patient)
    assert (further.stopped, int(further.state.step)) == ("early_stopping", 20)


def test_a_run_that_a_signal_ended_may_be_over_with_less_patience(tmp_path, capsys):
    def interrupt(step, state, values):
        if step == 15:
            signal.raise_signal(signal.SIGINT)

    rule = EarlyStopping(patience=9, min_delta=1e9)
    first = saving_fit(tmp_path, callbacks=[interrupt], early_stopping=rule)
    assert first.stopped == "interrupted"
    capsys.readouterr()
    again = saving_fit(tmp_path, early_stopping=rule._replace(patience=1))
    assert (again.stopped, int(again.state.step)) == ("early_stopping", 15)
    told = capsys.readouterr().err
    assert "has not improved in the last 2 evaluations, with patience=1;" in told


def test_patience_is_remembered(tmp_path):
    rule = EarlyStopping(patience=3, min_delta=1e9)
    killed_fit(tmp_path, at=14, early_stopping=rule)
    result = saving_fit(tmp_path, 40, early_stopping=rule)
    assert (result.stopped, int(result.state.step)) == ("early_stopping", 20)


def test_patience_with_another_metric_starts_at_zero(tmp_path):
    killed_fit(tmp_path, at=14, early_stopping=EarlyStopping(patience=9, min_delta=1e9))
    rule = EarlyStopping("loss", patience=2, min_delta=1e9)
    result = saving_fit(tmp_path, 40, early_stopping=rule)
    assert int(result.state.step) == 25  # first seen at 15


def test_the_best_evaluation_is_kept(tmp_path):
    def metric(params, batch):  # least at step 10
        return {"loss": jnp.full(20, jnp.abs(params["b"]))}

    def set_bias(step, state, values):
        return state._replace(params=state.params | {"b": jnp.float32(step - 9.0)})

    options = {"metric_fn": metric, "callbacks": [set_bias], "log_every": 1}
    options["keep_best"] = DEFAULT_BEST
    saving_fit(tmp_path, keep=1, **options)
    assert checkpoint.steps(tmp_path) == [10, 20]
    best = checkpoint.restore(tmp_path, first_state(), step="best")
    assert int(best.step) == 10
    saving_fit(tmp_path / "a", keep=1, **options | {"keep_best": None})
    assert checkpoint.steps(tmp_path / "a") == [20]
    maximum = {"keep_best": ("val/loss", "max"), "num_steps": 10}
    saving_fit(tmp_path / "b", keep=1, **options | maximum)
    assert checkpoint.steps(tmp_path / "b") == [5, 10]


def test_the_best_value_is_remembered(tmp_path):
    def worse_from(step):
        def metric(params, batch):
            return {"loss": jnp.full(20, params["b"] + 100.0 * (step > 0))}

        return metric

    options = {"keep": 9, "keep_best": DEFAULT_BEST}
    saving_fit(tmp_path, 8, metric_fn=worse_from(0), **options)
    assert checkpoint.steps(tmp_path) == [4, 5, 8]
    with pytest.warns(UserWarning, match="another metric_fn than before"):
        saving_fit(tmp_path, 20, metric_fn=worse_from(1), **options)
    assert checkpoint.steps(tmp_path) == [4, 5, 8, 12, 16, 20]  # neither 10 nor 15


def test_saving_follows_the_clock(tmp_path):
    saving_fit(tmp_path, 9, save_every=None, save_minutes=1e-9, keep=9)
    assert {1, 9} < set(checkpoint.steps(tmp_path))  # each chunk, whatever its length
    saving_fit(tmp_path / "a", 9, save_every=None)
    assert checkpoint.steps(tmp_path / "a") == [9]


def test_the_run_folder_holds_the_checkpoints_if_saving_is_asked_for(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fonts that matplotlib cannot cache
        quiet_fit(num_steps=4, run_dir=tmp_path / "a", save_every=2)
        quiet_fit(num_steps=4, run_dir=tmp_path / "b")
    assert checkpoint.steps(tmp_path / "a" / "checkpoints") == [2, 4]
    assert not (tmp_path / "b" / "checkpoints").exists()


@pytest.mark.filterwarnings("ignore:Matplotlib")
@pytest.mark.parametrize("killed_at", [2, 13])
def test_the_run_folder_of_a_killed_run_has_each_step_once(tmp_path, killed_at):
    options = {"run_dir": tmp_path, "checkpoint_dir": None, "config": {"a": 1}}
    with pytest.raises(KilledError):
        saving_fit(None, log_every=1, loggers=[kill_at(killed_at)], **options)
    metrics = tmp_path / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 14, "lo')  # as a kill leaves it
    resumed = saving_fit(None, log_every=1, **options)
    assert [record["step"] for record in read_jsonl(metrics)] == list(range(1, 21))
    assert len(resumed.history["loss"]) == 20
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["stopped"], manifest["step"]) == ("completed", 20)
    assert manifest["checkpoints"] == str(tmp_path / "checkpoints")
    assert (tmp_path / "curves.png").exists()


@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_records_of_a_run_that_was_never_saved_are_not_cut(tmp_path):
    quiet_fit(num_steps=6, run_dir=tmp_path, log_every=2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"need another run folder, or the state .*new_run"
    ):
        quiet_fit(num_steps=9, run_dir=tmp_path, log_every=2, save_every=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_records_of_a_completed_run_without_its_checkpoints_are_not_cut(tmp_path):
    saving_fit(None, run_dir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        ValueError, match=r"need another run folder, or the state .*new_run"
    ):
        saving_fit(None, run_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_records_are_not_cut_if_another_folder_has_the_checkpoints(tmp_path):
    run_dir = tmp_path / "run"
    killed_fit(tmp_path / "a", at=9, run_dir=run_dir)
    before = (run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"got step 0; its checkpoints were in '.*a'"):
        saving_fit(tmp_path / "b", run_dir=run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert saving_fit(tmp_path / "a", run_dir=run_dir).history.notes["resumed"] == [8]


@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_one_folder_can_hold_records_and_checkpoints(tmp_path):
    killed_fit(tmp_path, at=9, run_dir=tmp_path)
    saving_fit(tmp_path, run_dir=tmp_path)
    steps = [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert checkpoint.steps(tmp_path) == [16, 20]


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_the_evaluation_after_the_last_batch_is_saved(tmp_path):
    def halve(step, state, values):
        return state._replace(params=jax.tree.map(lambda x: x / 2, state.params))

    options = {"data": [DATA.batch(t) for t in range(8)], "callbacks": [halve]}
    result = saving_fit(tmp_path, None, **options)
    assert (result.stopped, int(result.state.step)) == ("exhausted", 8)
    restored = checkpoint.restore(tmp_path, first_state())
    assert_same_run(result._replace(state=restored), result)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path):
    killed_fit(tmp_path, at=9)
    (newest,) = (path for path in tmp_path.iterdir() if path.name.endswith("8"))
    manifest = newest / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="00000008"):
        resumed = saving_fit(tmp_path)
    assert resumed.history.notes["resumed"] == [4]
    assert_same_run(resumed, quiet_fit(num_steps=20, **WATCHED))
    assert checkpoint.steps(tmp_path)[-1] == 20


def test_resume_must_needs_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='for resume="must", got none: check'):
        saving_fit(tmp_path, resume="must")
    killed_fit(tmp_path, at=9)
    assert saving_fit(tmp_path, resume="must").stopped == "completed"


def test_resume_never_accepts_an_empty_folder(tmp_path):
    assert saving_fit(tmp_path, resume="never").stopped == "completed"


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_an_iterable_is_resumed_from_its_beginning_with_a_warning(tmp_path):
    batches = [DATA.batch(t) for t in range(8)]
    options = {"data": batches, "save_every": None, "eval_every": 3}
    saving_fit(tmp_path, None, **options)
    with pytest.warns(UserWarning, match="continues at step 8, but .* its beginning"):
        resumed = saving_fit(tmp_path, None, **options)
    assert int(resumed.state.step) == 16
    with pytest.raises(ValueError, match=r'need a dataset or a .* resume="must"'):
        saving_fit(tmp_path, None, resume="must", **options)


def test_a_folder_in_use_is_refused_and_can_be_read(tmp_path):
    refused = []

    def call_again(step, state, values):
        for folders in ({"folder": tmp_path}, {"folder": None, "run_dir": tmp_path}):
            with pytest.raises(
                LockError, match=r"in use by process.* use another folder"
            ):
                saving_fit(**folders)
            refused.append(step)
        assert int(checkpoint.restore(tmp_path, first_state()).step) in (4, 8)

    def later(step, state, values):
        return call_again(step, state, values) if step == 9 else None

    saving_fit(tmp_path, callbacks=[later])
    assert refused == [9, 9]


def test_fit_saves_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(saving_fit(tmp_path)))
    thread.start()
    thread.join()
    assert results[0].stopped == "completed"
    assert checkpoint.latest_step(tmp_path) == 20


def fail_to_write(monkeypatch, after):
    """Make writing fail after so many checkpoints."""
    import fngrad.checkpoint.manager as manager

    write, calls = manager.write_step, []

    def failing(folder, step, *rest):
        calls.append(step)
        if len(calls) > after:
            raise checkpoint.CheckpointError(f"no space left for step {step}")
        return write(folder, step, *rest)

    monkeypatch.setattr(manager, "write_step", failing)


def test_a_failure_to_save_ends_the_run_with_its_state(tmp_path, monkeypatch):
    fail_to_write(monkeypatch, after=1)
    with pytest.raises(SaveError, match="no space left for step 8") as error:
        saving_fit(tmp_path)
    assert int(error.value.state.step) == 12
    assert len(error.value.history["loss"]) == 12
    assert checkpoint.steps(tmp_path) == [4]


def test_a_failure_to_save_may_be_a_warning(tmp_path, monkeypatch):
    fail_to_write(monkeypatch, after=1)
    with pytest.warns(UserWarning, match="continues without a checkpoint") as warned:
        result = saving_fit(tmp_path, on_save_error="warn")
    assert len(warned) == 4  # of the steps 8, 12, 16 and 20
    assert result.stopped == "completed"
    assert checkpoint.steps(tmp_path) == [4]


def test_the_default_best_metric_is_ignored_if_it_is_not_measured(tmp_path):
    def scores(params, batch):
        return {"score": jnp.zeros(20)}

    saving_fit(tmp_path, metric_fn=scores, keep_best=DEFAULT_BEST)
    assert checkpoint.steps(tmp_path) == [16, 20]

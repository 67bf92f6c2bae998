"""A call of fit that finds checkpoints: it goes on, refuses, or says what is done."""

import json
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from regression import ARRAYS, DATA, OPTIMIZER, STEP, first_state, metric_fn, quiet_fit
from resuming import KilledError, assert_same_run, kill_at

import fngrad.checkpoint as checkpoint
from fngrad.fit import fit
from fngrad.fitting.interrupts import PREEMPTED
from fngrad.fitting.save_rules import USUAL_BEST
from fngrad.fitting.saving import SaveError
from fngrad.fitting.session import STOP
from fngrad.fitting.validation import EarlyStopping
from fngrad.history import History
from fngrad.locks import LockError
from fngrad.logging import read_jsonl
from fngrad.optimizers import adam
from fngrad.training import init_state, make_step

WATCHED = {"metric_fn": metric_fn, "eval_data": ARRAYS, "eval_every": 5, "log_every": 3}


def saving_fit(folder, num_steps=20, **options):
    options = {"checkpoint_dir": folder, "save_every": 4, "keep_best": None} | options
    options = WATCHED | options
    return quiet_fit(num_steps=num_steps, **options)


def killed_fit(folder, at, **options):
    with pytest.raises(KilledError):
        saving_fit(folder, loggers=[kill_at(at)], **options)


def send(number, at):
    """Return a callback that sends this process a signal at a step."""

    def callback(step, state, values):
        if step == at:
            signal.raise_signal(number)

    return callback


@pytest.fixture
def reached(tmp_path):
    """A folder with the checkpoints of steps 4 and 8."""
    killed_fit(tmp_path, at=9)
    assert checkpoint.steps(tmp_path) == [4, 8]
    return tmp_path


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(loop, tmp_path, capsys):
    killed_fit(tmp_path, at=12, loop=loop)
    resumed = saving_fit(tmp_path, loop=loop)
    said = capsys.readouterr().err
    assert f"fit: resumes at step 8 of 20 from {tmp_path}" in said
    assert_same_run(resumed, quiet_fit(num_steps=20, loop=loop, **WATCHED))
    assert resumed.history.notes["resumed"] == [8]


def test_the_loop_that_was_chosen_goes_on(tmp_path):
    first = saving_fit(tmp_path, loop="scan", num_steps=8)
    assert saving_fit(tmp_path, loop="auto").history.notes["loop"] == "scan"
    assert first.history.notes["reason"] == "asked for"


def test_where_a_run_saves_does_not_change_what_callbacks_see(tmp_path):
    seen = {}

    def fit_watched(name, **options):
        steps = seen.setdefault(name, [])
        callbacks = [lambda step, state, values: steps.append(step)]
        return quiet_fit(num_steps=250, callbacks=callbacks, **options)

    plain = fit_watched("plain")
    killer = {"loggers": [kill_at(200)], "checkpoint_dir": tmp_path, "save_every": 70}
    with pytest.raises(KilledError):
        fit_watched("saved", **killer)
    resumed = fit_watched("saved", checkpoint_dir=tmp_path)
    assert_same_run(resumed, plain)
    assert seen == {"plain": [100, 200, 250], "saved": [100, 200, 250]}


def test_the_cadence_of_callbacks_is_kept_where_it_would_be_another(tmp_path):
    def halve(step, state, values):
        return state._replace(params=jax.tree.map(lambda x: x / 2, state.params))

    plain = quiet_fit(num_steps=30_000, callbacks=[halve], loop="scan")
    stopper = {"callbacks": [halve, lambda step, *_: STOP if step > 15_000 else None]}
    options = {"checkpoint_dir": tmp_path, "loop": "scan"}
    assert quiet_fit(num_steps=30_000, **stopper, **options).stopped == "callback"
    assert_same_run(quiet_fit(num_steps=30_000, callbacks=[halve], **options), plain)


def test_a_completed_run_does_nothing_and_returns_all_it_had(tmp_path, capsys):
    first = saving_fit(tmp_path)
    again = saving_fit(tmp_path)
    assert "nothing to do, the state is at step 20" in capsys.readouterr().err
    assert (again.stopped, again.history.notes["resumed"]) == ("completed", [20])
    assert_same_run(again, first)


def test_a_larger_goal_continues_a_completed_run(tmp_path):
    saving_fit(tmp_path, num_steps=10)
    plain = quiet_fit(num_steps=20, **WATCHED)
    assert_same_run(saving_fit(tmp_path), plain)


def test_a_run_that_early_stopping_ended_stays_ended(tmp_path, capsys):
    rule = EarlyStopping(patience=2, min_delta=1e9)
    first = saving_fit(tmp_path, early_stopping=rule)
    assert (first.stopped, int(first.state.step)) == ("early_stopping", 15)
    again = saving_fit(tmp_path, early_stopping=rule)
    assert again.stopped == "early_stopping"
    assert "early stopping ended the run at step 15" in capsys.readouterr().err
    assert_same_run(again, first)
    patient = rule._replace(patience=3)
    further = saving_fit(tmp_path, early_stopping=patient)
    assert (further.stopped, int(further.state.step)) == ("early_stopping", 20)


def test_patience_is_remembered(tmp_path):
    rule = EarlyStopping(patience=3, min_delta=1e9)
    killed_fit(tmp_path, at=14, early_stopping=rule)
    result = saving_fit(tmp_path, 40, early_stopping=rule)
    assert (result.stopped, int(result.state.step)) == ("early_stopping", 20)


def test_patience_with_another_metric_counts_anew(tmp_path):
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
    options["keep_best"] = USUAL_BEST
    saving_fit(tmp_path, keep=1, **options)
    assert checkpoint.steps(tmp_path) == [10, 20]
    best = checkpoint.restore(tmp_path, first_state(), step="best")
    assert int(best.step) == 10
    saving_fit(tmp_path / "a", keep=1, **options | {"keep_best": None})
    assert checkpoint.steps(tmp_path / "a") == [20]
    maximum = {"keep_best": ("val/loss", "max"), "num_steps": 11}
    saving_fit(tmp_path / "b", keep=1, **options | maximum)
    assert checkpoint.steps(tmp_path / "b") == [5, 11]


def test_what_was_best_is_remembered(tmp_path):
    def worse_from(step):
        def metric(params, batch):
            return {"loss": jnp.full(20, params["b"] + 100.0 * (step > 0))}

        return metric

    options = {"keep": 1, "keep_best": USUAL_BEST}
    saving_fit(tmp_path, 8, metric_fn=worse_from(0), **options)
    assert checkpoint.steps(tmp_path) == [5, 8]
    saving_fit(tmp_path, 20, metric_fn=worse_from(1), **options)
    assert checkpoint.steps(tmp_path) == [5, 20]


def test_saving_follows_the_clock(tmp_path):
    saving_fit(tmp_path, 9, save_every=None, save_minutes=1e-9, keep=9)
    assert {1, 9} < set(checkpoint.steps(tmp_path))  # each chunk, whatever its length
    saving_fit(tmp_path / "a", 9, save_every=None)
    assert checkpoint.steps(tmp_path / "a") == [9]


def test_a_run_folder_holds_the_checkpoints_where_saving_is_asked_for(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fonts that matplotlib cannot cache
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
        file.write('{"step": 14, "lo')  # what a kill tore
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
    with pytest.raises(ValueError, match="need another run folder, or the state of st"):
        quiet_fit(num_steps=9, run_dir=tmp_path, log_every=2, save_every=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(reached):
    (newest,) = (path for path in reached.iterdir() if path.name.endswith("8"))
    manifest = newest / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="00000008"):
        resumed = saving_fit(reached)
    assert resumed.history.notes["resumed"] == [4]
    assert_same_run(resumed, quiet_fit(num_steps=20, **WATCHED))
    assert checkpoint.steps(reached)[-1] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"rate": 2}}, r"run in '.*' unchanged.*config.rate was absent, is"),
        ({"data": DATA.reseed(9)}, r"data.fingerprint was '\w+', is '\w+'$"),
        (
            {"data": DATA.__class__(**DATA.__dict__ | {"batch_size": 5})},
            r"data.batch.x was 'float32\[6, 2\]', is 'float32\[5, 2\]'; .*"
            "data.batch_size was 6, is 5",
        ),
        ({"data": DATA.batch}, r"data.batch_size was 6, is None; data.fingerprint"),
        (
            {"state": init_state(first_state().params, OPTIMIZER, 7)},
            r"key was \[0, 0\]",
        ),
        (
            {"state": first_state()._replace(step=jnp.int32(9))},
            r"not beyond the checkpoint of step 8 in .* got the state of step 9",
        ),
        ({"resume": "never"}, r"without checkpoints for resume=.never., got .*step 8"),
    ],
)
def test_another_run_is_refused_by_what_differs(reached, change, message):
    before = checkpoint.steps(reached)
    with pytest.raises(ValueError, match=message):
        saving_fit(reached, **change)
    assert checkpoint.steps(reached) == before


def test_another_optimizer_or_model_is_refused_by_its_leaves(reached):
    other = adam(0.1)
    step = make_step(lambda p, b: jnp.mean((b["x"] @ p["w"] - b["y"]) ** 2), other)
    options = {"num_steps": 20, "checkpoint_dir": reached, "progress": False}
    with pytest.raises(checkpoint.CheckpointError, match=r"opt_state/.*another optim"):
        fit(step, init_state(first_state().params, other, 0), DATA, **options)
    wider = init_state({"w": jnp.zeros(2)}, OPTIMIZER, 0)
    with pytest.raises(checkpoint.CheckpointError, match=r"params/b"):
        fit(
            make_step(
                lambda p, b: jnp.mean((b["x"] @ p["w"] - b["y"]) ** 2), OPTIMIZER
            ),
            wider,
            DATA,
            **options,
        )


def test_a_folder_that_fit_did_not_write_is_refused(tmp_path):
    checkpoint.save(tmp_path, first_state())
    with pytest.raises(ValueError, match=r"written by fngrad.checkpoint.save"):
        saving_fit(tmp_path)


def test_must_needs_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='for resume="must", got none'):
        saving_fit(tmp_path, resume="must")
    killed_fit(tmp_path, at=9)
    assert saving_fit(tmp_path, resume="must").stopped == "completed"


def test_never_takes_an_empty_folder(tmp_path):
    assert saving_fit(tmp_path, resume="never").stopped == "completed"


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_an_iterable_goes_on_from_its_beginning_and_says_so(tmp_path):
    batches = [DATA.batch(t) for t in range(8)]
    options = {"data": batches, "save_every": None, "eval_every": 3}
    saving_fit(tmp_path, None, **options)
    with pytest.warns(UserWarning, match="goes on at step 8, but .* its beginning"):
        resumed = saving_fit(tmp_path, None, **options)
    assert int(resumed.state.step) == 16
    with pytest.raises(ValueError, match=r'need a dataset or a .* resume="must"'):
        saving_fit(tmp_path, None, resume="must", **options)


def test_an_interrupt_saves(tmp_path):
    stopped = saving_fit(tmp_path, save_every=None, callbacks=[send(signal.SIGINT, 9)])
    assert (stopped.stopped, checkpoint.latest_step(tmp_path)) == ("interrupted", 9)
    assert_same_run(saving_fit(tmp_path), quiet_fit(num_steps=20, **WATCHED))


def test_a_second_interrupt_leaves_the_last_checkpoint(tmp_path):
    twice = [send(signal.SIGINT, 9), send(signal.SIGINT, 9)]
    with pytest.raises(KeyboardInterrupt):
        saving_fit(tmp_path, callbacks=twice)
    assert checkpoint.latest_step(tmp_path) == 8
    assert_same_run(saving_fit(tmp_path), quiet_fit(num_steps=20, **WATCHED))


def test_termination_saves_and_exits_with_its_own_status(tmp_path, capsys):
    usual = signal.getsignal(signal.SIGTERM)
    twice = [send(signal.SIGTERM, 9), send(signal.SIGTERM, 9)]
    with pytest.raises(SystemExit) as exit_:
        saving_fit(tmp_path, callbacks=twice)
    assert exit_.value.code == PREEMPTED == 75
    assert "SIGTERM at step 9, saved: exits with status 75" in capsys.readouterr().err
    assert checkpoint.latest_step(tmp_path) == 9
    assert signal.getsignal(signal.SIGTERM) is usual
    assert_same_run(saving_fit(tmp_path), quiet_fit(num_steps=20, **WATCHED))


def test_termination_is_left_alone_where_nothing_is_saved():
    seen = []
    quiet_fit(
        num_steps=3,
        log_every=1,
        callbacks=[lambda *_: seen.append(signal.getsignal(signal.SIGTERM))],
    )
    assert set(seen) == {signal.getsignal(signal.SIGTERM)}


def test_a_run_without_a_step_saves_nothing(tmp_path):
    def batch_at(step):
        signal.raise_signal(signal.SIGINT)
        return DATA.batch(step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fonts that matplotlib cannot cache
        options = {"data": batch_at, "run_dir": tmp_path / "run", "loop": "auto"}
        result = saving_fit(tmp_path, **options)
    assert (result.stopped, int(result.state.step)) == ("interrupted", 0)
    assert checkpoint.steps(tmp_path) == []
    assert "loop" not in json.loads((tmp_path / "run" / "manifest.json").read_text())


def test_a_folder_in_use_is_refused_and_can_be_read(tmp_path):
    refused = []

    def call_again(step, state, values):
        for folders in ({"folder": tmp_path}, {"folder": None, "run_dir": tmp_path}):
            with pytest.raises(LockError, match="in use by process"):
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
    """Let writing fail once so many checkpoints are written."""
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
    with pytest.warns(UserWarning, match="goes on without a checkpoint") as warned:
        result = saving_fit(tmp_path, on_save_error="warn")
    assert len(warned) == 4  # of the steps 8, 12, 16 and 20
    assert result.stopped == "completed"
    assert checkpoint.steps(tmp_path) == [4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "yes"}, "need resume to be one of"),
        ({"on_save_error": "ignore"}, "need on_save_error to be one of"),
        ({"save_every": 0}, "need save_every to be an int >= 1, got 0"),
        ({"save_every": 1.5}, "need save_every to be an int >= 1, got 1.5"),
        ({"save_minutes": 0}, "need save_minutes > 0, got 0"),
        ({"keep": 0}, "need keep to be an int >= 1, got 0"),
        ({"keep_best": "val/loss"}, "need keep_best as"),
        ({"keep_best": ("val/loss", "low")}, "need keep_best as"),
        ({"keep_best": ("val/accuracy", "max")}, "got 'val/accuracy'"),
        ({"keep_best": ("a", "max"), "metric_fn": None}, "metric_fn and eval_data for"),
        ({"checkpoint_dir": None}, "need checkpoint_dir, or run_dir with save_every"),
        (
            {"checkpoint_dir": None, "save_every": None, "resume": "must"},
            "need checkpoint_dir, or run_dir with .* resume='must'",
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        saving_fit(tmp_path, **options)


def test_the_usual_best_is_ignored_where_it_is_not_measured(tmp_path):
    def scores(params, batch):
        return {"score": jnp.zeros(20)}

    saving_fit(tmp_path, metric_fn=scores, keep_best=USUAL_BEST)
    assert checkpoint.steps(tmp_path) == [16, 20]


@pytest.mark.parametrize("name", ["state", "data", "eval_data"])
def test_what_was_donated_is_named_with_its_leaf(name):
    given = {"state": first_state(), "data": DATA, "eval_data": dict(ARRAYS)}
    gone = jax.tree.map(lambda x: x + 0, ARRAYS["x"])
    gone.delete()
    given["data"] = (
        DATA.__class__(**DATA.__dict__ | {"arrays": ARRAYS | {"x": gone}})
        if name == "data"
        else DATA
    )
    given["eval_data"] = ARRAYS | {"x": gone} if name == "eval_data" else ARRAYS
    if name == "state":
        given["state"].params["w"].delete()
    path = {"state": "params/w", "data": "arrays/x", "eval_data": "x"}[name]
    with pytest.raises(RuntimeError, match=f"need {name} that .* array at '{path}'"):
        fit(STEP, num_steps=2, progress=False, metric_fn=metric_fn, **given)


def test_a_history_grows_by_blocks_of_any_size_and_can_be_cut():
    history = History()
    for start in range(0, 50, 5):
        steps = np.arange(start, start + 5)
        history.extend(steps, {"a": steps * 2.0, "b": np.ones((5, 2), np.float32)})
    history.extend(np.array([7]), {"c": np.array([1])})
    np.testing.assert_array_equal(history["a"], 2.0 * np.arange(50))
    assert history["b"].shape == (50, 2)
    history["a"][:] = 0  # a copy
    assert history.last("a") == 98.0
    history.truncate(6)
    np.testing.assert_array_equal(history.steps("a"), np.arange(7))
    assert set(history) == {"a", "b"}
    history.extend(np.array([7]), {"a": np.array([1.5])})
    assert history.last("a") == 1.5
    with pytest.raises(KeyError, match="got 'c'"):
        history.steps("c")

"""An exception that ends a run loses neither its state nor its history."""

import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import DATA, PARAMS, quiet_fit, squared_errors
from resuming import (
    FULL,
    WATCHED,
    OwnError,
    assert_same_run,
    raise_at,
    reached,
    saving_fit,
)

import fngrad as fg
import fngrad.checkpoint as checkpoint
import fngrad.training.evaluation as evaluation
from fngrad.fitting.checkpointing import SaveError
from fngrad.fitting.nonfinite import NonFiniteError
from fngrad.logging import RunFolder, read_jsonl
from fngrad.logging.history import History

pytestmark = pytest.mark.usefixtures("usual_signals")

WAYS = {
    "callback": lambda error: {"callbacks": [raise_at(9, error)]},
    "second callback": lambda error: {
        "callbacks": [lambda *_: None, raise_at(9, error)]
    },
    "logger": lambda error: {"loggers": [raise_at(9, error)]},
    "evaluation": lambda error: {"callbacks": [raise_at(10, error)]},
}


ENDINGS = [  # an Exception that a logger raises ends no run
    (way, error)
    for way in WAYS
    for error in (OwnError("mine"), FULL, SystemExit(3))
    if way != "logger" or not isinstance(error, Exception)
]


@pytest.mark.parametrize(("way", "error"), ENDINGS)
def test_an_exception_carries_the_state_and_history_and_the_state_is_saved(
    way, error, tmp_path
):
    with pytest.raises(type(error)) as caught:
        saving_fit(tmp_path, **WAYS[way](error))
    assert caught.value is error
    now = int(error.state.step)
    assert now in (9, 10)
    assert len(error.history["loss"]) == now
    undisturbed = quiet_fit(num_steps=now, **WATCHED)
    assert fg.tree.mismatch(error.state, undisturbed.state) is None
    np.testing.assert_array_equal(
        error.state.params["w"], undisturbed.state.params["w"]
    )
    assert f"the run had reached step {now}" in error.__notes__[-1]
    assert "a checkpoint" in error.__notes__[-1]
    assert checkpoint.latest_step(tmp_path) == now
    assert_same_run(saving_fit(tmp_path), quiet_fit(num_steps=20, **WATCHED))


def test_the_next_call_completes_the_step_and_repeats_nothing(tmp_path):
    told, called = [], []
    options = {
        "run_dir": tmp_path,
        "checkpoint_dir": tmp_path / "checkpoints",
        "loggers": [lambda step, values: told.append((step, *sorted(values)))],
    }

    def first(step, state, values):
        called.append((step, "val/loss" in values))

    broken = raise_at(10, OwnError())
    with pytest.raises(OwnError):
        saving_fit(tmp_path, callbacks=[first, broken, first], **options)
    result = saving_fit(tmp_path, callbacks=[first, broken, first], **options)
    steps = [3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert [step for step, *_ in told] == steps
    assert called == [(step, step % 5 == 0) for step in steps for _ in range(2)]
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == steps
    assert result.history.steps("val/loss").tolist() == [5, 10, 15, 20]


def test_records_of_a_step_that_is_logged_again_are_cut(tmp_path):
    options = {"run_dir": tmp_path, "checkpoint_dir": tmp_path / "checkpoints"}
    with pytest.raises(SystemExit):
        saving_fit(tmp_path, loggers=[raise_at(9, SystemExit())], **options)
    line = '{"step": 9, "loss": 0.5}\n'
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line)
    saving_fit(tmp_path, **options)
    steps = [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == [3, 5, 6, 9, 10, 12, 15, 18, 20]


@pytest.mark.parametrize("keeps", [None, ("val/loss", "min")])
def test_after_a_failure_at_the_last_step_only_that_step_is_completed(
    keeps, tmp_path, capsys
):
    broken = [raise_at(20, OwnError())]
    with pytest.raises(OwnError):
        saving_fit(tmp_path, callbacks=broken, keep_best=keeps)
    seen = []
    result = saving_fit(
        tmp_path, callbacks=[lambda step, *_: seen.append(step)], keep_best=keeps
    )
    assert (result.stopped, seen) == ("completed", [20])
    assert_same_run(result, quiet_fit(num_steps=20, **WATCHED))
    saving_fit(tmp_path, callbacks=[lambda *_: seen.append("again")], keep_best=keeps)
    assert seen == [20]
    assert "nothing to do" in capsys.readouterr().err


def test_the_next_call_makes_an_evaluation_that_failed(tmp_path, monkeypatch):
    def unmeasurable(*_):
        raise OwnError("no memory")

    monkeypatch.setattr(evaluation, "evaluate", unmeasurable)
    with pytest.raises(OwnError) as caught:
        saving_fit(tmp_path, keep_best=("val/loss", "min"))
    monkeypatch.undo()
    assert int(reached(caught).state.step) == 5 == checkpoint.latest_step(tmp_path)
    assert "val/loss" not in reached(caught).history
    result = saving_fit(tmp_path, keep_best=("val/loss", "min"), keep=9)
    assert_same_run(result, quiet_fit(num_steps=20, **WATCHED))
    best = min(zip(result.history["val/loss"], (5, 10, 15, 20), strict=True))[1]
    restored = checkpoint.restore(tmp_path, result.state, step="best")
    assert int(restored.step) == best


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_an_iterable_that_raises_leaves_the_state_of_the_last_batch(tmp_path):
    def batches():
        for step in range(7):
            yield DATA.batch(step)
        raise OwnError("no more")

    with pytest.raises(OwnError, match="no more") as caught:
        saving_fit(tmp_path, data=batches(), save_every=None)
    assert int(reached(caught).state.step) == 7 == checkpoint.latest_step(tmp_path)
    assert len(reached(caught).history["loss"]) == 7


def test_a_state_lost_inside_the_compiled_step_is_none_with_a_note(tmp_path):
    def fails(step):
        if step == 6:
            raise OwnError("inside")
        return np.float32(0)

    def loss_fn(params, batch):
        extra = jax.pure_callback(
            fails, jax.ShapeDtypeStruct((), jnp.float32), batch["step"]
        )
        return jnp.mean(squared_errors(params, batch)) + jax.lax.stop_gradient(extra)

    optimizer = fg.sgd(0.1)
    step = fg.make_step(loss_fn, optimizer)
    with pytest.raises(Exception, match="inside") as caught:
        fg.fit(
            step,
            fg.init_state(PARAMS, optimizer, 0),
            lambda step: DATA.batch(step) | {"step": step},
            num_steps=20,
            checkpoint_dir=tmp_path,
            save_every=4,
            loop="python",
            progress=False,
        )
    assert isinstance(reached(caught).history, History)
    assert reached(caught).state is None or int(reached(caught).state.step) <= 6
    assert "the last checkpoint is of step 4" in caught.value.__notes__[-1]
    assert checkpoint.latest_step(tmp_path) == 4


def test_a_failure_to_save_does_not_hide_the_first_exception(tmp_path, monkeypatch):
    import fngrad.checkpoint.manager as manager

    def full(*_):
        raise checkpoint.CheckpointError("no space left")

    monkeypatch.setattr(manager, "write_step", full)
    with pytest.raises(OwnError) as caught:
        saving_fit(tmp_path, callbacks=[raise_at(3, OwnError())])
    assert int(reached(caught).state.step) == 3
    assert "saving it ended with SaveError: no space left" in caught.value.__notes__[-1]


def test_saving_is_not_retried_after_a_failure(tmp_path, monkeypatch):
    import fngrad.checkpoint.manager as manager

    calls = []

    def full(folder, step, *_):
        calls.append(step)
        raise checkpoint.CheckpointError("no space left")

    monkeypatch.setattr(manager, "write_step", full)
    with pytest.raises(SaveError) as caught:
        saving_fit(tmp_path)
    assert (calls, int(reached(caught).state.step)) == ([4], 8)


def test_a_step_that_is_not_finite_says_so_of_its_state():
    data = fg.data.from_arrays({"x": np.full((6, 2), np.nan, "f"), "y": np.ones(6)}, 6)
    with pytest.raises(NonFiniteError) as caught:
        quiet_fit(data=data, num_steps=2)
    assert "its results, not all of them finite" in caught.value.__notes__[-1]


def test_a_state_that_is_not_finite_is_carried_but_not_saved(tmp_path):
    def spoil(step, state, values):
        if step == 9:
            return state._replace(
                params={**state.params, "w": state.params["w"] * np.float32("nan")}
            )
        return None

    with pytest.raises(OwnError) as caught:
        saving_fit(tmp_path, callbacks=[spoil, raise_at(9, OwnError())])
    assert "not saved, as 'params/w' is not finite" in caught.value.__notes__[-1]
    assert checkpoint.latest_step(tmp_path) == 8
    with pytest.raises(NonFiniteError) as caught:
        saving_fit(tmp_path, callbacks=[spoil])
    assert int(reached(caught).state.step) >= 10
    assert checkpoint.latest_step(tmp_path) == 8


def test_a_second_interrupt_carries_what_was_reached():
    def interrupt_twice(step, state, values):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        quiet_fit(num_steps=100, log_every=4, callbacks=[interrupt_twice])
    assert int(reached(caught).state.step) == 4
    assert len(reached(caught).history["loss"]) == 4


class StatefulError(Exception):
    state = "California"


class RigidError(Exception):
    @property
    def state(self):
        return None


@pytest.mark.parametrize("error", [StatefulError(), RigidError()], ids=repr)
def test_an_exception_with_its_own_state_keeps_it(error):
    own = error.state
    with pytest.raises(type(error)):
        quiet_fit(num_steps=4, log_every=1, callbacks=[raise_at(2, error)])
    assert error.state is own
    assert len(error.history["loss"]) == 2


def test_an_exception_that_ends_two_runs_carries_the_last_state():
    error: Any = OwnError()
    for at in (2, 3):
        with pytest.raises(OwnError):
            quiet_fit(num_steps=4, log_every=1, callbacks=[raise_at(at, error)])
        assert int(error.state.step) == at


def test_changing_the_working_directory_moves_no_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def leave(step, state, values):
        os.chdir(tmp_path / "elsewhere")

    for folders in ({"run_dir": "a", "save_every": 4}, {"checkpoint_dir": "b"}):
        os.chdir(tmp_path)
        quiet_fit(num_steps=8, **WATCHED, **folders, callbacks=[leave])
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert checkpoint.latest_step(tmp_path / "a" / "checkpoints") == 8
    assert checkpoint.latest_step(tmp_path / "b") == 8
    assert (tmp_path / "a" / "curves.png").exists()
    assert RunFolder(tmp_path / "a").manifest["stopped"] == "completed"

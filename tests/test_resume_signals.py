"""Ctrl-C and SIGTERM while checkpoints are written."""

import json
import signal
import warnings

import pytest
from regression import DATA, quiet_fit
from resuming import (
    WATCHED,
    assert_same_run,
    saving_fit,
)

import fngrad.checkpoint as checkpoint
from fngrad.fitting.interrupts import PREEMPTED


def send(number, at):
    """Return a callback that sends this process a signal at a step."""

    def callback(step, state, values):
        if step == at:
            signal.raise_signal(number)

    return callback


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

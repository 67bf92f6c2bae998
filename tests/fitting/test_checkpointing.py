"""Saving in the background: what training waits for, and what it does not."""

import threading

import numpy as np
from linear_regression import first_state
from resuming import assert_same_run, saving_fit

import fngrad.checkpoint as checkpoint
import fngrad.checkpoint.manager as manager
from fngrad.fitting.checkpointing import DEFAULT_BEST

BEST = {"eval_every": 1, "keep_best": DEFAULT_BEST, "save_every": None, "num_steps": 60}


def test_a_best_evaluation_never_holds_up_training(tmp_path, monkeypatch):
    write, is_late, begun = manager.write_step, threading.Event(), []

    def wait_and_write(folder, step, *rest):
        begun.append(step)
        assert is_late.wait(timeout=600)  # not forever
        return write(folder, step, *rest)

    def at_the_end(step, state, values):
        if step == 59:
            begun.append("late")
            is_late.set()

    monkeypatch.setattr(manager, "write_step", wait_and_write)
    callbacks = [at_the_end]
    result = saving_fit(tmp_path, log_every=1, keep=1, callbacks=callbacks, **BEST)
    assert begun[:2] == [1, "late"]
    losses = result.history["val/loss"]
    assert np.sum(losses[1:] < np.minimum.accumulate(losses)[:-1]) > 10
    best = int(result.history.steps("val/loss")[np.argmin(losses)])
    assert begun[2] in (best, 60)
    assert checkpoint.steps(tmp_path) == sorted({best, 60})
    state = checkpoint.restore(tmp_path, first_state(), step="best")
    assert int(state.step) == best
    assert_same_run(saving_fit(tmp_path, **BEST), result)

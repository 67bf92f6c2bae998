"""What `fit` reports of its time: the notes, the manifest, the progress bar."""

import datetime
import functools
import io
import json
import os
import re
import signal
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from linear_regression import ARRAYS, DATA, PARAMS, metric_fn, quiet_fit

import fngrad.fitting.training_loop as training_loop
from fngrad.fitting.checkpointing import Saver
from fngrad.fitting.validation import Evaluation
from fngrad.logging.time_spent import PARTS, TimeSpent
from fngrad.optimizers import sgd
from fngrad.training import init_state, make_step

pytestmark = pytest.mark.usefixtures("usual_signals")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of `fit`'s parts, of JAX's events and of the bar."""
    clock = Clock()
    monkeypatch.setattr(
        training_loop, "TimeSpent", functools.partial(TimeSpent, clock=clock)
    )
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def slow(fn, clock, seconds):
    """Return a function that takes so many seconds more."""

    def taking(*args, **options):
        clock.now += seconds
        return fn(*args, **options)

    return taking


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_the_parts_of_a_run_sum_to_its_wall_time(clock, monkeypatch, tmp_path):
    def batches():
        for step in range(4):
            clock.now += 10.0
            yield DATA.batch(step)

    def loss_fn(params, batch):
        clock.now += 5.0  # to trace
        return jnp.mean(batch["x"] @ params["w"])

    monkeypatch.setattr(Evaluation, "values", slow(Evaluation.values, clock, 100.0))
    monkeypatch.setattr(Saver, "save", slow(Saver.save, clock, 1000.0))
    optimizer = sgd(0.1)
    result = training_loop.fit(
        make_step(loss_fn, optimizer),
        init_state(PARAMS, optimizer, 0),
        batches(),
        metric_fn=metric_fn,
        eval_data=ARRAYS,
        eval_every=2,
        checkpoint_dir=tmp_path,
        save_every=2,
        log_every=2,
        callbacks=[slow(lambda step, state, values: None, clock, 10000.0)],
        progress=False,
    )
    seconds = result.history.notes["seconds"]
    assert sum(seconds.values()) == pytest.approx(clock.now, rel=1e-12)
    assert seconds["tracing"] >= 5.0
    assert seconds["tracing"] % 5.0 == pytest.approx(0.0)
    exact = {"data": 30.0, "evaluating": 200.0, "saving": 2000.0, "stepping": 0.0}
    assert {part: seconds[part] for part in exact} == exact
    # The first batch is read while the data is checked.
    assert seconds["other"] == 20010.0


def test_the_manifest_tells_the_same_and_a_resumed_call_counts_anew(tmp_path):
    options = {"run_dir": tmp_path, "save_every": 4, "metric_fn": metric_fn}
    begin = time.perf_counter()
    first = quiet_fit(num_steps=8, eval_data=ARRAYS, **options)
    wall = time.perf_counter() - begin
    seconds = first.history.notes["seconds"]
    assert tuple(seconds) == PARTS
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    recorded = manifest["seconds"]
    begins, ends = (
        datetime.datetime.fromisoformat(manifest[name]) for name in ("started", "ended")
    )
    duration = (ends - begins).total_seconds()
    assert sum(recorded.values()) - 0.01 <= duration <= wall + 0.01
    del seconds["other"], recorded["other"]  # the manifest is written a little earlier
    assert recorded == seconds
    begin = time.perf_counter()
    again = quiet_fit(num_steps=12, eval_data=ARRAYS, **options)
    assert again.history.notes["resumed"] == [8]
    wall = time.perf_counter() - begin
    assert sum(again.history.notes["seconds"].values()) <= wall
    nothing = quiet_fit(num_steps=12, eval_data=ARRAYS, **options)
    assert nothing.history.notes["seconds"]["stepping"] == 0
    assert tuple(nothing.history.notes["seconds"]) == PARTS


def test_an_error_carries_what_the_time_was_spent_on():
    def fail(step, state, values):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        quiet_fit(num_steps=4, log_every=2, callbacks=[fail])
    history = getattr(caught.value, "history")  # noqa: B009
    assert tuple(history.notes["seconds"]) == PARTS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.filterwarnings("ignore:batches from an iterable")
@pytest.mark.parametrize("times_loops", [False, True])
def test_the_bar_leaves_hours_of_compiling_out(times_loops, clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def batches():
        for step in range(60):
            clock.now += 1.0
            yield DATA.batch(step)

    def loss_fn(params, batch):
        clock.now += 3 * 3600.0  # to trace
        return jnp.mean(batch["x"] @ params["w"])

    def scores(params, batch):
        clock.now += 3600.0
        return metric_fn(params, batch)

    optimizer = sgd(0.1)
    training_loop.fit(
        make_step(loss_fn, optimizer),
        init_state(PARAMS, optimizer, 0),
        DATA if times_loops else batches(),
        num_steps=60,
        metric_fn=scores,
        eval_data=ARRAYS,
        eval_every=10,
    )
    lines = [x.strip() for x in terminal.getvalue().split("\r") if x.strip()]
    assert not [x for x in lines if re.search(r"\d:\d\d:\d\d", x)]  # no hours
    assert lines[0].startswith(f"compiling for {jax.default_backend()}:   0%")
    assert [x for x in lines if x.startswith("compiling for") and "| 10/60" in x]
    assert lines[-1].startswith(f"training on {jax.default_backend()}: 100%")
    if not times_loops:  # 59 batches after the first, which is read beforehand
        assert "60/60 [00:59<00:00,  1.02 steps/s" in lines[-1]


def test_what_a_callback_prints_stands_above_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def tell(step, state, values):
        print(f"at {step}", file=terminal)

    quiet_fit(num_steps=6, log_every=2, callbacks=[tell], progress=True)
    for line in ("at 2", "at 4", "at 6"):
        before, found, _ = terminal.getvalue().partition(f"{line}\n")
        assert found
        assert not before.rpartition("\r")[2].strip()


@pytest.mark.parametrize(
    ("is_saved", "words"),
    [
        (True, "saved: the same call continues from there"),
        (False, "not saved: to continue, call fit with the state that it returns"),
    ],
)
def test_ctrl_c_prints_what_is_saved_and_how_to_continue(
    is_saved, words, tmp_path, capsys
):
    def interrupt(step, state, values):
        os.kill(os.getpid(), signal.SIGINT)

    folder = {"checkpoint_dir": tmp_path} if is_saved else {}
    result = quiet_fit(num_steps=100, log_every=4, callbacks=[interrupt], **folder)
    assert (result.stopped, int(result.state.step)) == ("interrupted", 4)
    assert capsys.readouterr().err == f"fit: Ctrl-C at step 4, {words}\n"

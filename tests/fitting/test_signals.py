"""Ctrl-C and SIGTERM while checkpoints are written."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from linear_regression import DATA, quiet_fit
from resuming import (
    WATCHED,
    OwnError,
    assert_same_run,
    reached,
    saving_fit,
)

import fngrad.checkpoint as checkpoint
from fngrad.fitting.interrupts import PREEMPTED, handled_signals, print_interrupted

pytestmark = pytest.mark.usefixtures("usual_signals")


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


def test_sigterm_saves_and_exits_with_its_own_status(tmp_path, capsys):
    usual = signal.getsignal(signal.SIGTERM)
    twice = [send(signal.SIGTERM, 9), send(signal.SIGTERM, 9)]
    with pytest.raises(SystemExit) as exit_:
        saving_fit(tmp_path, callbacks=twice)
    assert exit_.value.code == PREEMPTED == 75
    assert "SIGTERM at step 9, saved: exits with status 75" in capsys.readouterr().err
    assert checkpoint.latest_step(tmp_path) == 9
    assert signal.getsignal(signal.SIGTERM) is usual
    assert_same_run(saving_fit(tmp_path), quiet_fit(num_steps=20, **WATCHED))


def test_sigterm_is_not_handled_without_checkpoints():
    seen = []
    quiet_fit(
        num_steps=3,
        log_every=1,
        callbacks=[lambda *_: seen.append(signal.getsignal(signal.SIGTERM))],
    )
    assert set(seen) == {signal.getsignal(signal.SIGTERM)}


def test_a_run_without_a_step_saves_nothing(tmp_path):
    waiting = [signal.SIGINT]  # for the first of the calls that trace

    def batch_at(step):
        if waiting:
            signal.raise_signal(waiting.pop())
        return DATA.batch(step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fonts that matplotlib cannot cache
        options = {"data": batch_at, "run_dir": tmp_path / "run", "loop": "auto"}
        result = saving_fit(tmp_path, **options)
    assert (result.stopped, int(result.state.step)) == ("interrupted", 0)
    assert checkpoint.steps(tmp_path) == []
    assert "loop" not in json.loads((tmp_path / "run" / "manifest.json").read_text())


NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")


@pytest.fixture
def install():
    """Return a function that installs handlers; checks that they are restored."""
    before = {}

    def install(number, handler):
        before[number] = signal.signal(number, handler), handler
        return handler

    yield install
    for number, (usual, handler) in before.items():
        assert signal.signal(number, usual) is handler


def test_an_ignored_signal_stays_ignored(tmp_path, install):
    numbers = [signal.SIGINT, signal.SIGTERM]
    for number in numbers:
        install(number, signal.SIG_IGN)
    sends = [send(number, 9) for number in (*numbers, *numbers)]
    result = saving_fit(tmp_path, callbacks=sends)
    assert (result.stopped, int(result.state.step)) == ("completed", 20)


def test_a_handler_in_c_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    installed = []
    monkeypatch.setattr(signal, "signal", lambda *given: installed.append(given))
    with handled_signals(exits=(signal.SIGTERM,)):
        pass
    assert installed == []


def test_a_users_own_handler_is_called_too(tmp_path, install):
    heard = []
    for number in (signal.SIGINT, signal.SIGTERM):
        install(number, lambda n, frame: heard.append((n, frame is not None)))
    result = saving_fit(tmp_path, callbacks=[send(signal.SIGINT, 9)])
    assert (result.stopped, int(result.state.step)) == ("interrupted", 9)
    with pytest.raises(SystemExit) as exit_:
        saving_fit(tmp_path, callbacks=[send(signal.SIGTERM, 12)])
    assert exit_.value.code == PREEMPTED
    assert checkpoint.latest_step(tmp_path) == 12
    with pytest.raises(KeyboardInterrupt):
        saving_fit(tmp_path, callbacks=2 * [send(signal.SIGINT, 15)])
    assert heard == [(number, True) for number in (2, 15, 2, 2)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_users_handler_raises_waits_for_the_checkpoint(
    number, tmp_path, install
):
    def handler(number, frame):
        raise OwnError(number)

    install(number, handler)
    with pytest.raises(OwnError) as caught:
        saving_fit(tmp_path, callbacks=[send(number, 9)])
    assert int(reached(caught).state.step) == 9 == checkpoint.latest_step(tmp_path)
    assert len(reached(caught).history["loss"]) == 9


class Ends:
    """A logger that keeps how it was ended."""

    def __init__(self, methods=("close", "fail", "kill")):
        self.ended = []
        for name in methods:
            setattr(self, name, functools.partial(self.ended.append, name))

    def __call__(self, step, values):
        pass


def own_handler_raises(number, frame):
    raise OwnError(number)


@pytest.mark.parametrize(
    ("number", "handler", "expected"),
    [
        (signal.SIGTERM, None, "kill"),
        (signal.SIGINT, None, "close"),
        (signal.SIGTERM, own_handler_raises, "fail"),
    ],
)
def test_loggers_are_told_how_a_signal_ends_the_run(
    number, handler, expected, tmp_path, install
):
    if handler:
        install(number, handler)
    whole, simple = Ends(), Ends(["close"])
    with contextlib.suppress(SystemExit, OwnError):
        options = {"num_steps": 6, "callbacks": [send(number, 3)]}
        saving_fit(tmp_path, loggers=[whole, simple], **options)
    assert (whole.ended, simple.ended) == ([expected], ["close"])


def test_an_interrupt_ends_a_nested_run_and_the_outer_one(tmp_path):
    inner = []

    def train_another(step, state, values):
        if step == 9:
            sends = [send(signal.SIGINT, 3)]
            inner.append(quiet_fit(num_steps=20, log_every=1, callbacks=sends))

    result = saving_fit(tmp_path, callbacks=[train_another])
    assert [inner[0].stopped, result.stopped] == 2 * ["interrupted"]
    assert int(result.state.step) == 9


@NEEDS_POSIX
@pytest.mark.parametrize("way", ["name", "member", "number"])
def test_other_signals_may_mean_save_and_exit(way, tmp_path, install, capsys):
    number = signal.SIGUSR1
    install(number, signal.SIG_DFL)
    given = {"name": "SIGUSR1", "member": number, "number": int(number)}[way]
    with pytest.raises(SystemExit) as exit_:
        saving_fit(tmp_path, callbacks=[send(number, 9)], exit_signals=[given])
    assert exit_.value.code == PREEMPTED
    assert "SIGUSR1 at step 9, saved: exits with" in capsys.readouterr().err
    assert checkpoint.latest_step(tmp_path) == 9


def test_a_signal_that_is_not_in_exit_signals_is_not_handled(tmp_path, install):
    heard = []
    install(signal.SIGTERM, lambda *_: heard.append(1))
    callbacks = [send(signal.SIGTERM, 9)]
    result = saving_fit(tmp_path, callbacks=callbacks, exit_signals=())
    assert (result.stopped, heard) == ("completed", [1])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("SIGTERM", TypeError, "need exit_signals as a sequence"),
        (signal.SIGTERM, TypeError, "need exit_signals as a sequence"),
        (None, TypeError, "need exit_signals as a sequence"),
        ([1.5], TypeError, "need names or numbers of signals"),
        ([True], TypeError, "need names or numbers of signals"),
        (["TERM"], ValueError, "got 'TERM': it has .*SIGTERM"),
        ([12345], ValueError, "got 12345: it has"),
        (["SIGINT"], ValueError, "got SIGINT, after which fit returns"),
        pytest.param(["SIGKILL"], ValueError, "got SIGKILL", marks=NEEDS_POSIX),
        pytest.param([signal.SIGSEGV], ValueError, "wait for the end of a step.*SEGV"),
    ],
)
def test_exit_signals_are_checked_before_the_run(given, error, words, tmp_path):
    with pytest.raises(error, match=words):
        saving_fit(tmp_path / "a", exit_signals=given)
    assert not (tmp_path / "a").exists()


@NEEDS_POSIX
def test_exit_signals_need_checkpoints():
    with pytest.raises(ValueError, match=r"need checkpoint_dir.*SIGUSR1"):
        quiet_fit(num_steps=3, exit_signals=["SIGTERM", "SIGUSR1"])
    assert quiet_fit(num_steps=3, exit_signals=["SIGTERM"]).stopped == "completed"


def test_no_signal_is_handled_outside_the_main_thread(tmp_path):
    seen, results = [], []
    usual = signal.getsignal(signal.SIGTERM)
    look = [lambda *_: seen.append(signal.getsignal(signal.SIGTERM))]

    def work():
        results.append(saving_fit(tmp_path, callbacks=look, exit_signals=["SIGTERM"]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].stopped == "completed"
    assert set(seen) == {usual}


@pytest.mark.parametrize("ends", ["completed", "error"])
def test_earlier_handlers_are_restored_however_a_run_ends(ends, tmp_path, install):
    def fails(*_):
        raise OwnError

    for number in (signal.SIGINT, signal.SIGTERM):
        install(number, lambda *_: None)
    if ends == "error":
        with pytest.raises(OwnError):
            saving_fit(tmp_path, callbacks=[fails])
    else:
        saving_fit(tmp_path)


IGNORING = 'trap "" INT; exec "$0" "$@"'
BACKGROUND = """
import signal, sys
sys.path.insert(0, sys.argv[2])
from linear_regression import quiet_fit

def send(step, state, values):
    signal.raise_signal(signal.SIGINT)

assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
result = quiet_fit(num_steps=8, log_every=2, callbacks=[send],
                   checkpoint_dir=sys.argv[1], save_every=4)
print(result.stopped, signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""


@NEEDS_POSIX
def test_a_background_job_is_not_interrupted(tmp_path):
    here = str(Path(__file__).parents[1] / "support")
    done = subprocess.run(
        ["sh", "-c", IGNORING, sys.executable, "-c", BACKGROUND, str(tmp_path), here],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["completed", "True"], done.stderr


@pytest.mark.parametrize(
    ("is_saved", "words"), [(True, "saved"), (False, "nothing to")]
)
def test_a_signal_before_the_first_step_does_not_claim_a_checkpoint(
    is_saved, words, capsys
):
    print_interrupted(signal.SIGTERM, 0, is_saved)
    assert f"SIGTERM at step 0, {words}" in capsys.readouterr().err

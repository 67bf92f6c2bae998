"""A failure to report, as on a full disk, loses no training."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from linear_regression import quiet_fit
from resuming import FULL, WATCHED, OwnError, raise_at, reached

import fngrad.fitting.recording as recording
from fngrad.logging import RunFolder, read_jsonl
from fngrad.logging.history import History
from fngrad.logging.lines import LineFile


def fail(*_, **__):
    raise FULL


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (RunFolder, "update_manifest", "manifest.json.* is not written: OSError"),
        (History, "plot", "curves.png.* is not written: OSError"),
    ],
)
def test_a_report_that_cannot_be_written_is_a_warning(
    owner, name, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(owner, name, fail)
    with pytest.warns(UserWarning, match=words):
        result = quiet_fit(num_steps=8, run_dir=tmp_path, **WATCHED)
    assert (result.stopped, int(result.state.step)) == ("completed", 8)


def test_a_picture_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "curves.png").mkdir()
    with pytest.warns(UserWarning, match=r"curves\.png.* is not written"):
        result = quiet_fit(num_steps=8, run_dir=tmp_path, **WATCHED)
    assert result.stopped == "completed"


class FullLogger:
    def __init__(self, at=2, closes=True):
        self.heard = []
        self.at = at
        self.closes = closes

    def __call__(self, step, values):
        self.heard.append(step)
        if step >= self.at:
            raise FULL

    def close(self):
        if not self.closes:
            raise FULL


@pytest.mark.parametrize("mode", ["raise", "warn"])
def test_a_logger_that_raises_warns_once_and_is_left_out(mode):
    other, logger = [], FullLogger(closes=False)
    with pytest.warns(UserWarning, match="FullLogger") as warned:
        result = quiet_fit(
            num_steps=4,
            log_every=1,
            loggers=[logger, lambda step, _: other.append(step)],
            on_save_error=mode,
        )
    assert (result.stopped, other, logger.heard) == ("completed", [1, 2, 3, 4], [1, 2])
    assert [str(w.message) for w in warned] == [
        "the run continues without the logger FullLogger, which raised at step 2 and "
        "is left out from now on: OSError: [Errno 28] No space left on device"
    ]


class Ending:
    """A logger that keeps how it was ended."""

    def __init__(self, at=100):
        self.at, self.ended = at, []

    def __call__(self, step, values):
        if step >= self.at:
            raise FULL

    def close(self):
        self.ended.append("closed")

    def fail(self):
        self.ended.append("failed")


def test_loggers_are_closed_or_told_that_an_exception_ended_the_run():
    good, bad = Ending(), Ending()
    quiet_fit(num_steps=2, loggers=[good])
    with pytest.raises(OwnError):
        quiet_fit(num_steps=2, loggers=[bad], callbacks=[raise_at(2, OwnError())])
    assert (good.ended, bad.ended) == (["closed"], ["failed"])


def test_a_logger_that_was_left_out_is_closed():
    logger = Ending(at=1)
    with pytest.warns(UserWarning, match="without the logger Ending"):
        quiet_fit(num_steps=2, log_every=1, loggers=[logger])
    assert logger.ended == ["closed"]


def test_the_end_of_a_run_does_not_wait_for_a_logger_that_was_left_out(monkeypatch):
    monkeypatch.setattr(recording, "CLOSE_SECONDS", 0.01)
    answers, logger = threading.Event(), Ending(at=1)
    vars(logger)["close"] = lambda: answers.wait() and logger.ended.append("closed")
    with pytest.warns(UserWarning, match="without the logger Ending"):
        quiet_fit(num_steps=2, log_every=1, loggers=[logger])
    (closing,) = [t for t in threading.enumerate() if t.name == "fngrad-close"]
    assert closing.daemon  # the process may end meanwhile
    assert logger.ended == []
    answers.set()
    closing.join()
    assert logger.ended == ["closed"]


class BrokenCut(FullLogger):
    def cut(self, step):
        raise FULL

    def configure(self, config):
        raise FULL


@pytest.mark.parametrize("method", ["cut", "configure"])
def test_whatever_method_of_a_logger_raises_it_is_left_out(method, tmp_path):
    logger = BrokenCut(at=100)
    options = {"checkpoint_dir": tmp_path, "log_every": 1}
    if method == "cut":
        quiet_fit(num_steps=2, **options)
    else:
        options["config"] = {"rate": 0.1}
    with pytest.warns(UserWarning, match=f"BrokenCut, which raised in {method} and"):
        result = quiet_fit(num_steps=4, loggers=[logger], **options)
    assert (result.stopped, logger.heard) == ("completed", [])


def test_a_logger_that_cannot_be_closed_is_a_warning():
    logger = FullLogger(at=100, closes=False)
    with pytest.warns(UserWarning, match="FullLogger could not be closed: OSError"):
        result = quiet_fit(num_steps=4, log_every=1, loggers=[logger])
    assert result.stopped == "completed"


def fail_writes(monkeypatch, fails):
    """Let the file of records be full where ``fails(tries)`` is true.

    Return the steps of all tries.
    """
    tries, write = [], LineFile.append

    def append(file, data):
        tries.append(json.loads(data)["step"])
        if fails(tries):
            raise FULL
        write(file, data)

    monkeypatch.setattr(LineFile, "append", append)
    monkeypatch.setattr(RunFolder, "draw", lambda *_: None)  # takes a second
    return tries


def test_a_record_of_the_run_folder_that_cannot_be_written_ends_the_run(
    tmp_path, monkeypatch
):
    fail_writes(monkeypatch, lambda tries: tries[-1] == 2)
    with pytest.raises(OSError, match="No space") as caught:
        quiet_fit(num_steps=4, log_every=1, run_dir=tmp_path)
    assert int(reached(caught).state.step) == 2
    (note,) = [x for x in caught.value.__notes__ if "could not be written" in x]
    assert "metrics.jsonl') could not be written at step 2; on_save_error=" in note


def test_records_of_the_run_folder_are_kept_until_they_can_be_written(
    tmp_path, monkeypatch
):
    tries = fail_writes(monkeypatch, lambda tries: tries in ([1, 2], [1, 2, 2]))
    with pytest.warns(UserWarning, match="metrics") as warned:
        quiet_fit(num_steps=4, log_every=1, run_dir=tmp_path, on_save_error="warn")
    assert tries == [1, 2, 2, 2, 3, 4]
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    (text,) = [str(w.message) for w in warned]
    assert "metrics.jsonl') could not be written at step 2; what it lacks is" in text


def test_records_that_are_lost_at_the_end_are_named(tmp_path, monkeypatch):
    fail_writes(monkeypatch, lambda tries: tries[-1] >= 3)
    with pytest.warns(UserWarning, match="metrics") as warned:
        quiet_fit(num_steps=4, log_every=1, run_dir=tmp_path, on_save_error="warn")
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]
    assert len(warned) == 2
    assert "') lacks the records of the steps [3, 4], which its" in str(
        warned[1].message
    )


def test_a_logger_that_cannot_be_closed_does_not_hide_what_ended_the_run():
    logger = FullLogger(at=100, closes=False)
    with pytest.raises(OwnError) as caught:
        quiet_fit(
            num_steps=4,
            log_every=1,
            loggers=[logger],
            callbacks=[raise_at(2, OwnError())],
        )
    assert int(reached(caught).state.step) == 2
    assert any("could not be closed" in words for words in caught.value.__notes__)


FULL_DISK = """
import resource, sys, warnings
sys.path.insert(0, sys.argv[2])
from linear_regression import quiet_fit

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def fill(step, state, values):
    # No file may grow beyond so many bytes: further writes fail as on a full disk.
    if step == 20:
        limit(1500)

for mode in ("raise", "warn"):
    limit(resource.RLIM_INFINITY)
    folder = sys.argv[1] + "/" + mode
    options = dict(num_steps=60, log_every=1, run_dir=folder, callbacks=[fill])
    try:
        result = quiet_fit(on_save_error=mode, **options)
        print(result.stopped, int(result.state.step), len(result.history["loss"]))
    except OSError as error:
        print("raised", int(error.state.step), len(error.history["loss"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
def test_a_full_disk_loses_no_training(tmp_path):
    here = str(Path(__file__).parents[1] / "support")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), here],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ended, step, length, *completed = done.stdout.split()
    assert ended == "raised"
    assert int(step) == int(length) >= 20
    assert completed == ["completed", "60", "60"]
    assert "metrics" in done.stderr or "FileLogger" in done.stderr
    assert re.search(r"warn/manifest\.json' is not written", done.stderr)
    assert re.search(r"warn/curves\.png' is not written", done.stderr)

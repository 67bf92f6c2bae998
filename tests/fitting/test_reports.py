"""A failure to report, as on a full disk, loses no training."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from linear_regression import quiet_fit
from resuming import FULL, WATCHED, OwnError, raise_at, reached

from fngrad.logging import RunFolder
from fngrad.logging.history import History


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


def test_a_logger_that_fails_ends_the_run_by_default():
    other, logger = [], FullLogger()
    with pytest.raises(OSError, match="No space") as caught:
        quiet_fit(
            num_steps=4,
            log_every=1,
            loggers=[lambda step, _: other.append(step), logger],
        )
    assert (other, int(reached(caught).state.step)) == ([1, 2], 2)
    assert any(
        'the logger FullLogger; on_save_error="warn" would continue' in words
        for words in caught.value.__notes__
    )


def test_a_logger_that_fails_is_a_warning_where_that_is_asked_for():
    other, logger = [], FullLogger(closes=False)
    with pytest.warns(UserWarning, match="FullLogger") as warned:
        result = quiet_fit(
            num_steps=4,
            log_every=1,
            loggers=[logger, lambda step, _: other.append(step)],
            on_save_error="warn",
        )
    assert (result.stopped, other, logger.heard) == ("completed", *2 * ([1, 2, 3, 4],))
    assert [str(w.message).partition(":")[0] for w in warned] == [
        "the run continues, but the record of step 2 by the logger FullLogger could "
        "not be written",
        "the run continues, but the end of the records by the logger FullLogger could "
        "not be written",
    ]


def test_a_logger_that_cannot_be_closed_ends_the_run_with_its_state():
    logger = FullLogger(at=100, closes=False)
    with pytest.raises(OSError, match="No space") as caught:
        quiet_fit(num_steps=4, log_every=1, loggers=[logger])
    assert int(reached(caught).state.step) == 4


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

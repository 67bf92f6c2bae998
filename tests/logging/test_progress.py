"""The bar's rate, its place among printed lines, and what it leaves in a file."""

import functools
import io
import re
import sys
import time

import pytest

import fngrad.logging.progress as progress
from fngrad.logging import ProgressBar
from fngrad.logging.progress import print_to_stderr

pytest.importorskip("tqdm")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written_to(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the stream, which is stderr from now on."""
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture
def now(monkeypatch):
    """The clock of bars, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def shown(text: str) -> list[str]:
    """Return the lines that a terminal shows: a carriage return begins a line again."""
    lines = []
    for line in text.split("\n"):
        cells = ""
        for part in line.split("\r"):
            cells = part + cells[len(part) :]
        lines.append(cells.rstrip())
    return lines


def test_compiling_is_left_out_of_rate_and_remaining_time(monkeypatch, now):
    terminal = written_to(Terminal(), monkeypatch)
    with ProgressBar(101, description="compiling") as bar:
        now[0] += 600.0  # compiling
        bar.leave_out(600.0)
        bar.advance(1)
        now[0] += 1.0
        bar.advance(10)
        assert "11/101 [00:01<00:08, 11.00 steps/s]" in terminal.getvalue()
        now[0] += 1000.0 + 1.0  # a shape has changed
        bar.leave_out(1000.0)
        bar.advance(10)
        assert "21/101 [00:02<00:07, 10" in terminal.getvalue()
    assert not re.search(r"\d+:\d\d:\d\d", terminal.getvalue())  # no hours


def test_what_precedes_training_is_left_out(monkeypatch, now):
    terminal = written_to(Terminal(), monkeypatch)
    with ProgressBar(30, 20) as bar:
        now[0] += 3600.0
        bar.restart()
        now[0] += 2.0
        bar.advance(5)
    assert "25/30 [00:02<00:02,  2.50 steps/s]" in terminal.getvalue()


def test_printed_lines_stand_above_the_bar(monkeypatch, now):
    terminal = written_to(Terminal(), monkeypatch)
    with ProgressBar(3, description="training") as bar:
        for step in range(3):
            now[0] += 1.0
            bar.advance(1)
            with bar.set_aside():
                print_to_stderr(f"step {step}")
    lines = shown(terminal.getvalue())
    assert lines[:3] == ["step 0", "step 1", "step 2"]
    assert lines[3].startswith("training: 100%")
    assert lines[4:] == [""]


def test_a_file_holds_whole_lines_one_every_ten_seconds(monkeypatch, now):
    stream = written_to(io.StringIO(), monkeypatch)
    with ProgressBar(60, description="training") as bar:
        for step in range(60):
            now[0] += 1.0
            bar.advance(1)
            with bar.set_aside():
                if step in (3, 33):
                    print_to_stderr(f"step {step}")
    text = stream.getvalue()
    assert "\r" not in text
    counts = re.findall(r"^training: .* (\d+)/60 \[.*\]$", text, re.MULTILINE)
    assert [int(count) for count in counts] == [0, 10, 20, 30, 40, 50, 60]
    assert re.findall(r"^step \d+$", text, re.MULTILINE) == ["step 3", "step 33"]


def test_a_bar_that_tqdms_own_variable_disables_is_left_alone(monkeypatch):
    terminal = written_to(Terminal(), monkeypatch)
    kind = functools.partial(progress.bar_type(), disable=True)
    monkeypatch.setattr(progress, "bar_type", lambda: kind)
    with ProgressBar(3) as bar:
        bar.leave_out(1.0)
        bar.restart()
        bar.advance(1)
        with bar.set_aside():
            pass
    assert terminal.getvalue() == ""


def test_compiling_is_shown_and_left_out(monkeypatch, now):
    terminal = written_to(Terminal(), monkeypatch)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with ProgressBar(10, description="sweep", unit="lanes") as bar:
        with bar.compiling():
            now[0] += 600.0
        now[0] += 2.0
        bar.advance(5)
    lines = [x for x in terminal.getvalue().split("\r") if x.strip()]
    assert lines[1].startswith("sweep: compiling:   0%")
    assert lines[2].startswith("sweep:   0%")
    assert "5/10 [00:02<00:02,  2.50 lanes/s]" in lines[-1]

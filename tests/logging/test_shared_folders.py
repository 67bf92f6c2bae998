"""Files of metrics that are resumed, shared by writers, or of another program."""

import csv as csv_format
import multiprocessing
import os
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
from resuming import KilledError, kill_at, killed_fit, saving_fit

import fngrad.logging as logging
from fngrad.logging.lines import LineFile

WRITERS = {"jsonl": logging.jsonl, "csv": logging.csv}
EVERY = pytest.mark.parametrize("kind", WRITERS)


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the records as text, whatever the format."""
    if path.read_text()[0] == "{":
        found = logging.read_jsonl(path)
        return [{name: str(x) for name, x in row.items()} for row in found]
    with path.open(newline="") as file:
        return [
            {name: x for name, x in row.items() if x != ""}
            for row in csv_format.DictReader(file)
        ]


def steps_of(path: pathlib.Path) -> list[int]:
    return [int(row["step"]) for row in rows_of(path)]


def events_of(folder: pathlib.Path) -> list[tuple[Any, ...]]:
    """Return what TensorBoard reads: scalar, tag, step, value; or start, step."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: list[tuple[Any, ...]] = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                found.append(("start", event.step))
            for value in event.summary.value:
                found.append(("scalar", value.tag, event.step, value.simple_value))
    return found


def shown_by_tensorboard(folder: pathlib.Path) -> list[int]:
    """Return the steps that remain when each start hides the later ones before it."""
    steps: list[int] = []
    for kind, *rest in events_of(folder):
        if kind == "start":
            steps = [step for step in steps if step < rest[0]]
        elif rest[0] == "loss":
            steps.append(rest[1])
    return steps


@EVERY
@pytest.mark.parametrize("killed_at", [2, 13])
@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_a_resumed_run_logs_each_step_once(kind, killed_at, tmp_path):
    path, options = tmp_path / f"m.{kind}", {"log_every": 1, "run_dir": tmp_path / "a"}
    make = WRITERS[kind]
    with pytest.raises(KilledError):
        saving_fit(None, loggers=[make(path), kill_at(killed_at)], **options)
    saving_fit(None, loggers=[make(path)], **options)
    assert steps_of(path) == list(range(1, 21))


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    pytest.importorskip("tensorboardX")
    folder, options = tmp_path / "events", {"log_every": 1}
    killed_fit(tmp_path / "a", 13, **options)  # logs nothing: the next one begins
    events = logging.tensorboard(folder)
    for step in range(1, 14):
        events(step, {"loss": 1.0})
    events.close()
    saving_fit(tmp_path / "a", loggers=[logging.tensorboard(folder)], **options)
    assert shown_by_tensorboard(folder) == list(range(1, 21))


def test_two_tensorboard_writers_of_the_same_second_keep_their_events(tmp_path):
    pytest.importorskip("tensorboardX")
    writers = [logging.tensorboard(tmp_path) for _ in range(2)]
    for step, writer in enumerate(writers):
        writer(step, {"loss": 0.5, "\ud800": 1.0})
    for writer in writers:
        writer.close()
    tags = sorted(event[1:3] for event in events_of(tmp_path) if event[0] == "scalar")
    assert [tag for tag in tags if tag[0] == "loss"] == [("loss", 0), ("loss", 1)]


@EVERY
def test_cut_removes_later_steps_and_the_logger_goes_on(kind, tmp_path):
    path = tmp_path / "m"
    with WRITERS[kind](path) as logger:
        for step in range(1, 6):
            logger(step, {"loss": step / 2})
        logger.cut(3)
        logger(4, {"loss": 9.0, "val/loss": np.nan})
    assert steps_of(path) == [1, 2, 3, 4]
    assert rows_of(path)[-1] == {"step": "4", "loss": "9.0", "val/loss": "nan"}


def test_cut_keeps_the_lines_of_other_labels(tmp_path):
    path = tmp_path / "m"
    first, second = (logging.jsonl(path, {"seed": seed}) for seed in (0, 1))
    for step in (1, 2):
        first(step, {"loss": 0.5})
        second(step, {"loss": 0.5})
    first.cut(1)
    first(2, {"loss": 0.25})
    first.close()
    second.close()
    records = [(r["seed"], r["step"], r["loss"]) for r in logging.read_jsonl(path)]
    assert records == [(0, 1, 0.5), (1, 1, 0.5), (1, 2, 0.5), (0, 2, 0.25)]


@EVERY
def test_two_writers_of_one_file_lose_no_row(kind, tmp_path):
    path = tmp_path / "m"
    first, second = (WRITERS[kind](path) for _ in range(2))
    first(1, {"loss": 0.5})
    second(2, {"loss": 0.5, "val/loss": 0.25})
    first(3, {"accuracy": 1.0})
    second(4, {"val/loss": 0.125})
    first.cut(3)
    second(5, {"loss": 0.75})
    first.close()
    second.close()
    assert rows_of(path) == [
        {"step": "1", "loss": "0.5"},
        {"step": "2", "loss": "0.5", "val/loss": "0.25"},
        {"step": "3", "accuracy": "1.0"},
        {"step": "5", "loss": "0.75"},
    ]


def write_rows(folder: pathlib.Path, number: int) -> None:
    for kind, writer in WRITERS.items():
        with writer(folder / kind) as logger:
            for step in range(50):
                logger(step, {f"metric {number} {step % 5}": 0.5, "number": number})


def test_processes_share_a_file_and_lose_no_row(tmp_path):
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=write_rows, args=(tmp_path, number))
        for number in range(3)
    ]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    for kind in WRITERS:
        rows = rows_of(tmp_path / kind)
        found = sorted((int(row["number"]), int(row["step"])) for row in rows)
        assert found == [(number, step) for number in range(3) for step in range(50)]


@pytest.mark.parametrize(
    "content",
    [
        *("stepsize,loss\n0.1,2\n", "stepsize,loss", "steps\n1\n", "step;loss\n1;2\n"),
        *('"step",loss\n', "step,loss,loss\n1,2,3\n", "\ufeffstep,loss\n", "STEP\n"),
    ],
)
def test_a_table_of_another_program_is_refused_and_left_unchanged(content, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(content, encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"need a file that begins|need distinct nam"):
        logging.csv(path)
    assert path.read_bytes() == before


def test_cells_that_another_program_added_are_kept(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b"step,note\r\n1,\xfcber\r\n2,a,b\r\n")
    with logging.csv(path) as logger:
        logger(3, {"loss": 0.5})
    assert path.read_bytes() == b"step,note,loss\n1,\xfcber,\n2,a,b,\n3,,0.5\n"


@pytest.mark.parametrize(
    "content",
    [
        *(b'{"epoch": 1}\n', b'{"step": "1"}\n', b'{"step": true}\n', b'{"step": 1.5}'),
        *(
            b"[1]\n",
            b"\xff\xfe\n",
            b'{"loss": 1, "epoch": 2}\n{"step": 1}\n',
            b"text\n",
        ),
    ],
)
def test_metrics_of_another_program_are_refused_before_the_first_step(
    content, tmp_path
):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content + (b"" if content.endswith(b"\n") else b"\n"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"need .*got .*metrics\.jsonl"):
        saving_fit(None, run_dir=tmp_path)
    assert path.read_bytes() == before
    assert not (tmp_path / "curves.png").exists()


ODD = ["a,b", 'quo"te', "two\nlines", "\ud800", "ü", "nul\x00", "$x_$", "", " "]


@EVERY
@pytest.mark.parametrize("name", ODD)
def test_any_name_can_be_logged_again_and_again(kind, name, tmp_path):
    path = tmp_path / "m"
    for step in range(3):
        with WRITERS[kind](path) as logger:
            logger(step, {name: 0.5})
            logger(step, {"loss": 1.0})
    assert steps_of(path) == [0, 0, 1, 1, 2, 2]
    assert len({key for row in rows_of(path) for key in row}) == 3


@EVERY
def test_a_relative_path_is_resolved_when_the_logger_is_made(
    kind, tmp_path, monkeypatch
):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with WRITERS[kind]("m") as logger:
        logger(1, {"loss": 0.5})
        monkeypatch.chdir(tmp_path / "b")
        logger(2, {"val/loss": 0.5})
        logger.cut(1)
        logger(2, {"more": 0.5})
    assert steps_of(tmp_path / "a" / "m") == [1, 2]
    assert os.listdir(tmp_path / "b") == []


class FullDisk:
    """A file that accepts three more bytes."""

    def __init__(self, file: Any):
        self._file, self._left = file, 3

    def write(self, data: Any) -> int:
        if not self._left:
            raise OSError(28, "No space left on device")
        written = self._file.write(data[: self._left])
        self._left -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_leaves_whole_lines_and_the_next_write_follows(
    tmp_path, monkeypatch
):
    file = LineFile(tmp_path / "m", ["line"])
    with file.own():
        file.append(b"line 1\n")
    usual = file._file
    monkeypatch.setattr(file, "_file", FullDisk(usual))
    with file.own(), pytest.raises(OSError, match="No space"):
        file.append(b"line 2\n")
    monkeypatch.setattr(file, "_file", usual)
    with file.own():
        file.append(b"line 3\n")
    file.close()
    file.close()
    assert (tmp_path / "m").read_bytes() == b"line 1\nline 3\n"


@EVERY
def test_a_removed_file_is_made_again(kind, tmp_path):
    path = tmp_path / "deep" / "m"
    with WRITERS[kind](path) as logger:
        logger(1, {"loss": 0.5})
        path.unlink()
        path.parent.rmdir()
        logger(2, {"loss": 0.25})
    assert rows_of(path) == [{"step": "2", "loss": "0.25"}]


@EVERY
def test_a_closed_logger_raises(kind, tmp_path):
    logger = WRITERS[kind](tmp_path / "m")
    logger.close()
    with pytest.raises(ValueError, match=r"need an open file, got .*closed"):
        logger(1, {"loss": 0.5})


def test_an_incomplete_line_of_any_length_is_removed(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1}\n{"step": 2' + b" " * 200_000)
    logging.jsonl(path).close()
    assert path.read_bytes() == b'{"step": 1}\n'

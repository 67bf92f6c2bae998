"""The record of a run is read from its files and its lock."""

import math

import numpy as np
import pytest
from run_folders import write_records, write_run

import fngrad.checkpoint as checkpoint
import fngrad.commands.run_records as run_records
from fngrad.files.locks import Lock

KILLED = {"stopped": None, "ended": None}


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({"stopped": "completed"}, "completed", "completed"),
        ({"stopped": "early_stopping"}, "completed", "early_stopping"),
        ({"stopped": "callback"}, "completed", "callback"),
        ({"stopped": "exhausted"}, "completed", "exhausted"),
        ({"stopped": "interrupted"}, "interrupted", "interrupted"),
        ({"stopped": None}, "failed", "killed"),
        (
            {"stopped": None, "failure": "OSError: disk full"},
            *("failed", "OSError: disk full"),
        ),
        (
            {"stopped": None, "failure": "KeyboardInterrupt: "},
            *("interrupted", "KeyboardInterrupt: "),
        ),
        ({}, "unknown", ""),  # of a program without fit
        ({"results": {}}, "completed", "completed"),
    ],
)
def test_the_status_follows_from_the_manifest(facts, status, reason):
    assert run_records.status_of(facts, is_running=False) == (status, reason)
    assert run_records.status_of(facts, is_running=True) == ("running", "")


def test_a_run_whose_folder_is_locked_is_running(tmp_path):
    run = write_run(tmp_path / "a", **KILLED)
    with Lock(run):
        record = run_records.read_run(run)
    assert record.status == "running"
    assert record.seconds is not None
    assert record.seconds > 24 * 3600  # until now
    assert run_records.read_run(run).status == "failed"


def test_metrics_config_and_duration_are_read(tmp_path):
    run = write_run(tmp_path / "a", {"model": {"width": 8}, "rate": 0.1})
    record = run_records.read_run(run)
    assert record.config == {"model.width": 8, "rate": 0.1}
    assert record.seconds == 3665
    assert (record.step, record.name) == (30, "a")
    assert record.last("val/loss") == 0.5
    assert record.best("val/loss", "min") == (0.25, 20)
    assert record.best("val/score", "max") == (3.0, 30)
    assert record.best("val/score", None) is None
    assert record.last("other") is None


def test_values_that_are_not_finite_are_never_the_best(tmp_path):
    run = write_run(tmp_path / "a", losses=("NaN", 2.0, "-Infinity"))
    record = run_records.read_run(run)
    assert record.best("loss", "min") == (2.0, 20)
    assert math.isinf(record.last("loss") or 0.0)
    alone = write_run(tmp_path / "b", losses=("NaN",))
    assert run_records.read_run(alone).best("loss", "min") is None


def test_the_duration_of_a_killed_run_ends_with_its_last_record(tmp_path):
    run = write_run(tmp_path / "a", **KILLED)
    record = run_records.read_run(run)
    changed = (run / "metrics.jsonl").stat().st_mtime
    begin = np.datetime64("2026-01-01T10:00:00").astype(float)
    assert record.seconds == pytest.approx(changed - begin)


def test_runs_are_found_below_a_folder_and_checkpoints_are_not_runs(tmp_path):
    first = write_run(tmp_path / "x" / "a")
    second = write_run(tmp_path / "x" / "b" / "c")
    checkpoint.save(first / "checkpoints", np.zeros(2), step=3)
    (tmp_path / "x" / "empty").mkdir()
    assert list(run_records.find_runs(tmp_path / "x")) == [first, second]
    records, problems = run_records.read_runs(tmp_path)
    assert [r.name for r in records] == ["x/a", "x/b/c"]
    assert (problems, records[0].steps) == ([], [3])


def test_checkpoints_are_found_in_a_run_that_was_moved(tmp_path):
    old = str(tmp_path / "a" / "checkpoints")
    run = write_run(tmp_path / "a", checkpoints=old)
    checkpoint.save(old, np.zeros(2), step=3)
    moved = run.rename(tmp_path / "b")
    assert run_records.read_run(moved).steps == [3]


def test_the_other_runs_are_read_if_one_is_damaged(tmp_path):
    write_run(tmp_path / "a")
    (write_run(tmp_path / "b") / "manifest.json").write_text("{")
    records, problems = run_records.read_runs(tmp_path)
    assert [r.name for r in records] == ["a"]
    (problem,) = problems
    assert "need JSON in" in problem


def test_runs_in_one_file_are_told_apart_by_their_labels(tmp_path):
    run = write_run(tmp_path / "a")
    labels = [("sgd", 0), ("sgd", 1), ("adam", 0)]
    write_records(
        run,
        [
            {"step": step, "loss": float(step + len(name)), "rule": name, "seed": seed}
            for name, seed in labels
            for step in (1, 2)
        ],
    )
    record = run_records.read_run(run)
    assert list(record.history) == ["loss [sgd 0]", "loss [sgd 1]", "loss [adam 0]"]
    assert record.history["loss [adam 0]"].tolist() == [5.0, 6.0]
    assert record.best("loss", "min") == (4.0, 1)
    assert run_records.default_metric([record]) == "loss"


def test_the_metric_shown_by_default_is_an_evaluation():
    class Stub:
        def __init__(self, *names):
            self.history = dict.fromkeys(names)

    def chosen(*names):
        return run_records.default_metric([Stub(*names)])

    assert chosen("loss", "val/accuracy", "val/loss") == "val/loss"
    assert chosen("loss", "val/error", "val/own") == "val/error"
    assert chosen("grad_norm", "loss") == "loss"
    assert chosen("own") == "own"
    assert chosen() is None


def test_a_folder_without_a_run_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"need a run folder.*fngrad runs FOLDER"):
        run_records.read_run(tmp_path)


def test_the_folder_of_a_sweep_is_not_a_run(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match="the folder of a sweep: `fngrad report`"):
        run_records.read_run(tmp_path)

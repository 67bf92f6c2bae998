"""Writers of metrics, learning curves and the progress bar."""

import csv as csv_format
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.logging as logging
import fngrad.logging.plots as plots
import fngrad.logging.progress as progress


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strict_lines(path: pathlib.Path) -> list[Any]:
    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse_constant) for line in lines]


def csv_rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv_format.DictReader(file))


def test_jsonl_records_are_read_back(tmp_path: pathlib.Path):
    path = tmp_path / "deep" / "metrics.jsonl"
    logger = logging.jsonl(path)
    logger(0, {"loss": 0.25, "grad_norm": np.inf})
    logger(10, {"loss": -np.inf, "val/loss": float("nan")})
    first, second = strict_lines(path)
    assert first == {"step": 0, "loss": 0.25, "grad_norm": "Infinity"}
    assert second == {"step": 10, "loss": "-Infinity", "val/loss": "NaN"}
    first, second = logging.read_jsonl(path)
    assert first == {"step": 0, "loss": 0.25, "grad_norm": np.inf}
    assert second["loss"] == -np.inf
    assert np.isnan(second["val/loss"])
    logger.close()
    logger.close()


def test_jsonl_accepts_scalars_of_numpy_and_jax(tmp_path: pathlib.Path):
    with logging.jsonl(tmp_path / "m.jsonl") as logger:
        logger(1, {"a": np.float32(0.5), "b": jnp.int32(2), "c": True})
    records = logging.read_jsonl(tmp_path / "m.jsonl")
    assert records == [{"step": 1, "a": 0.5, "b": 2, "c": True}]


def test_jsonl_appends_after_removing_an_incomplete_line(tmp_path: pathlib.Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    assert logging.read_jsonl(path) == [{"step": 0, "loss": 1.0}]
    with logging.jsonl(path) as logger:
        logger(1, {"loss": 0.5})
    assert [r["step"] for r in logging.read_jsonl(path)] == [0, 1]
    assert len(strict_lines(path)) == 2


def test_a_killed_run_leaves_whole_lines(tmp_path: pathlib.Path):
    path = tmp_path / "m.jsonl"
    write = (
        "import fngrad.logging as logging, os, signal\n"
        f"logger = logging.jsonl({str(path)!r})\n"
        "for step in range(5): logger(step, {'loss': 1 / (1 + step)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", write], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record["step"] for record in strict_lines(path)] == [0, 1, 2, 3, 4]


def test_read_jsonl_names_a_broken_line(tmp_path: pathlib.Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\nnonsense\n')
    with pytest.raises(ValueError, match=r"got 'nonsense' at .*m\.jsonl:2"):
        logging.read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"need a JSON object, got '\[1\]'"):
        logging.read_jsonl(path)


@pytest.mark.parametrize("make", [logging.jsonl, logging.csv])
def test_writers_refuse_values_that_are_not_numbers(make: Any, tmp_path: pathlib.Path):
    with make(tmp_path / "m") as logger:
        for bad in ("text", None, np.ones(2), [1.0]):
            with pytest.raises(TypeError, match="at 'loss"):
                logger(0, {"loss": bad})
        with pytest.raises(ValueError, match="not called 'step'"):
            logger(0, {"step": 1.0})
    assert (tmp_path / "m").read_text() == ""


def test_csv_is_a_table_that_widens(tmp_path: pathlib.Path):
    path = tmp_path / "m.csv"
    with logging.csv(path) as logger:
        logger(0, {"loss": 0.5})
        logger(1, {"loss": float("nan")})
        logger(1, {"val/loss": 0.75})
        logger(2, {"loss": 0.25})
    assert csv_rows(path) == [
        {"step": "0", "loss": "0.5", "val/loss": ""},
        {"step": "1", "loss": "nan", "val/loss": ""},
        {"step": "1", "loss": "", "val/loss": "0.75"},
        {"step": "2", "loss": "0.25", "val/loss": ""},
    ]


def test_csv_appends_after_removing_an_incomplete_row(tmp_path: pathlib.Path):
    path = tmp_path / "m.csv"
    path.write_text("step,loss\n0,1.0\n1,0.")
    with logging.csv(path) as logger:
        logger(1, {"loss": 0.5})
        logger(2, {"a,b": 3.0})
    assert [row["loss"] for row in csv_rows(path)] == ["1.0", "0.5", ""]
    assert csv_rows(path)[-1]["a,b"] == "3.0"


@pytest.mark.parametrize("make", [logging.jsonl, logging.csv])
@pytest.mark.parametrize("content", ["name,age\nEva,3", '{"a": 1}', "\n"])
def test_another_kind_of_file_is_refused_and_left_unchanged(
    make: Any, content: str, tmp_path: pathlib.Path
):
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"need a file that begins with .*step"):
        make(path)
    assert path.read_text() == content


def test_tensorboard_writes_events(tmp_path: pathlib.Path):
    pytest.importorskip("tensorboardX")
    with logging.tensorboard(tmp_path / "events") as logger:
        logger(1, {"loss": 0.5, "worst": float("inf")})
    (events,) = (tmp_path / "events").iterdir()
    assert b"loss" in events.read_bytes()
    assert b"worst" in events.read_bytes()


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("tensorboardX", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "fngrad\[tensorboard\]"'):
        logging.tensorboard("never_made")
    with pytest.raises(ImportError, match=r'pip install "fngrad\[plot\]"'):
        plots.curves({"loss": {"sgd": [([0], [1.0])]}}, "never_made.png")
    assert not pathlib.Path("never_made").exists()


def test_curves_are_a_picture(tmp_path: pathlib.Path):
    before = set(sys.modules)
    runs = [(np.arange(5), np.exp(-np.arange(5.0)) + seed) for seed in (1, 2, 3)]
    panels = {
        "train loss (nats)": {"sgd": runs, "adam": runs[:1]},
        "validation accuracy": {"sgd": [([4], [0.9])]},
    }
    path = plots.curves(
        panels, tmp_path / "a" / "curves.png", log_scale=["train loss (nats)"]
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in set(sys.modules) - before
    vector = plots.curves(panels, tmp_path / "curves.svg", title="Digits")
    text = vector.read_text()
    assert "Digits" in text
    assert sorted(os.listdir(tmp_path)) == ["a", "curves.svg"]


def test_log_scale_changes_the_panel_that_it_names(tmp_path: pathlib.Path):
    panels = {name: {"sgd": [([0, 1, 2], [1.0, 0.5, 0.1])]} for name in ("a", "b")}
    pictures = {
        plots.curves(panels, tmp_path / "c.png", log_scale=names).read_bytes()
        for names in ((), ("a",), ("b",), ("a", "b"))
    }
    assert len(pictures) == 4


def test_the_band_is_over_seeds():
    steps = np.arange(3)
    runs = [(steps, np.full(3, value)) for value in (1.0, 2.0, 9.0)]
    _, median, low, high = plots.summarize(runs)
    np.testing.assert_array_equal([median, low, high], [[2] * 3, [1] * 3, [9] * 3])
    _, _, low, high = plots.summarize(runs, (0.25, 0.75))
    np.testing.assert_array_equal([low, high], [[1.5] * 3, [5.5] * 3])


def test_runs_with_different_steps_and_lengths_are_combined():
    runs = [([0, 2, 4], [0.0, 2.0, 4.0]), ([0, 1], [10.0, 11.0]), ([], [])]
    steps, median, low, high = plots.summarize(runs)
    np.testing.assert_array_equal(steps, [0, 1, 2, 4])
    np.testing.assert_array_equal(median, [5, 6, 2, 4])
    np.testing.assert_array_equal(low, [0, 1, 2, 4])
    np.testing.assert_array_equal(high, [10, 11, 2, 4])


def test_a_diverged_run_is_left_out_from_its_divergence(tmp_path: pathlib.Path):
    runs = [([0, 1, 2], [1.0, np.inf, np.nan]), ([0, 1, 2], [3.0, 2.0, np.nan])]
    _, median, _, _ = plots.summarize(runs)
    np.testing.assert_array_equal(median, [2.0, 2.0, np.nan])
    plots.curves({"loss": {"sgd": runs}}, tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("panels", "options", "message"),
    [
        ({}, {}, "need at least one run to draw"),
        ({"loss": {"sgd": []}}, {}, "need at least one run to draw"),
        ({"a": {"sgd": [([0], [1])]}, "b": {"sgd": []}}, {}, "got none for 'b', 'sgd'"),
        ({"a": {"sgd": [([0, 1], [1])]}}, {}, r"got \(2,\) and \(1,\) for 'a', 'sgd'"),
        ({"a": {"sgd": [([0], [1])]}}, {"band": (0.5, 0.1)}, "0 <= band"),
        ({"a": {"sgd": [([0], [1])]}}, {"log_scale": ["b"]}, "got 'b'"),
    ],
)
def test_curves_refuse_what_cannot_be_drawn(
    panels: Any, options: Any, message: str, tmp_path: pathlib.Path
):
    with pytest.raises(ValueError, match=message):
        plots.curves(panels, tmp_path / "curves.png", **options)
    assert not os.listdir(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_bar_shows_steps_and_values(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", stream())
    with logging.ProgressBar(100, initial=40, description="training") as bar:
        bar.advance(59)
        bar.show({"loss": 0.123456})
        bar.advance()
    bar.close()
    text = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "training" in text
    assert "100/100" in text
    assert "loss=0.123" in text


def test_a_bar_in_a_file_is_drawn_only_at_its_start_and_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with logging.ProgressBar(300) as bar:
        for _ in range(300):
            bar.advance()
    text = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert text.count("\r") <= 3


def test_a_bar_that_is_not_enabled_shows_nothing(capfd: pytest.CaptureFixture[str]):
    bar = logging.ProgressBar(10, enabled=False)
    bar.advance(3)
    bar.show({"loss": 1.0})
    bar.close()
    assert capfd.readouterr() == ("", "")


def test_without_tqdm_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    progress.bar_type.cache_clear()
    for _ in range(2):
        bar = logging.ProgressBar(10)
        bar.advance(3)
        bar.show({"loss": 1.0})
        bar.close()
    progress.bar_type.cache_clear()
    line = 'no progress bar: need tqdm for this: pip install "fngrad[cli]"\n'
    assert capfd.readouterr() == ("", line)


def test_labels_distinguish_the_runs_in_one_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for seed in (0, 1):
        with logging.jsonl(path, {"optimizer": "sgd", "seed": seed}) as logger:
            logger(5, {"loss": 0.5})
            with pytest.raises(
                ValueError, match="need values with other names than the labels"
            ):
                logger(6, {"seed": 0.5})
    assert logging.read_jsonl(path) == [
        {"step": 5, "loss": 0.5, "optimizer": "sgd", "seed": seed} for seed in (0, 1)
    ]


def test_a_label_called_step_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="need labels that are not called 'step', got"):
        logging.jsonl(path, {"step": 3})
    assert not path.exists()


def test_labels_that_begin_with_an_underscore_are_in_the_legend():
    runs = [([0, 1], [1.0, 2.0])]
    drawn = plots.figure({"loss": {"_hidden": runs, "adam": runs}})
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["_hidden", "adam"]


def test_the_text_before_a_bar_changes_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    with logging.ProgressBar(10, description="compiling") as bar:
        bar.describe("training")
        assert "training:   0%" in text.getvalue()
    logging.ProgressBar(10, enabled=False).describe("training")

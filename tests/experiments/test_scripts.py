"""Experiments and benchmarks run, and show what they claim."""

import json

import numpy as np
import pytest

import experiments.benchmarks.training_loop as training_loop
import experiments.digits as digits
import fngrad.logging as logging


def test_the_main_job_leaves_a_table_and_a_run_folder(tmp_path, capsys):
    config = digits.Config(
        optimizers=("sgd", "rmsprop"), seeds=2, epochs=2, runs=tmp_path, log_every=10
    )
    summary = digits.main(config)
    shown = capsys.readouterr().out
    assert set(summary) == {"sgd", "rmsprop"}
    for name, row in summary.items():
        assert 0.5 < row["accuracy_mean"] <= 1.0
        assert row["accuracy_sd"] > 0
        assert f"{100 * row['accuracy_mean']:.2f}" in shown
        assert name in shown
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["seeds"] == 2
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["results"]["sgd"] == pytest.approx(summary["sgd"])
    records = logging.read_jsonl(folder / "metrics.jsonl")
    runs = {(record["optimizer"], record["seed"]) for record in records}
    assert runs == {(name, seed) for name in config.optimizers for seed in (0, 1)}
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_rates_are_chosen_on_the_validation_split(capsys):
    config = digits.Config(optimizers=("sgd",), seeds=2, epochs=1, tune=True)
    assert digits.main(config) == {}
    lines = capsys.readouterr().out.strip().split("\n")
    assert len(lines) == len(digits.GRIDS["sgd"])
    losses = [float(line.split("loss ")[1].split(" ")[0]) for line in lines]
    chosen = ["<- chosen" in line for line in lines]
    assert chosen.index(True) == int(np.argmin(losses))
    assert sum(chosen) == 1


@pytest.mark.slow
def test_every_optimizer_passes_97_percent_on_the_test_split(tmp_path):
    summary = digits.main(digits.Config(runs=tmp_path))
    assert set(summary) == set(digits.OPTIMIZERS)
    for name, row in summary.items():
        assert row["accuracy_mean"] >= 0.97, name


@pytest.mark.slow
def test_the_benchmark_of_the_loop_prints_its_ratios(capsys):
    training_loop.main(
        training_loop.Config(
            models=("mlp 64-16-16-10",), repeats=1, round_seconds=0.01, peers=False
        )
    )
    shown = capsys.readouterr().out
    for words in ("fit over the best hand-written loop", "auto over the better loop"):
        assert words in shown

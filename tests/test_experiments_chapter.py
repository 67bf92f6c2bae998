"""The chapter's experiments run with tiny settings, and show what they claim."""

import dataclasses
import json

import experiments.training_loop as training_loop


def results_in(runs, picture):
    """Return the manifest's results; the picture is there and is one."""
    (folder,) = runs.iterdir()
    assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    return json.loads((folder / "manifest.json").read_text())["results"]


def test_the_loop_by_hand_and_fngrads_have_equal_bits(tmp_path, capsys):
    config = training_loop.Config(steps=12, runs=tmp_path)
    training_loop.main(config)
    assert "equal bits: 12 of 12 steps" in capsys.readouterr().out
    results = results_in(tmp_path, "loop.png")
    assert results["largest_gap"] == 0
    assert results["accuracy"]["by hand"] == results["accuracy"]["fngrad"] > 0.15


def test_loops_that_differ_are_told_apart(tmp_path):
    splits = training_loop.fg.data.digits()
    config = training_loop.Config(steps=3, runs=tmp_path)
    other = dataclasses.replace(config, learning_rate=0.11)
    pairs = zip(
        training_loop.by_hand(config, splits.train).visited,
        training_loop.with_fngrad(other, splits.train).visited,
        strict=True,
    )
    assert not any(training_loop.have_equal_bits(a, b) for a, b in pairs)

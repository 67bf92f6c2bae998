"""Costs of batch sizes, and noise floors against theory, at a small size."""

import json

import numpy as np
import pytest

import experiments.batch_sizes as batch_sizes
import experiments.noise_floors as noise_floors

pytestmark = pytest.mark.any_flags  # most of their time is compilation

TINY = {
    "rates": (0.03, 0.3),
    "target": 0.5,
    "full_steps": 60,
    "mini_steps": 120,
    "single_steps": 1500,
    "looks": 30,
    "seeds": 2,
    "repeats": 0,
    "noise_every": 60,
    "noise_looks": 1,
    "floors": noise_floors.Floors(
        batches=(4,), rates=(0.01, 0.05), steps=4000, seeds=16
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = tmp_path_factory.mktemp("batch_sizes")
    found = batch_sizes.main(batch_sizes.Config(**TINY, runs=runs))
    (folder,) = runs.iterdir()
    written = json.loads((folder / "manifest.json").read_text())["results"]
    assert written["noise_scale"] == found["noise_scale"]
    for picture in ("curves.png", "floor.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    return found


@pytest.fixture(scope="module")
def floors(results):
    return [noise_floors.Floor(**floor) for floor in results["floors"]]


@pytest.mark.slow
def test_the_full_batch_needs_the_fewest_steps_one_the_fewest_examples(results):
    full, mini, single = results["to_target"].values()
    assert full["steps"] < mini["steps"] < single["steps"]
    assert full["examples"] > mini["examples"] > single["examples"]
    assert min(full["seconds_a_step"], single["seconds_a_step"]) > 0
    assert full["seconds"] == full["steps"] * full["seconds_a_step"]


@pytest.mark.slow
def test_the_noise_scale_grows_as_the_loss_falls(results):
    start, end = results["noise_scale"]
    assert end["loss"] < start["loss"]
    assert end["scale"] > start["scale"]


@pytest.mark.slow
def test_noise_floors_are_those_of_the_theory(floors):
    for floor in floors:
        assert abs(floor.measured - floor.exact) < 3 * floor.error, floor
        assert floor.error < 0.03 * floor.exact


@pytest.mark.slow
def test_constant_noise_is_the_theory_of_small_learning_rates(floors):
    small, large = floors
    assert small.additive == pytest.approx(small.exact, rel=0.03)
    assert large.additive < 0.95 * large.exact


@pytest.mark.slow
def test_epochs_have_a_lower_floor(floors):
    for floor in floors:
        assert floor.epochs < 0.8 * floor.exact


def test_the_exact_floor_is_that_of_all_possible_batches():
    rng = np.random.default_rng(0)
    x, y, rate = rng.normal(size=(4, 2)), rng.normal(size=4), 0.1
    H = x.T @ x / 4
    best = np.linalg.solve(H, x.T @ y / 4)
    pairs = [(i, j) for i in range(4) for j in range(4)]  # every batch of two
    S = np.zeros((2, 2))
    for _ in range(2000):
        new = np.zeros((2, 2))
        for pair in pairs:
            chosen = x[list(pair)]
            keep = np.eye(2) - rate * chosen.T @ chosen / 2
            kick = rate * chosen.T @ (chosen @ best - y[list(pair)]) / 2
            new += (keep @ S @ keep.T + np.outer(kick, kick)) / len(pairs)
        S = new
    expected = np.sum(H * S) / 2
    found = noise_floors.exact_floor(x, y, rate, 2)
    assert found == pytest.approx(expected, rel=1e-9)

"""The residual network: mixup, both averages, what it reports, at a small size."""

import json

import jax
import numpy as np
import pytest

import experiments.residual_network as residual_network
import fngrad as fg
import fngrad.tree as tree

pytest.importorskip("sklearn")

TINY = residual_network.Config(
    blocks=(1, 1), width=2, epochs=2, batch_size=256, seeds=2
)


def test_mixup_is_a_mean_of_two_examples_with_one_weight():
    x = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    y = np.array([0, 1, 2, 3, 4, 5], np.int32)
    mix = residual_network.mixed_up(1.0)
    mixed = jax.jit(mix)({"x": x, "y": y}, jax.random.key(0))
    labels = np.asarray(mixed["y"], np.float64)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed["x"], labels[:, :6] @ x, rtol=1e-5)
    weights = np.unique(np.round(labels[(labels > 0) & (labels < 1)], 5))
    assert len(weights) == 2
    assert weights.sum() == pytest.approx(1)


@pytest.mark.slow
def test_the_model_state_averages_the_statistics_of_each_step():
    model = residual_network.make_model(TINY)
    optimizer = residual_network.make_optimizer(TINY, 10)
    state = residual_network.first_state(model, optimizer, 0)
    step = fg.make_step(residual_network.make_loss(model, 0.75), optimizer)
    batch = {
        "x": np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("f"),
        "y": np.eye(10, dtype=np.float32)[:4],
    }
    before = tree.leaf_paths(state.model_state["average"])
    state, _ = jax.jit(step)(state, batch)
    now = tree.leaf_paths(state.model_state["now"])
    for path, leaf in tree.leaf_paths(state.model_state["average"]).items():
        expected = 0.75 * before[path] + 0.25 * now[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_both_arms_are_reported_and_logged(tmp_path, capsys):
    results = residual_network.main(
        residual_network.dataclasses.replace(TINY, runs=tmp_path)
    )
    arms = ["plain, last", "plain, average", "mixup, last", "mixup, average"]
    assert list(results) == arms
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    for arm in arms:
        assert manifest["results"][arm] == pytest.approx(results[arm])
    records = fg.logging.read_jsonl(folder / "metrics.jsonl")
    assert {(r["arm"], r["seed"]) for r in records} == {
        (arm, seed) for arm in ("plain", "mixup") for seed in (0, 1)
    }
    assert "test accuracy %" in capsys.readouterr().out


def test_invalid_settings_are_refused(tmp_path):
    for options in ({"seeds": 1}, {"alpha": 0.0}):
        with pytest.raises(SystemExit, match="need two or more seeds and alpha > 0"):
            residual_network.main(residual_network.Config(runs=tmp_path, **options))
    assert not list(tmp_path.iterdir())

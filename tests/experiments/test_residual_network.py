"""The residual network: mixup, both averages, what it reports, at a small size."""

import json

import jax
import numpy as np
import pytest

import experiments.residual_network as residual_network
import fngrad as fg

pytest.importorskip("sklearn")

pytestmark = pytest.mark.any_flags  # most of their time is compilation

TINY = residual_network.Config(blocks=(1,), width=2, epochs=2, batch_size=256, seeds=2)


@pytest.mark.slow
def test_evaluation_uses_both_averages_or_both_last_values():
    model = residual_network.make_model(TINY)
    optimizer = residual_network.make_optimizer(TINY, 10)
    state = residual_network.first_state(model, optimizer, 0)
    step = fg.make_step(residual_network.make_loss(model), optimizer)
    step = jax.jit(fg.steps.average_model_state(step, 0.5))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("f")
    labels = np.arange(4, dtype=np.int32)
    for _ in range(3):
        soft = residual_network.with_soft_labels({"x": x, "y": labels})
        state, _ = step(state, soft)
    metric_fn = residual_network.make_metric(model)
    found = residual_network.scores(metric_fn, state, {"x": x, "y": labels})
    for name, params, model_state in (
        ("last", state.params, state.model_state.current),
        ("average", fg.eval_params(state), fg.eval_model_state(state)),
    ):
        values = metric_fn(params, {"x": x, "y": labels}, model_state)
        loss = float(values["loss"].value())
        assert found[name]["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["last"]["loss"] != found["average"]["loss"]


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

"""The comparison under one budget tunes, retrains, counts speedups and reports."""

import json

import numpy as np
import pytest

import experiments.modern_optimizers as modern

pytestmark = pytest.mark.any_flags  # most of their time is compilation


def test_a_speedup_is_the_share_of_steps_after_which_adamw_is_as_good():
    budgets = np.array([0.5, 1.0, 2.0])
    curve = np.array([[3.0, 3.0, 3.0, 3.0], [2.0] * 4, [1.0] * 4])
    losses = np.array([2.0, 1.5, 9.0, 0.5])
    found = modern.speedups(losses, budgets, curve)
    np.testing.assert_allclose(found, [1.0, 2**0.5, 0.5, 2.0])
    # A longer run that ends higher counts as the shorter one.
    worse = np.array([[3.0], [2.0], [2.5]])
    found = modern.speedups(np.array([2.2]), budgets, worse)
    np.testing.assert_allclose(found, 0.5 * 2**0.8)


def test_intervals_are_of_the_paired_differences():
    base = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    median, low, high = modern.with_interval(base - 0.5, base)
    assert median == low == high == -0.5


def test_every_rule_takes_its_settings_and_twenty_are_there():
    assert len(modern.RULES) == len(set(modern.RULES)) == 20
    problem = modern.Problem(None, None, None, "a/weight", "b/weight")
    for name in modern.RULES:
        modern.make_rule(name, modern.schedule(name, 0.1, 20), problem)


def test_the_rate_rises_and_falls_but_for_schedule_free_rules():
    rate = modern.schedule("adamw", 0.5, 100)
    assert [float(rate(t)) for t in (0, 10, 100)] == [0.0, 0.5, 0.0]
    assert float(modern.schedule("schedule_free_adamw", 0.5, 100)(100)) == 0.5


@pytest.mark.slow
def test_rules_are_tuned_alike_and_told_with_intervals(tmp_path, capsys):
    config = modern.Config(
        rules=("adamw", "muon"),
        low=1e-6,
        high=0.5,
        rates=2,
        tuning_seeds=1,
        seeds=2,
        steps=30,
        budgets=(0.5,),
        problems=("digits",),
        runs=tmp_path,
    )
    results = modern.main(config)
    shown = capsys.readouterr().out
    rows = results["digits"]
    assert set(rows) == {"adamw", "muon"}
    assert rows["adamw"]["speedup"] == pytest.approx((1.0, 1.0, 1.0))
    assert rows["adamw"]["difference"] == (0.0, 0.0, 0.0)
    for name, row in rows.items():
        assert row["learning_rate"] > 1e-4, "a rate that does not move was chosen"
        assert name in shown
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    saved = manifest["results"]["digits"]["muon"]
    assert saved["loss"] == rows["muon"]["loss"]
    assert (folder / "speedups.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": ("adamw", "best")}, "need rules among"),
        ({"rules": ("muon",)}, "adamw with them"),
        ({"problems": ("chess",)}, "need problems among"),
        ({"seeds": 1}, "at least two seeds and two rates, got 1 and 8"),
    ],
)
def test_a_config_that_cannot_run_is_refused(tmp_path, change, message):
    with pytest.raises(SystemExit, match=message):
        modern.main(modern.Config(runs=tmp_path, **change))
    assert not list(tmp_path.iterdir())

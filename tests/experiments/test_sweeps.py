"""The experiment and the benchmarks of sweeps run, at a small size."""

import csv
import dataclasses
import json

import pytest

import experiments.benchmarks.halving as halving
import experiments.benchmarks.sweeps as benchmark
import experiments.sweep_digits as sweep_digits

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.any_flags  # most of their time is compilation

SMALL = sweep_digits.Config(
    optimizers=("sgd", "momentum"),
    low=0.05,
    high=5e3,
    rates=3,
    seeds=2,
    epochs=2,
    width=8,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep_digits")


@pytest.fixture(scope="module")
def results(runs):
    return sweep_digits.main(dataclasses.replace(SMALL, runs=runs))


@pytest.mark.slow
def test_the_sweep_leaves_table_pictures_and_a_run_folder(runs, results):
    (folder,) = runs.iterdir()
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert {row["optimizer"] for row in rows} == {"sgd", "momentum"}
    assert sum(int(row["diverged"]) for row in rows) > 0
    for name in ("sensitivity", "curves", "heat_map"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["results"]["momentum"] == pytest.approx(results["momentum"])
    for row in results.values():
        assert row["test_accuracy"] > 0.4
        assert row["learning_rate"] < 5e3


@pytest.mark.slow
def test_a_second_start_reuses_the_chunks_and_returns_the_same(runs, results, capsys):
    (folder,) = runs.iterdir()
    again = dataclasses.replace(SMALL, runs=runs, resume=folder)
    assert sweep_digits.main(again) == results
    shown = capsys.readouterr().out
    assert "test accuracy" in shown
    assert "trainings in" in shown
    with pytest.raises(ValueError, match="seeds"):
        sweep_digits.main(dataclasses.replace(again, seeds=3))


def test_invalid_settings_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="need optimizers among"):
        sweep_digits.main(
            dataclasses.replace(SMALL, optimizers=("best",), runs=tmp_path)
        )
    with pytest.raises(SystemExit, match="at least two seeds"):
        sweep_digits.main(dataclasses.replace(SMALL, seeds=1, runs=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_benchmark_of_halving_shows_examples_seconds_and_winners(capsys):
    config = halving.Config(
        rates=5, decays=2, seeds=2, low=30, high=90, width=8, repeats=0
    )
    found = halving.main(config)
    shown = capsys.readouterr().out
    # 10 points to 30 steps, 4 to 90, where the full sweep makes 900.
    assert found["fewer_examples"] == 900 / (6 * 30 + 4 * 90)
    assert "10 to 30, 4 to 90" in shown
    assert f"{found['fewer_examples']:.1f} in examples" in shown
    assert found["regret"] < 0.2


@pytest.mark.slow
def test_the_benchmark_of_sweeps_makes_its_three_tables(capsys):
    config = benchmark.Config(
        widths=(8,), trainings=4, steps=5, sample=1, lanes=(2, 4), modes=(), repeats=0
    )
    found = benchmark.main(config)
    shown = capsys.readouterr().out
    costs = found["cases"][8]
    assert {"one sweep", "loop, rate as data", "loop, rate baked in"} <= set(costs)
    assert all(0 <= cost.compiling < cost.seconds for cost in costs.values())
    assert "extrapolated from 1" in shown
    assert len(found["lanes"][8]) == 2
    assert found["modes"][8] > 0
    assert shown.count("mlp 64-8-8-10") == 3

"""The first experiment: its table, its choice of learning rates, what it saves."""

import contextlib
import csv
import io
import json
import textwrap

import jax
import numpy as np
import pytest

import experiments.digits as digits
import fngrad as fg

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

# Of the rates that are tried those that win, and fewer seeds.
OPTIMIZERS, RATES, SEEDS = digits.Config.optimizers, (0.01, 0.1, 0.3, 1.0), 2
EPOCHS = digits.Config.epochs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def printed():
    """What the experiment prints, filled in by the run."""
    return io.StringIO()


@pytest.fixture(scope="module")
def run(runs, printed):
    """Return the swept trainings, the results and the run folder."""
    swept = []
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        sweep = digits.sweeps.sweep
        patch.setattr(
            digits.sweeps,
            "sweep",
            lambda *args, **kwargs: swept.append(sweep(*args, **kwargs)) or swept[0],
        )
        results = digits.main(
            digits.Config(
                optimizers=OPTIMIZERS,
                learning_rates=RATES,
                seeds=SEEDS,
                runs=runs,
            )
        )
    (folder,) = runs.iterdir()
    return swept[0], results, folder


@pytest.mark.slow
def test_the_learning_rate_has_the_least_median_validation_loss(run):
    result, results, folder = run
    assert set(results) == set(OPTIMIZERS)
    losses = np.median(result.history["val/loss"][:, :, -1], axis=1)
    for name, row in results.items():
        own = np.flatnonzero(result.points["optimizer"] == name)
        best = own[np.argmin(losses[own])]
        assert row["learning_rate"] == pytest.approx(
            result.points["learning_rate"][best]
        )
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert len(rows) == len(OPTIMIZERS) * len(RATES)
    assert float(rows[0]["median"]) == pytest.approx(losses.min())


@pytest.mark.slow
def test_the_networks_of_a_point_have_the_losses_that_its_training_recorded(run):
    result, _, _ = run
    validation = fg.data.digits().validation
    for number in range(len(OPTIMIZERS) * len(RATES)):
        for seed, params in enumerate(digits.networks(result, number)):
            loss = fg.evaluate(digits.metric_fn, params, validation)["loss"]
            recorded = result.history["val/loss"][number, seed, -1]
            assert float(loss) == pytest.approx(recorded, rel=1e-4)


@pytest.mark.slow
def test_the_run_folder_holds_numbers_curves_and_pictures(run):
    result, results, folder = run
    assert json.loads((folder / "config.json").read_text())["seeds"] == SEEDS
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]
    for name, row in results.items():
        assert manifest["results"][name] == pytest.approx(row)
        assert 0.5 < row["accuracy"] <= 1.0
    records = fg.logging.read_jsonl(folder / "metrics.jsonl")
    assert len(records) == len(OPTIMIZERS) * SEEDS * EPOCHS
    best = digits.best_points(result)
    last = {(r["optimizer"], r["seed"]): r for r in records}
    for (name, seed), record in last.items():
        assert record["step"] == result.history["loss"].shape[2]
        for key in digits.LABELS:
            assert record[key] == pytest.approx(
                result.history[key][best[name], seed, -1]
            )
    for name in ("curves", "sensitivity"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_saved_network_is_the_best_one(run):
    result, _, folder = run
    like = digits.MODEL.init(jax.random.key(0))
    saved = fg.checkpoint.restore(folder / "best", like=like)
    losses = np.median(result.history["val/loss"][:, :, -1], axis=1)
    best = digits.networks(result, int(np.argmin(losses)))[0]
    jax.tree.map(np.testing.assert_array_equal, saved, best)
    test, layers = fg.data.digits().test, saved["layers"]
    w, b, v, c = (
        np.asarray(layer[name], np.float64)
        for layer in layers
        for name in ("weight", "bias")
    )
    logits = np.maximum(test["x"] @ w + b, 0) @ v + c
    assert np.mean(logits.argmax(axis=1) == test["y"]) > 0.8


@pytest.mark.slow
def test_the_printed_lines_load_the_best_network_and_say_which_it_is(run, printed):
    result, _, folder = run
    rows = csv.DictReader((folder / "table.csv").read_text().splitlines())
    name, rate = next((row["optimizer"], float(row["learning_rate"])) for row in rows)
    _, head, code = printed.getvalue().partition("the best network (")
    label, _, code = code.partition(":\n")
    assert head
    assert label == f"{name}, learning_rate {rate:g}, seed 0)"
    found = {}
    exec(textwrap.dedent(code), found)
    (number,) = np.flatnonzero(
        (result.points["optimizer"] == name)
        & np.isclose(result.points["learning_rate"], rate)
    )
    best = digits.networks(result, int(number))[0]
    jax.tree.map(np.testing.assert_array_equal, found["params"], best)
    (saved,) = (folder / "best").glob("0*")
    notes = json.loads((saved / "manifest.json").read_text())["content"]["notes"]
    assert (notes["optimizer"], notes["seed"]) == (name, 0)
    assert notes["learning_rate"] == pytest.approx(rate)


def test_the_table_says_what_it_leaves_out(run, printed):
    assert "first, 8 of 16 points\nrank" in printed.getvalue()
    assert "\nall points: table.csv\n" in printed.getvalue()


def test_invalid_settings_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="need optimizers among"):
        digits.main(digits.Config(optimizers=("best",), runs=tmp_path))
    with pytest.raises(SystemExit, match="at least two seeds"):
        digits.main(digits.Config(seeds=1, runs=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_optimizer_passes_97_percent_on_the_test_split(run):
    _, results, _ = run
    assert set(results) == {"sgd", "momentum", "rmsprop", "adagrad"}
    for name, row in results.items():
        assert row["accuracy"] >= 0.97, name

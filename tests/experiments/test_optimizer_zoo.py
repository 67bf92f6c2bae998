"""The zoo counts steps to a target, chooses rates on other seeds, draws and reports."""

import json

import numpy as np
import pytest

import experiments.optimizer_zoo as zoo
import experiments.races as races

pytestmark = pytest.mark.any_flags  # most of their time is compilation


def test_steps_are_counted_to_the_first_loss_on_target():
    losses = np.array(
        [[3.0, 1.0, 0.5, 0.9], [3.0, 2.0, 1.5, 1.2], [np.nan, 0.1, np.nan, np.nan]]
    )
    steps = races.steps_to_target(losses, target=1.0, every=10)
    np.testing.assert_array_equal(steps, [20.0, np.inf, 20.0])


def test_quartiles_do_not_mix_in_infinities():
    row = races.Row(0.1, False, np.array([10.0, 20.0, 30.0, np.inf]))
    np.testing.assert_array_equal(row.quartiles, [20.0, 30.0, np.inf])


@pytest.mark.slow
def test_the_zoo_leaves_tables_numbers_and_a_picture(tmp_path, capsys):
    config = zoo.Config(
        optimizers=("sgd", "adam"),
        rates=(1e-4, 0.03, 0.3),
        seeds=3,
        tuning_seeds=2,
        steps=30,
        every=10,
        digits_target=1.5,
        quadratic_target=4.0,
        runs=tmp_path,
    )
    results = zoo.main(config)
    shown = capsys.readouterr().out
    assert set(results) == {"digits", "noisy quadratic"}
    for rows in results.values():
        assert set(rows) == {"sgd", "adam"}
        for name, row in rows.items():
            assert row.rate > 1e-4, "a rate that does not move was chosen"
            assert np.isfinite(row.steps).all(), name
            assert name in shown
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    saved = manifest["results"]["digits"]["adam"]
    assert saved["steps"] == list(results["digits"]["adam"].steps)
    assert (folder / "zoo.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizers": ("adamm",)}, "need optimizers among .* got .'adamm'"),
        ({"seeds": 0}, "at least one seed"),
        ({"steps": 2}, "need steps >= every, got 2 < 5"),
    ],
)
def test_a_config_that_cannot_run_is_refused(tmp_path, change, message):
    with pytest.raises(SystemExit, match=message):
        zoo.main(zoo.Config(runs=tmp_path, **change))
    assert not list(tmp_path.iterdir())

"""Tables of sweeps, and comparisons of their points."""

import csv
import io

import numpy as np
import pytest

from fngrad.sweeps import SweepResult
from fngrad.sweeps.results.tables import best_point, compare, scores, summary, table

SEEDS = 6


def result(medians=(0.5, 0.1, 0.3, 0.4), metric=("val/loss", "min"), **history):
    """Return a sweep of two rates for each of two optimizers."""
    noise = 0.01 * np.random.default_rng(0).normal(size=SEEDS)
    values = np.asarray(medians)[:, None] + noise[None]
    curves = np.stack([values + 1, values], axis=2)
    at = np.full(values.shape, -1, np.int32)
    at[3, 0] = 7
    values[3, 0] = np.nan
    return SweepResult(
        {
            "rate": np.array([0.1, 0.2, 0.1, 0.2]),
            "optimizer": np.array(["sgd", "sgd", "adam", "adam"]),
        },
        [(), ()],
        {"val/loss": curves} | history,
        at,
        {"metric": metric, "values": values, "static": ["optimizer"]},
    )


def test_rows_are_ranked_and_have_every_column():
    found = table(result())
    assert [row["optimizer"] for row in found.rows] == ["sgd", "adam", "adam", "sgd"]
    assert [row["rank"] for row in found.rows] == [1, 2, 3, 4]
    assert found.rows[0]["rate"] == 0.2
    assert found.rows[2]["diverged"] == 1
    assert found.rows[0]["P(best) %"] == 100.0
    row = found.rows[1]
    assert row["low"] <= row["median"] <= row["high"]
    assert len(table(result(), top=2).rows) == 2


def test_the_text_is_aligned_and_ends_with_the_warnings():
    shown = str(table(result()))
    opening, head, *lines, legend, doubt = shown.splitlines()
    assert opening == "last val/loss, smallest median over 6 seeds first"
    columns = "rank rate optimizer median interval P(best) % diverged"
    assert head.split() == columns.split()
    assert len({len(line) for line in [head, *lines]}) == 1
    assert legend.startswith("interval: holds the median with 95 % confidence; P(best)")
    assert doubt.startswith("! the best point has the largest rate tried (0.2)")
    assert "with 50 % confidence" in str(table(result(), level=0.5))


def test_a_table_shows_its_text_everywhere():
    ranked = table(result())
    assert repr(ranked) == str(ranked)
    assert ranked._repr_html_().startswith("<pre")


def test_the_text_says_how_many_points_are_shown():
    opening = "last val/loss, smallest median over 6 seeds first, 2 of 4 points\n"
    whole = table(result())
    for short in (table(result(), top=2), whole._replace(rows=whole.rows[:2])):
        assert str(short).startswith(opening)


def test_measured_values_have_four_digits_each():
    swept = result(medians=(1.0, 0.5, 0.25, 12345.0))
    swept = swept._replace(
        notes=swept.notes | {"values": np.array([[1.0], [0.5], [0.25], [12345.0]])},
        diverged_at=np.full((4, 1), -1),
    )
    _, _, *lines = str(table(swept)).splitlines()
    assert [line.split()[3] for line in lines[:4]] == [
        *("0.2500", "0.5000", "1.000", "1.234e+04"),
    ]
    assert [line.split()[1] for line in lines[:2]] == ["0.1", "0.2"]  # as they are


def test_the_rows_can_be_written_as_csv():
    (first, *_), text = table(result()).rows, table(result()).to_csv()
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == 4
    assert read[0]["optimizer"] == "sgd"
    assert float(read[0]["low"]) == first["low"]


def test_another_metric_may_rank_by_its_last_record():
    accuracy = np.zeros((4, SEEDS, 3))
    accuracy[:, :, 1] = np.array([0.1, 0.2, 0.9, 0.3])[:, None]
    accuracy[:2, :, 2] = accuracy[:2, :, 1] + 0.05
    # The second combination recorded one value fewer.
    accuracy[2:, :, 2] = np.nan
    swept = result(**{"val/accuracy": accuracy})
    np.testing.assert_allclose(
        scores(swept, "val/accuracy")[:, 0], [0.15, 0.25, 0.9, 0.3]
    )
    assert summary(swept, ("val/accuracy", "max")).best == 2
    assert best_point(swept, ("val/accuracy", "max")) == {
        "rate": 0.1,
        "optimizer": "adam",
    }
    (first, *_) = table(swept, also=["val/accuracy"]).rows
    assert first["val/accuracy"] == pytest.approx(0.25)


def test_a_metric_that_ends_in_nan_counts_as_nan():
    curves = np.ones((4, SEEDS, 3))
    curves[1, 2, 1:] = np.nan
    swept = result(**{"val/auc": curves})
    for same in (swept, swept._replace(notes=swept.notes | {"static": []})):
        np.testing.assert_array_equal(
            scores(same, "val/auc")[1], [1, 1, np.nan, 1, 1, 1]
        )
        assert summary(same, ("val/auc", "max")).diverged[1] == 1
    empty = swept._replace(history={"val/auc": np.ones((4, SEEDS, 0))})
    assert np.isnan(scores(empty, "val/auc")).all()


def test_columns_of_vectors_can_be_ranked_and_compared():
    betas = np.array([[0.9, 0.99], [0.9, 0.9], [0.8, 0.99], [0.8, 0.9]])
    swept = result()._replace(points={"betas": betas})
    assert "[0.9 0.9]" in str(table(swept))
    np.testing.assert_array_equal(best_point(swept)["betas"], betas[1])
    assert compare(swept, {"betas": betas[1]}, 0).wins == SEEDS


def test_test_metrics_cannot_select_and_give_a_warning_if_recorded():
    swept = result(**{"test/loss": np.ones((4, SEEDS))})
    with pytest.raises(ValueError, match="selecting by the test data biases"):
        table(swept, metric=("test/loss", "min"))
    assert "! test/loss was measured at every point" in str(table(swept))
    found = compare(swept, 0, 1, metric=("test/loss", "min"))
    assert found.ties == SEEDS
    with pytest.raises(ValueError, match="selecting by the test data biases"):
        compare(swept, {"optimizer": "sgd"}, 2, metric=("test/loss", "min"))


def test_groups_are_compared_by_their_best_points():
    found = compare(result(), {"optimizer": "sgd"}, {"optimizer": "adam"})
    assert (found.wins, found.losses) == (SEEDS, 0)
    assert found.difference == pytest.approx(-0.2)
    assert str(found).startswith("val/loss, optimizer sgd minus optimizer adam: -0.2")
    one = compare(result(), {"optimizer": "adam", "rate": np.float32(0.2).item()}, 1)
    # The diverged lane loses, as all others do.
    assert (one.wins, one.losses) == (0, SEEDS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: table(r, top=0), "need an int top >= 1, got top=0"),
        (lambda r: table(r, also=["speed"]), r"among \['val/loss'\], got 'speed'"),
        (lambda r: table(r, metric=("val/loss", "up")), '"min" or "max"'),
        (lambda r: compare(r, 4, 0), r"need a point in \[0, 4\), got 4"),
        (lambda r: compare(r, {"speed": 1}, 0), r"'optimizer'\], got 'speed'"),
        (lambda r: compare(r, {"rate": 0.3}, 0), "that matches a point, got"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(result())


def test_a_metric_with_too_many_axes_is_refused():
    swept = result(wide=np.ones((4, SEEDS, 2, 2)))
    with pytest.raises(ValueError, match=r"got shape \(2, 2\) of 'wide'"):
        scores(swept, "wide")

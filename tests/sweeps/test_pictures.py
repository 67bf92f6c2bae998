"""Pictures of sweeps show all points, including those that diverged."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from drawn_text import literal

import fngrad.sweeps.results.pictures as pictures
import fngrad.sweeps.results.plot_elements as plot_elements
from fngrad.programs.optional_imports import import_extra
from fngrad.sweeps import SweepResult, grid, summary

SEEDS, RATES, DECAYS = 6, np.geomspace(1e-3, 1.0, 4), np.array([0.0, 0.1, 0.2])


def result(mode="min"):
    """Return a sweep that is best at rate 0.1 and decay 0.1; rate 1 diverges at 0."""
    points = grid(rate=RATES, decay=DECAYS) | {"rule": np.array(["a", "b"] * 6)}
    away = np.abs(np.log10(points["rate"]) + 1) + 3 * np.abs(points["decay"] - 0.1)
    values = 0.1 + away[:, None] + 0.01 * np.arange(SEEDS)[None]
    values = values if mode == "min" else 1 - values
    at = np.full(values.shape, -1, np.int32)
    at[(points["rate"] == 1) & (points["decay"] == 0)] = 3
    curves = values[:, :, None] + np.linspace(1, 0, 5)
    return SweepResult(
        points,
        (),
        {"val/loss": curves, "loss": np.repeat(curves, 4, axis=2)},
        at,
        {"metric": ("val/loss", mode), "values": values},
    )


def texts(axis):
    return [text.get_text() for text in axis.texts]


def drawn(figure):
    """Draw the figure, as saving does."""
    figure.canvas.draw()
    return figure.axes[0]


def test_curves_show_the_best_points_in_bands():
    figure = pictures.loss_curves(result(), ["val/loss", "loss"], top=2)
    drawn(figure)
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("val/loss", "loss")
    (line, *_) = first.lines
    np.testing.assert_array_equal(line.get_xdata(), [4, 8, 12, 16, 20])
    np.testing.assert_allclose(line.get_ydata()[-1], 0.1 + 0.025)
    np.testing.assert_array_equal(second.lines[0].get_xdata(), np.arange(1, 21))
    assert len(first.lines) == len(first.collections) == 2
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "b, rate 0.1, decay 0.1"


def test_curves_may_be_running_means():
    figure = pictures.loss_curves(result(), ["val/loss", "loss"], means={"loss": 4})
    first, second = drawn(figure), figure.axes[1]
    assert first.get_ylabel() == "val/loss"
    assert second.get_ylabel() == "loss, mean of 4 records"
    whole = pictures.loss_curves(result(), ["loss"])
    raw = drawn(whole).lines[0].get_ydata()
    np.testing.assert_allclose(second.lines[0].get_ydata()[-1], np.mean(raw[-4:]))


def test_a_group_has_one_color_in_all_pictures():
    def colors(figure):
        drawn(figure)
        (legend,) = figure.legends
        return {
            text.get_text()[0]: to_hex(np.ravel(handle.get_color())[:4].tolist())
            if isinstance(handle.get_color(), np.ndarray)
            else to_hex(handle.get_color())
            for text, handle in zip(
                legend.get_texts(), legend.legend_handles, strict=True
            )
        }

    to_hex = import_extra("matplotlib.colors", "plot").to_hex
    swept = result()
    curves = colors(pictures.loss_curves(swept, by="rule"))
    lines = colors(pictures.sensitivity(swept, "rate", by="rule"))
    assert list(curves) == ["b", "a"]  # the better one is first
    assert {name: lines[name] for name in "ab"} == curves


def test_curves_of_shorter_trainings_end_at_their_own_step():
    values = np.ones((2, SEEDS, 4))
    values[0, :, 2:] = np.nan
    losses = np.repeat(values, 3, axis=2)
    swept = SweepResult(
        {"epochs": np.array([2, 4])},
        [(), ()],
        {"val/loss": values, "loss": losses},
        np.full((2, SEEDS), -1),
        {
            "metric": ("val/loss", "min"),
            "values": values[:, :, 1],
            "static": ["epochs"],
        },
    )
    short, long = pictures.loss_curves(swept).axes[0].lines
    np.testing.assert_array_equal(short.get_xdata(), [3, 6])
    np.testing.assert_array_equal(long.get_xdata(), [3, 6, 9, 12])


def test_curves_by_a_column_show_the_best_of_each_value():
    figure = pictures.loss_curves(result(), by="rule", labels={"val/loss": "nats"})
    drawn(figure)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label[0] for label in legend] == ["b", "a"]
    assert figure.axes[0].get_ylabel() == "nats"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_heat_map_of_a_grid_shows_its_values_and_frames_the_best(mode):
    axis = drawn(pictures.heat_map(result(mode), "rate", "decay"))
    shown = axis.images[0].get_array()
    assert shown.shape == (3, 4)
    assert np.ma.getmaskarray(shown).sum() == 1
    assert shown.mask[0, 3]
    assert f"{summary(result(mode)).median[7]:.3g}" in texts(axis)
    assert len(texts(axis)) == 11
    (frame,) = axis.patches
    assert frame.get_xy() == (1.5, 0.5)
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["0.001", "0.01", "0.1", "1"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("rate", "decay")


def test_a_cell_of_several_points_shows_the_best():
    axis = drawn(pictures.heat_map(result(), "rate", "rule", label="nats"))
    shown = axis.images[0].get_array()
    assert shown.shape == (2, 4)
    # At rate 0.1 rule b has only decay 0.1; a has 0 and 0.2.
    np.testing.assert_allclose(shown[:, 2], [0.425, 0.125])
    assert axis.figure.axes[1].get_ylabel() == "nats, median of 6 seeds"


def test_points_off_a_grid_are_dots_hollow_if_they_diverged():
    swept, rng = result(), np.random.default_rng(0)
    swept.points["decay"] = rng.uniform(0.01, 0.2, 12)
    swept.points["rate"] = np.exp(rng.uniform(np.log(1e-4), 0, 12))
    axis = drawn(pictures.heat_map(swept, "rate", "decay"))
    filled, hollow, ring = axis.collections
    assert len(filled.get_offsets()) == 11
    assert len(hollow.get_offsets()) == 1
    best = (swept.points["rate"][7], swept.points["decay"][7])
    np.testing.assert_allclose(ring.get_offsets()[0], best)
    assert axis.get_xscale() == "log"
    assert axis.get_yscale() == "linear"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_sensitivity_joins_the_best_points_at_each_value(mode):
    axis = drawn(pictures.sensitivity(result(mode), "rate"))
    line = axis.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), RATES)
    signed = np.array([2.125, 1.125, 0.125, 1.125])
    expected = signed if mode == "min" else 1 - signed
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert axis.get_xscale() == "log"
    assert axis.get_xlabel() == "rate"


def test_sensitivity_marks_values_at_which_every_point_diverged():
    swept = result()
    swept.diverged_at[swept.points["rate"] == 1] = 3
    figure = pictures.sensitivity(swept, "rate", by="rule", label="nats")
    axis = drawn(figure)
    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1.0], [1.0], []]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(legend) == {"a", "b", "diverged or off the scale"}
    assert axis.get_ylabel() == "nats, median of 6 seeds"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_parallel_coordinates_draw_the_best_on_top(mode):
    axis = drawn(pictures.parallel_coordinates(result(mode), label="nats"))
    (drawn_lines,) = axis.collections
    lines = [segment[:, 1] for segment in drawn_lines.get_segments()]
    assert len(lines) == 12
    heights = np.array([line[-1] for line in lines])
    assert heights[-1] == 1.0  # the best is drawn last
    assert np.all(heights <= 1)
    assert np.sum(heights < 0) == 1
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["rate", "decay", "rule", "nats"]
    assert {"0.001", "0.2", "a", "b"} <= set(texts(axis))


def test_one_huge_median_does_not_stretch_the_scale():
    swept = result()
    swept.notes["values"][0] = 1e20
    found = summary(swept)
    shown = plot_elements.readable(found)
    assert np.isnan(shown[0])
    others = np.isfinite(found.median) & (np.arange(12) > 0)
    np.testing.assert_array_equal(shown[others], found.median[others])
    equal = found._replace(median=np.ones(12))
    np.testing.assert_array_equal(plot_elements.readable(equal), np.ones(12))


def test_an_axis_of_positive_values_over_a_wide_range_is_logarithmic():
    assert plot_elements.needs_log_axis(np.array([0.01, 1.0, np.inf]))
    assert not plot_elements.needs_log_axis(np.array([0.1, 1.0]))
    assert not plot_elements.needs_log_axis(np.array([0.0, 1.0, 100.0]))
    assert not plot_elements.needs_log_axis(np.array([np.nan]))


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"need a column among .*got 'speed'"):
        pictures.sensitivity(result(), "speed")
    with pytest.raises(ValueError, match=r"need curves among .*got 'accuracy'"):
        pictures.loss_curves(result(), ["accuracy"])
    with pytest.raises(ValueError, match="selecting by the test data biases"):
        pictures.heat_map(result(), "rate", "decay", metric=("test/loss", "min"))
    swept = result()
    swept.points["betas"] = np.ones((12, 2))
    for draw in (
        lambda: pictures.sensitivity(swept, "betas"),
        lambda: pictures.parallel_coordinates(swept),
    ):
        with pytest.raises(ValueError, match=r"got shape \(2,\) of 'betas'"):
            draw()


ODD = "cost_$x_$ a\nb"


def oddly_named():
    swept, old = result(), result().points
    points = {
        ODD: old["rate"],
        "_decay": old["decay"],
        "$": np.array(["_$a$", "$"] * 6),
    }
    history = {f"val/{ODD}": swept.history["val/loss"]}
    notes = {"metric": (f"val/{ODD}", "min"), "values": swept.notes["values"]}
    return SweepResult(points, (), history, swept.diverged_at, notes)


@pytest.mark.parametrize(
    "draw",
    [
        lambda swept: pictures.loss_curves(swept),
        lambda swept: pictures.loss_curves(swept, by="$"),
        lambda swept: pictures.heat_map(swept, ODD, "_decay"),
        lambda swept: pictures.heat_map(swept, "$", ODD),
        lambda swept: pictures.sensitivity(swept, ODD, by="$"),
        lambda swept: pictures.sensitivity(swept, "$", by="_decay"),
        lambda swept: pictures.parallel_coordinates(swept),
    ],
)
def test_names_are_drawn_as_they_are_written(draw):
    figure = draw(oddly_named())
    drawn(figure)
    found = figure.findobj(import_extra("matplotlib.text", "plot").Text)
    texts = [t for t in found if "$" in t.get_text() and "10^" not in t.get_text()]
    assert texts
    for text in texts:
        assert "\\$" not in literal(text)


def test_a_group_whose_name_begins_with_an_underscore_is_in_the_legend():
    figure = pictures.sensitivity(oddly_named(), "_decay", by="$")
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"_\\$a\\$", "\\$"} <= legend


@pytest.mark.slow
def test_two_thousand_points_need_few_artists():
    rng, count = np.random.default_rng(0), 2_000
    points = {"rate": rng.uniform(size=count), "decay": rng.uniform(size=count)}
    values = rng.uniform(1, 2, (count, 3))
    notes = {"metric": ("loss", "min"), "values": values}
    at = np.full(values.shape, -1, np.int32)
    swept = SweepResult(points, (), {"loss": values}, at, notes)
    found = np.median(values, axis=1)
    for figure in (
        pictures.parallel_coordinates(swept),
        pictures.sensitivity(swept, "rate"),
        pictures.heat_map(swept, "rate", "decay"),
    ):
        assert len(figure.axes[0].get_children()) < 100
    line = pictures.sensitivity(swept, "rate").axes[0].containers[0].lines[0]
    order = np.argsort(points["rate"])
    np.testing.assert_array_equal(line.get_xdata(), points["rate"][order])
    np.testing.assert_array_equal(line.get_ydata(), found[order])

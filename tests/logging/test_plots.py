"""What matplotlib draws: few points and panels, every extreme, literal names."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from drawn_text import literal

import experiments.benchmarks.drawing as benchmark
import fngrad.logging.plots as plots
from fngrad.logging.decimation import COLUMNS, decimate
from fngrad.logging.history import History
from fngrad.logging.quantities import MAX_PANELS, by_quantity

MILLION = 1_000_000
ODD_NAMES = [
    *("cost_$x_$", "$", "$$", "a$b", "$\\frac{1}$", "_hidden", "__", "100 %_^{}~#&"),
    *(
        "two\nlines",
        "tab\t",
        "nul\x00",
        "\ud800",
        "a\\$b$",
        "x" * 300,
        " ",
        "Größe 損失",
    ),
]


def noisy(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=count)


def points_of(figure) -> int:
    return sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines)


def recorded(curves) -> History:
    history = History()
    for name, values in curves.items():
        history.extend(np.arange(1, len(values) + 1), {name: np.asarray(values)})
    return history


def test_a_million_points_are_reduced_and_keep_their_extremes():
    values = noisy(MILLION)
    values[[123_456, 765_432]] = 50.0, -60.0
    figure = recorded({"loss": values}).plot()
    line, _ = figure.axes[0].lines  # the other is the running mean
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert len(x) <= 5 * COLUMNS
    assert (x[y.argmax()], y.max()) == (123_457, 50.0)
    assert (x[y.argmin()], y.min()) == (765_433, -60.0)
    assert (x[0], x[-1]) == (1, MILLION)


def test_every_column_of_pixels_keeps_its_extremes():
    count = 100_000
    steps, values = np.arange(count, dtype=float), noisy(count)
    x, y = decimate(steps, values)
    assert np.all(np.diff(x) > 0)
    np.testing.assert_array_equal(y, values[x.astype(int)])
    width = count // COLUMNS
    for column in range(COLUMNS):
        whole = values[column * width : (column + 1) * width - 1]
        kept = y[(x >= column * width) & (x < (column + 1) * width)]
        assert kept.min() <= whole.min()
        assert kept.max() >= whole.max()


def test_short_curves_are_drawn_point_for_point():
    values = noisy(4 * COLUMNS)
    line, _ = recorded({"loss": values}).plot().axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), values)


@pytest.mark.parametrize("window", [1, 2, 7, 100])
@pytest.mark.parametrize("count", [1, 6, 7, 50])
def test_a_running_mean_is_of_the_last_values_and_keeps_small_ones(window, count):
    values = np.random.default_rng(0).uniform(1, 2, count)
    values[count // 5] = 1e20  # what follows its window is as exact as before
    values[count // 2] = np.nan
    found = plots.running_mean(values, window)
    for end in range(count):
        own = values[max(0, end + 1 - window) : end + 1]
        expected = np.nan if np.isnan(values[end]) else np.nanmean(own)
        np.testing.assert_allclose(found[end], expected, rtol=1e-13)


def test_a_long_loss_is_drawn_behind_its_running_mean_on_a_logarithmic_axis():
    steps = np.arange(1, 501)
    loss = np.exp(-steps / 100) * (1 + 0.5 * np.cos(steps))
    figure = recorded({"loss": loss, "val/loss": [0.5, 0.1]}).plot()
    (axis,) = figure.axes
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["loss", "loss, mean of 20 records", "val/loss"]
    raw, mean, validation = axis.lines
    assert axis.get_yscale() == "log"
    assert raw.get_alpha() < 1
    assert mean.get_alpha() is validation.get_alpha() is None
    np.testing.assert_allclose(mean.get_ydata()[-1], np.mean(loss[-20:]))
    assert recorded({"loss": 1 + loss}).plot().axes[0].get_yscale() == "linear"


def test_a_gap_of_a_long_curve_stays_a_gap():
    values = np.ones(MILLION)
    values[500_000:600_000] = np.nan
    values[800_000:] = np.inf
    line, _ = recorded({"loss": values}).plot().axes[0].lines
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    for start, end in ((501_001, 599_000), (801_001, MILLION)):
        assert np.all(np.isnan(y[(x > start) & (x <= end)]))
        assert np.any((x > start) & (x <= end))
    assert np.all(y[x <= 500_000] == 1)


def test_the_band_of_long_runs_keeps_its_extremes():
    steps = np.arange(50_000)
    runs = [(steps, noisy(50_000)), (steps, np.zeros(50_000))]
    runs[0][1][20_000] = 40.0
    runs[1][1][30_000] = -40.0
    axes = plots.figure({"loss": {"sgd": runs}}).axes[0]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert len(corners) < 20 * COLUMNS
    assert [20_000, 40.0] in corners.tolist()
    assert [30_000, -40.0] in corners.tolist()


@pytest.mark.parametrize("band", [(0.0, 1.0), (0.25, 0.75), (0.1, 0.6)])
@pytest.mark.parametrize("runs", [1, 2, 5])
def test_medians_and_bands_are_numpys_quantiles(band, runs):
    values = np.random.default_rng(runs).normal(size=(runs, 60))
    values[np.random.default_rng(9).random(values.shape) < 0.3] = np.nan
    values[:, 7] = np.inf
    steps = np.arange(60)
    found = plots.summarize([(steps, v) for v in values], band)
    for place in range(60):
        column = values[:, place][np.isfinite(values[:, place])]
        expected = np.quantile(column, (0.5, *band)) if column.size else [np.nan] * 3
        np.testing.assert_allclose([part[place] for part in found[1:]], expected)


def test_only_norms_are_norms():
    names = [
        *("grad_norm", "clip/norm_before", "norm", "val/update_norm", "Grad-Norm"),
        *("normalized_score", "abnormal", "norms", "batch_norm/mean", "enormous"),
    ]
    groups = by_quantity(names)
    assert groups.pop("norm") == names[:5]
    assert set(groups) == set(names[5:])


def test_norms_by_layer_share_a_panel_and_rates_by_group_that_of_the_rate():
    layers = [f"grad_norm/layers/{n}" for n in range(3)]
    rates = ["learning_rate", "learning_rate/**", "learning_rate/head"]
    curves = {n: noisy(9) for n in ["loss", "grad_norm", *layers, *rates]}
    figure = recorded(curves).plot()
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert panels.keys() == {"loss", "norm", "grad_norm", "learning_rate"}
    assert len(panels["grad_norm"].lines) == len(panels["learning_rate"].lines) == 3
    assert panels["grad_norm"].get_yscale() == panels["norm"].get_yscale()
    assert len(recorded(curves).plot(*layers).axes) == 1


def test_a_normalized_score_has_a_linear_axis_of_its_own():
    curves = {"grad_norm": [1.0, 0.1], "normalized_score": [0.2, 0.7]}
    figure = recorded(curves).plot()
    scales = {axes.get_ylabel(): axes.get_yscale() for axes in figure.axes}
    assert scales == {"norm": "log", "normalized_score": "linear"}


@pytest.mark.parametrize("values", [[-1.0, 2.0], [0.0, 0.0], [np.nan, np.nan]])
def test_norms_that_are_not_positive_have_a_linear_axis(values):
    figure = recorded({"grad_norm": values}).plot()
    assert figure.axes[0].get_yscale() == "linear"


def test_metrics_that_never_change_are_named_in_the_title():
    curves = {
        "loss": [1.0, 1.0],
        "val/accuracy": [0.5, 0.5],
        "learning_rate": [0.25, 0.25],
        "skip_nonfinite/total": [0, 0],
        "is_finite": [1, 1],
    }
    figure = recorded(curves).plot()
    assert {axes.get_ylabel() for axes in figure.axes} == {"loss", "accuracy"}
    told = "constant: learning_rate = 0.25, skip_nonfinite/total = 0"
    assert figure.get_suptitle().replace("\n", " ") == told
    asked = recorded(curves).plot("learning_rate")
    assert [axes.get_ylabel() for axes in asked.axes] == ["learning_rate"]


def test_a_history_of_constants_is_drawn():
    figure = recorded({"learning_rate": [0.25, 0.25], "is_finite": [1, 1]}).plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning_rate"]
    assert len(recorded({"is_finite": [1, 1]}).plot().axes) == 1


def test_sixty_metrics_share_few_panels():
    layers = {f"layers/{n}/{k}": noisy(9) for n in range(30) for k in ("mean", "std")}
    figure = recorded({"loss": noisy(9), **layers}).plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "mean", "std"]
    assert points_of(figure) == 61 * 9
    numbered = recorded({f"weight_{n}": noisy(9) for n in range(60)}).plot()
    assert [axes.get_ylabel() for axes in numbered.axes] == ["weight"]
    assert len(numbered.axes[0].lines) == plots.MAX_LABELS


def test_the_number_of_panels_and_of_labels_is_bounded_and_the_rest_is_named():
    letters = "abcdefghijklmnopqrstuvwxyz"
    figure = recorded({letter * 2: noisy(9) for letter in letters}).plot()
    assert len(figure.axes) == MAX_PANELS
    told = "not drawn: mm, nn, oo, pp, qq, rr and 8 more"
    assert figure.get_suptitle().replace("\n", " ") == told
    runs = {f"seed {n}": [([0, 1], [n, n])] for n in range(300)}
    (legend,) = plots.figure({"loss": runs}).legends
    assert len(legend.get_texts()) == plots.MAX_LABELS
    assert legend.get_title().get_text() == "the first 40 of 300 names"


def test_many_panels_are_drawn_in_rows():
    panels = {f"metric {n}": {"sgd": [([0, 1], [n, n])]} for n in range(60)}
    figure = plots.figure(panels)
    assert len(figure.axes) == 60
    assert max(figure.get_size_inches()) * 150 < 2**15


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_drawn_literally(name, tmp_path):
    history = recorded({name: [1.0, 0.5], f"val/{name}": [2.0, 1.5]})
    figure = history.plot()
    plots.write(figure, tmp_path / "curves.png")
    drawn = [axes.yaxis.label for axes in figure.axes]
    drawn += figure.legends[0].get_texts()
    assert len(drawn) >= 3
    for text in drawn:
        literal(text)


def test_a_name_with_dollars_reads_the_same_in_a_picture():
    figure = recorded({"cost_$x_$": [1.0, 0.5]}).plot()
    label = figure.axes[0].yaxis.label
    assert literal(label) == "cost_$x_$"


@pytest.mark.parametrize(
    "values",
    [
        *([1.7e308, -1.7e308], [5e-324, 0.0], [np.nan, np.nan], [np.inf, -np.inf]),
        *([2**64 - 1, 0], [True, False], [1.0, np.nan, 1.0], [1e-310, 1e308]),
    ],
)
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_any_number_can_be_drawn(name, values, tmp_path):
    path = plots.write(recorded({name: values}).plot(), tmp_path / "curves.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_points_between_gaps_have_markers():
    (line,) = recorded({"loss": [1.0, np.nan, 1.0]}).plot().axes[0].lines
    assert line.get_marker() == "o"


def test_steps_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="need finite steps, got"):
        plots.figure({"loss": {"sgd": [([0, np.nan], [1.0, 2.0])]}})


def test_a_picture_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    broken = recorded({"loss": [1.0, 0.5]}).plot()
    broken.suptitle("$\\frac{$")
    with pytest.raises(ValueError, match="frac"):
        plots.write(broken, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_the_benchmark_shows_both_times_by_size(capsys):
    benchmark.main(sizes=(100, 10_000), repeats=1)
    shown = capsys.readouterr().out
    assert shown.count("10000 points") == 2
    assert "History.plot" in shown

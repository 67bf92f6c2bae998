"""Critical points pass their thresholds, and optimizers leave them as predicted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.critical_points as critical_points
import experiments.saddle_points as saddle_points
import fngrad as fg
from fngrad.numerics import double_precision

pytestmark = pytest.mark.any_flags  # most of their time is compilation

TINY = {
    "hidden": 2,
    "examples": 60,
    "trajectories": 4,
    "points": 5,
    "steps": 300,
    "thresholds": critical_points.Thresholds(iterations=60),
    "distances": (1e-2, 1e-4),
    "directions": 3,
    "escape_steps": 400,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = tmp_path_factory.mktemp("saddle_points")
    found = saddle_points.main(saddle_points.Config(**TINY, runs=runs))
    (folder,) = runs.iterdir()
    written = json.loads((folder / "manifest.json").read_text())["results"]
    assert written["index"] == found["index"]
    for picture in ("index.png", "escape.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    return found


@pytest.mark.slow
def test_a_higher_loss_means_a_higher_index(results):
    assert results["points"] >= 4
    assert results["correlation"] > 0.9
    assert 0 < results["minima"] < results["points"]
    assert results["loss"] == sorted(set(results["loss"]))


@pytest.mark.slow
def test_what_is_kept_passes_the_thresholds(results):
    limits = critical_points.Thresholds()
    assert max(results["gradient_norm"]) <= limits.absolute
    assert min(results["flatness"]) >= limits.flatness


@pytest.mark.slow
@pytest.mark.parametrize("name", saddle_points.LINEAR)
def test_steps_per_decade_of_distance_are_those_of_the_spectral_radius(results, name):
    escape = results["escapes"][name]
    assert escape["per_decade"] == pytest.approx(escape["predicted"], rel=0.1, abs=1)


@pytest.mark.slow
def test_rmsprop_and_adam_hardly_depend_on_the_distance(results):
    escapes = results["escapes"]
    for name in ("rmsprop", "adam"):
        assert abs(escapes[name]["per_decade"]) < 0.2 * escapes["sgd"]["per_decade"]


def test_a_search_finds_a_saddle_from_nearby():
    def loss(w):
        return w[0] ** 2 / 2 - w[1] ** 2 / 2 + w[0] * w[1] ** 2

    limits = critical_points.Thresholds()
    with double_precision():
        start = jnp.array([0.2, -0.1])
        end = jax.jit(lambda w: critical_points.search(loss, w, limits))(start)
    np.testing.assert_allclose(end, 0, atol=limits.absolute)


def test_a_search_stops_at_a_flat_place_which_is_not_kept():
    def loss(w):  # slope 0.1 + w[0]**2 is least at 0, where nothing is critical
        return 0.1 * w[0] + w[0] ** 3 / 3 + w[1] ** 2 / 2

    limits = critical_points.Thresholds()
    with double_precision():
        start = jnp.array([0.5, 0.3])

        def measure(w):
            end = critical_points.search(loss, w, limits)
            return end, fg.curvature.critical_point(loss, end, tolerance=1e-9)

        end, point = jax.tree.map(
            lambda x: np.asarray(x)[None], jax.jit(measure)(start)
        )
    found = critical_points.Found(end, np.ones(1), point)
    assert point.gradient_norm[0] == pytest.approx(0.1, rel=1e-3)
    assert not critical_points.passes(found, np.inf, np.inf, limits.flatness)[0]
    assert not critical_points.passes(found, 1e-8, np.inf, 0.0)[0]
    assert critical_points.passes(found, np.inf, np.inf, 0.0)[0]


def points_at(losses, indices):
    """Return ends of searches with these losses and indices."""
    losses, indices = np.array(losses), np.array(indices)
    zeros = np.zeros(len(losses))
    point = fg.curvature.CriticalPoint(
        losses, zeros, zeros + 1, indices, 0 * indices, 5 - indices, -zeros, zeros + 1
    )
    return critical_points.Found(zeros[:, None], zeros + 1, point)


def test_points_of_equal_loss_count_once_from_the_lowest():
    found = points_at([3.0, 1.0, 3.0 + 1e-9, 2.0], [3, 0, 3, 1])
    places = critical_points.distinct(found, np.array([True, True, True, False]))
    assert list(places) == [1, 0]
    assert saddle_points.highest_saddle(found, places) == 0


def test_correlations_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    losses, indices = [0.1, 0.2, 0.4, 0.5, 2.0], [0, 1, 1, 5, 3]
    found, places = points_at(losses, indices), np.arange(5)
    pearson = stats.pearsonr(indices, losses).statistic
    spearman = stats.spearmanr(indices, losses).statistic
    assert critical_points.correlation(found, places) == pytest.approx(pearson)
    assert critical_points.rank_correlation(found, places) == pytest.approx(spearman)

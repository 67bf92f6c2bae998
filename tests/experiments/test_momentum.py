"""Momentum's rates are their closed forms, and its ball leaves the local minimum."""

import json

import jax
import numpy as np
import pytest

import experiments.momentum as momentum

TINY = {"kappas": (4.0, 25.0), "grid": 7, "steps": 400}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = tmp_path_factory.mktemp("momentum")
    found = momentum.main(momentum.Config(**TINY, runs=runs))
    (folder,) = runs.iterdir()
    written = json.loads((folder / "manifest.json").read_text())["results"]
    assert written["beyond"] == found["beyond"]
    for picture in ("rates.png", "ball.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", momentum.METHODS)
def test_measured_rates_equal_the_closed_forms(results, name):
    rates = results["rates"][name]
    assert rates["radius_error"] < 1e-6
    # The double eigenvalue's factor t, between the two distances.
    assert rates["descent_error"] < 0.01


@pytest.mark.slow
def test_steps_grow_as_kappa_and_with_momentum_as_its_root(results):
    rates = results["rates"]

    def growth(name):
        few, many = rates[name]["steps_for_a_digit"]
        return many / few

    assert growth("gradient descent") == pytest.approx(25 / 4, rel=0.05)
    assert growth("heavy ball") == pytest.approx((25 / 4) ** 0.5, rel=0.15)
    assert growth("Nesterov") == pytest.approx((25 / 4) ** 0.5, rel=0.3)


@pytest.mark.slow
def test_only_balls_with_momentum_roll_out_of_the_local_minimum(results):
    beyond = results["beyond"]
    assert beyond["gradient descent"]["no_leap"] == 0
    assert beyond["Nesterov"]["no_leap"] > 0.05
    assert beyond["heavy ball"]["no_leap"] > beyond["Nesterov"]["no_leap"]


@pytest.mark.slow
def test_every_ball_ends_in_one_of_the_two_minima():
    config = momentum.Config(**TINY)
    rates, starts = map(np.asarray, momentum.sides(config))
    corners = np.array([(0, -1, 0, -1), (0, 0, -1, -1)])

    def last(method):
        return jax.jit(jax.vmap(lambda a, x: momentum.roll(method, config, a, x)[-1]))

    minima = np.array([momentum.LOCAL, momentum.GLOBAL])
    for method in momentum.METHODS.values():
        ends = np.asarray(last(method)(rates[corners[0]], starts[corners[1]]))
        assert np.abs(ends[:, None] - minima).min(axis=1).max() < 0.01


def test_a_step_leaps_where_it_lands_beyond_the_barrier():
    config = momentum.Config(**TINY)
    rates, starts = (np.asarray(side) for side in momentum.sides(config))
    slope = starts**3 - starts - 0.25
    expected = starts - rates[:, None] * slope > -0.2695944
    np.testing.assert_array_equal(momentum.leaps(config), expected)
    assert expected.any()
    assert not expected.all()

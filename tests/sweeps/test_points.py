"""Points are columns of equal length, from grids and ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats.qmc as qmc

import fngrad.sweeps as sweeps
from fngrad.sweeps.searching.points import check_points


def test_a_grid_is_the_product_in_order():
    points = sweeps.grid(a=[1, 2], b=[0.5], c=[10.0, 20.0, 30.0])
    assert points["a"].tolist() == [1, 1, 1, 2, 2, 2]
    assert points["b"].tolist() == [0.5] * 6
    assert points["c"].tolist() == [10.0, 20.0, 30.0] * 2
    assert points["a"].dtype == np.int64
    assert points["c"].dtype == np.float64
    assert sweeps.grid(a=3)["a"].tolist() == [3]


@pytest.mark.parametrize("draw", [sweeps.random, sweeps.sobol])
def test_points_lie_in_their_ranges(draw):
    points = draw(
        300,
        1,
        rate=sweeps.log_uniform(1e-4, 1.0),
        decay=sweeps.uniform(-1.0, 3.0),
        size=[8, 16, 32],
        fixed=0.5,
    )
    assert all(column.shape == (300,) for column in points.values())
    rate, decay = points["rate"], points["decay"]
    assert ((rate >= 1e-4) & (rate < 1.0)).all()
    assert ((decay >= -1.0) & (decay < 3.0)).all()
    assert np.median(np.log10(rate)) == pytest.approx(-2.0, abs=0.3)
    assert np.median(decay) == pytest.approx(1.0, abs=0.4)
    assert sorted(np.unique(points["size"])) == [8, 16, 32]
    assert np.unique(points["size"], return_counts=True)[1].min() > 70
    assert np.unique(points["fixed"]).tolist() == [0.5]
    assert abs(np.corrcoef(np.log(rate), decay)[0, 1]) < 0.2


def test_a_tuple_is_a_choice_unless_it_could_be_the_bounds_of_a_range():
    for values in ([1, 8], (1, 4, 8), (True, False), (2,), np.array([0.5, 1.0])):
        drawn = sweeps.random(50, 0, a=values)["a"]
        assert set(drawn.tolist()) == set(values)
    assert sweeps.grid(a=(1, 8))["a"].tolist() == [1, 8]


@pytest.mark.parametrize("draw", [sweeps.random, sweeps.sobol])
def test_the_seed_determines_the_points(draw):
    ranges = {"x": sweeps.uniform(0.0, 1.0)}
    np.testing.assert_array_equal(draw(5, 1, **ranges)["x"], draw(5, 1, **ranges)["x"])
    assert (draw(5, 1, **ranges)["x"] != draw(5, 2, **ranges)["x"]).all()


def test_random_takes_a_typed_key():
    ranges = {"x": sweeps.uniform(0.0, 1.0)}
    a, b = (sweeps.random(4, key, **ranges)["x"] for key in (3, jax.random.key(3)))
    np.testing.assert_array_equal(a, b)


def test_sobol_gives_the_same_points_with_scipy_before_1_15(monkeypatch):
    """Its argument is called ``seed``, and means another generator for an int."""
    expected = sweeps.sobol(8, 3, a=sweeps.uniform(0.0, 1.0))

    class Old(qmc.Sobol):
        def __init__(self, d, *, scramble=True, bits=None, seed=None):
            super().__init__(d, scramble=scramble, bits=bits, rng=seed)

    monkeypatch.setattr(qmc, "Sobol", Old)
    points = sweeps.sobol(8, 3, a=sweeps.uniform(0.0, 1.0))
    np.testing.assert_array_equal(points["a"], expected["a"])


def test_sobol_keeps_its_points():
    """A seed gives the same points with every version of scipy, here those of 1.17."""
    points = sweeps.sobol(4, 3, a=sweeps.uniform(0.0, 1.0))
    expected = [0.11320535, 0.87702161, 0.59957826, 0.3945702]
    np.testing.assert_allclose(points["a"], expected, rtol=1e-7)


def test_sobol_points_are_even():
    points = sweeps.sobol(64, a=sweeps.uniform(0.0, 1.0), b=sweeps.uniform(0.0, 1.0))
    cells = (8 * points["a"]).astype(int) * 8 + (8 * points["b"]).astype(int)
    assert len(np.unique(cells)) == 64  # one per cell: a (0, 6, 2)-net
    assert sweeps.sobol(5, a=sweeps.uniform(0.0, 1.0))["a"].shape == (5,)
    assert sweeps.sobol(1, a=sweeps.uniform(0.0, 1.0))["a"].shape == (1,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sweeps.uniform(1.0, 1.0), "need low < high, got low=1.0 high=1.0"),
        (lambda: sweeps.uniform(0.0, np.inf), "need a finite number high"),
        (lambda: sweeps.uniform("a", 1.0), "need a finite number low, got low='a'"),
        (lambda: sweeps.log_uniform(0.0, 1.0), "need 0 < low in a log_uniform range"),
        (lambda: sweeps.choice([]), r"need some numbers for 'choice', got shape \(0,"),
        (
            lambda: sweeps.choice([1.0, np.nan]),
            "finite in float32, got nan",
        ),
        (lambda: sweeps.grid(), "need at least one hyperparameter, got none"),
        (lambda: sweeps.grid(a=[]), r"need some numbers for 'a', got shape \(0,\)"),
        (lambda: sweeps.grid(a=[[1.0]]), r"need some numbers for 'a', got shape \(1,"),
        (lambda: sweeps.random(0, 0, a=1.0), "need an int n >= 1, got n=0"),
        (lambda: sweeps.random(3, 0), "need at least one hyperparameter, got none"),
        (lambda: sweeps.sobol(2, a=[np.inf]), "got inf at 'a'"),
        (
            lambda: sweeps.random(3, 0, rate=(np.float32(0.5), 1)),
            r"need sweeps.uniform\(0.5, 1\) .* got the tuple rate=\(",
        ),
        (
            lambda: sweeps.sobol(2, a=(0.1, 1.0)),
            r"need sweeps.uniform\(0.1, 1.0\) or sweeps.log_uniform\(0.1, 1.0\) for a "
            r"range, or the list \[0.1, 1.0\] for two values, got the tuple a=\(0.1, 1",
        ),
        (lambda: check_points({}), "need at least one column of points"),
        (
            lambda: check_points({"a": np.ones(2), "b": {"c": np.ones(3)}}),
            r"need columns of one length, got {'a': 2, 'b/c': 3}",
        ),
        (lambda: check_points({"a": np.ones(0)}), "need at least one point"),
        (
            lambda: check_points({"a": 0.1}),
            "got a scalar at 'a': sweeps.grid takes numbers and lists of them",
        ),
        (lambda: check_points({"a": [0.1]}), "got a scalar at 'a/0'"),
        (lambda: check_points({"a": np.array([1.0, np.nan])}), "got nan at 'a'"),
        (
            lambda: check_points({"a": np.array([1.0, 1e300])}),
            r"finite in float32, got 1e\+300 at 'a'",
        ),
        (
            lambda: check_points({"a": np.array([2**40])}),
            "need integers that fit in int32, got values from 1099511627776",
        ),
    ],
)
def test_bad_points_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "leaf", [np.array(["sgd", "adam"]), np.array([None, 1]), jax.random.key(0)[None]]
)
def test_values_other_than_numbers_belong_in_static(leaf):
    with pytest.raises(
        TypeError, match=r"need numeric points, got .* at 'a/b'.*static"
    ):
        check_points({"a": {"b": leaf}})
    with pytest.raises(TypeError, match="at 'optimizer'"):
        sweeps.grid(optimizer=["sgd", "adam"])


def test_columns_may_be_bools_low_precision_floats_and_vectors():
    points = {"a": np.array([True, False]), "b": jnp.ones((2, 3), jnp.bfloat16)}
    columns, count = check_points(points)
    assert count == 2
    assert columns["b"].dtype == jnp.bfloat16

"""Curves in letters have their points where the axes say."""

import numpy as np

from fngrad.programs.text_curves import draw

STEPS = np.arange(1, 6)


def area(picture: str) -> list[str]:
    """Return the rows inside the axes."""
    return [line.partition("|")[2] for line in picture.splitlines() if "|" in line]


def test_a_falling_curve_goes_from_the_upper_left_to_the_lower_right():
    rows = area(draw({"a": (STEPS, 6.0 - STEPS)}, width=5, height=5))
    assert rows == ["*", " *", "  *", "   *", "    *"]


def test_a_range_of_more_than_tenfold_is_logarithmic():
    picture = draw({"a": (STEPS, 10.0**-STEPS)}, width=5, height=5)
    assert area(picture) == ["*", " *", "  *", "   *", "    *"]
    assert picture.endswith("(logarithmic)")
    assert "1e-05 |" in picture


def test_curves_of_different_lengths_share_the_axes():
    curves = {"long": (STEPS, STEPS / 1.0), "short": (STEPS[:2], 5.0 - STEPS[:2])}
    rows = area(draw(curves, width=5, height=5))
    assert rows == ["    *", "o  *", " o*", " *", "*"]


def test_what_is_not_finite_is_left_out():
    values = np.array([np.nan, 2.0, np.inf, 1.0, np.nan])
    rows = area(draw({"a": (STEPS, values)}, width=3, height=2))
    assert rows == ["**", "  *"]
    assert draw({"a": (STEPS, np.full(5, np.nan))}) == ""
    assert draw({}) == ""


def test_equal_values_and_a_single_point_are_drawn():
    assert area(draw({"a": (STEPS, np.ones(5))}, width=5, height=3))[1] == "*****"
    assert "*" in area(draw({"a": (STEPS[:1], np.ones(1))}, width=5, height=3))[1]


def test_values_near_the_largest_float_do_not_overflow():
    values = np.array([-1e308, 0.0, 1e308, 0.0, -1e308])
    rows = area(draw({"a": (STEPS, values)}, width=5, height=3))
    assert rows == ["  *", " * *", "*   *"]

"""Curves as SVG."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fngrad.programs.curves import svg


def points(text):
    line = ElementTree.fromstring(f"<div>{text}</div>").find(".//polyline")
    pairs = line.attrib["points"].split()
    return np.array([[float(x) for x in pair.split(",")] for pair in pairs])


def test_a_falling_line_falls_from_corner_to_corner():
    drawn = points(svg("loss", np.arange(3), np.array([3.0, 2.0, 1.0])))
    np.testing.assert_array_equal(drawn, [[4, 4], [160, 45], [316, 86]])


def test_a_range_of_more_than_tenfold_is_logarithmic():
    text = svg("loss", np.arange(3), np.array([100.0, 10.0, 1.0]))
    np.testing.assert_array_equal(points(text)[:, 1], [4, 45, 86])
    assert "loss: 100 to 1 (logarithmic)" in text


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1.7e308])
def test_any_magnitude_stays_within_the_picture(scale):
    values = scale * np.sin(np.arange(5000.0))
    drawn = points(svg("loss", np.arange(5000), values))
    assert len(drawn) == 160
    assert np.all((drawn >= 0) & (drawn <= [320, 90]))


@pytest.mark.parametrize(
    "values", [[], [1.0], [np.nan, np.inf, 2.0]], ids=["none", "one", "one finite"]
)
def test_fewer_than_two_finite_values_draw_nothing(values):
    assert svg("loss", np.arange(len(values)), np.array(values)) == ""


def test_equal_values_lie_in_the_middle():
    drawn = points(svg("loss", np.arange(2), np.array([0.0, 0.0])))
    np.testing.assert_array_equal(drawn[:, 1], [45, 45])


def test_a_name_is_escaped():
    assert "<b>" not in svg("<b>", np.arange(2), np.array([0.0, 1.0]))

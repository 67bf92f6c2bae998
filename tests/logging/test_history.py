"""The history of a run, recorded in blocks."""

import numpy as np
import pytest

from fngrad.logging.history import History


def test_a_history_grows_by_blocks_of_any_size_and_can_be_truncated():
    history = History()
    for start in range(0, 50, 5):
        steps = np.arange(start, start + 5)
        history.extend(steps, {"a": steps * 2.0, "b": np.ones((5, 2), np.float32)})
    history.extend(np.array([7]), {"c": np.array([1])})
    np.testing.assert_array_equal(history["a"], 2.0 * np.arange(50))
    assert history["b"].shape == (50, 2)
    history["a"][:] = 0  # a copy
    assert history.last("a") == 98.0
    history.truncate(6)
    np.testing.assert_array_equal(history.steps("a"), np.arange(7))
    assert set(history) == {"a", "b"}
    history.extend(np.array([7]), {"a": np.array([1.5])})
    assert history.last("a") == 1.5
    with pytest.raises(KeyError, match="got 'c'"):
        history.steps("c")


def test_a_history_of_many_metrics_is_short():
    history = History()
    history.extend(np.array([1]), {f"m{i}": np.array([0.5]) for i in range(15)})
    assert repr(history).endswith("m10=0.5, m11=0.5, and 3 more)")


def test_the_best_value_is_known_from_the_name():
    history = History()
    values = np.array([0.5, np.nan, 0.75, 0.25])
    names = ("val/loss", "val/accuracy", "own")
    history.extend(np.array([2, 4, 6, 8]), dict.fromkeys(names, values))
    assert history.summary().splitlines()[1:] == [
        "val/loss            4  0.25  0.25        8",
        "val/accuracy        4  0.25  0.75        6",
        "own                 4  0.25",
    ]


def test_a_notebook_shows_a_table_and_the_curve_of_the_loss():
    history = History()
    history.extend(np.array([1, 2]), {"loss": np.array([2.0, 1.0])})
    html = history._repr_html_()
    assert "<polyline" in html
    assert "metric  records" in html
    assert History()._repr_html_().count("svg") == 0


def test_metrics_by_layer_come_last_and_their_number_is_told():
    history = History()
    layers = [f"grad_norm/layers/{i}" for i in range(14)]
    names = ["grad_norm", *layers, "loss"]
    values = dict.fromkeys(names, np.array([0.5]))
    history.extend(np.array([1]), values)
    assert repr(history).startswith("History(grad_norm=0.5, loss=0.5, grad_norm/la")
    lines = history.summary().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["grad_norm", "loss", layers[0]]
    assert lines[-1] == "... and 2 more by layer or group"
    assert len(lines) == 1 + 2 + 12 + 1

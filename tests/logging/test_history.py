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

"""What the result of a sweep shows of itself."""

import numpy as np

from fngrad.sweeps.results.result import SweepResult

TEXT = """\
SweepResult: 3 points, 2 seeds, 1 of 6 lanes diverged
            from      to  shape
rate        0.001     1   (3,)
rule        2 values      (3,)
loss, last  3         23  (3, 2, 4)"""


def test_a_sweep_shows_its_columns_and_its_last_metrics():
    points = {"rate": np.array([0.001, 0.1, 1.0]), "rule": np.array(["a", "b", "a"])}
    losses = np.arange(24.0).reshape(3, 2, 4)
    diverged = np.array([[-1, -1], [-1, 2], [-1, -1]])
    result = SweepResult(points, None, {"loss": losses}, diverged, {})
    assert repr(result) == TEXT
    assert f">{TEXT}</pre>" in result._repr_html_()
    assert len(tuple(result)) == 5

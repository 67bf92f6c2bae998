"""What the result of a run shows of itself."""

import numpy as np
from linear_regression import first_state, quiet_fit

import fngrad as fg
from fngrad.logging.history import History

TEXT = """\
FitResult(step=0): completed
metric        records  last  best  at step
loss                3  0.25   0.2        2
val/accuracy        1   0.5   0.5        3"""


def history():
    found = History()
    found.extend(np.arange(1, 4), {"loss": np.array([0.5, 0.2, 0.25])})
    found.extend(np.array([3]), {"val/accuracy": np.array([0.5])})
    return found


def test_a_result_shows_the_last_and_the_best_metrics():
    result = fg.FitResult(first_state(), history(), "completed")
    assert repr(result) == TEXT
    html = result._repr_html_()
    assert f">{TEXT}</pre>" in html
    assert "loss: 0.5 to 0.25" in html


def test_a_result_without_records_shows_why_the_run_stopped():
    result = fg.FitResult(first_state(), History(), "interrupted")
    assert repr(result) == "FitResult(step=0): interrupted"
    assert "svg" not in result._repr_html_()


def test_a_fit_returns_three_fields():
    state, history, stopped = result = quiet_fit(num_steps=3)
    assert repr(result).startswith("FitResult(step=3): completed\nmetric")
    assert (int(state.step), len(history["loss"]), stopped) == (3, 3, "completed")

"""A warning of the package shows the line of its caller."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from linear_regression import ARRAYS, STEP, first_state

from fngrad.fitting.training_loop import fit
from fngrad.programs.caller_warnings import warn


def test_the_line_is_the_innermost_outside_of_fngrad_and_jax():
    def traced(x):
        warn("in a function that JAX calls")  # traced
        return x

    @contextlib.contextmanager
    def opened():
        warn("in a context")  # opened
        yield

    def both():
        jax.eval_shape(traced, jnp.ones(2))
        with opened():
            pass

    with pytest.warns(UserWarning, match="in a") as caught:
        both()
    assert [marked_line(w) for w in caught] == ["traced", "opened"]


def test_fit_warns_at_the_line_that_called_it():
    batches = [jax.tree.map(lambda x, n=n: x[:n], ARRAYS) for n in (4, 4, 3)]
    with pytest.warns(UserWarning, match="batch") as caught:
        fit(STEP, first_state(), iter(batches), num_steps=3, progress=False)  # fit
    texts = [str(warning.message) for warning in caught]
    assert "from an iterable" in texts[0]
    assert "a batch unlike the first" in texts[1]
    assert [marked_line(warning) for warning in caught] == ["fit", "fit"]


def marked_line(warning) -> str:
    """Return the comment on the line of this file that a warning shows."""
    assert warning.filename == __file__, warning
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return lines[warning.lineno - 1].partition("  # ")[2]

"""Interrupted runs, and the comparison of two runs bit for bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import ARRAYS, metric_fn, quiet_fit

import fngrad.tree as tree

FULL = OSError(28, "No space left on device")


class OwnError(Exception):
    """An exception that a user raises."""


def reached(caught) -> Any:
    """Return the error that ended a run; it has the state and the history."""
    return caught.value


def raise_at(at, error):
    """Return a callback or a logger that raises at a step, the first time."""
    left = [error]

    def fails(step, *_):
        if step == at and left:
            raise left.pop()

    return fails


class KilledError(KeyboardInterrupt):
    """Ends a run at once, like a second Ctrl-C: nothing more is saved."""


def kill_at(step):
    """Return a logger that ends the run at a step, before that step is saved."""

    def logger(now, values):
        if now >= step:
            raise KilledError

    return logger


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes(), leaf.dtype, leaf.shape


def assert_same_run(result, expected):
    """Require that states and histories have the same bits."""
    got, want = tree.leaf_paths(result.state), tree.leaf_paths(expected.state)
    assert got.keys() == want.keys()
    assert [path for path in got if bits(got[path]) != bits(want[path])] == []
    assert set(result.history) == set(expected.history)
    for name in expected.history:
        assert bits(result.history[name]) == bits(expected.history[name]), name
        np.testing.assert_array_equal(
            result.history.steps(name), expected.history.steps(name), name
        )


WATCHED = {"metric_fn": metric_fn, "eval_data": ARRAYS, "eval_every": 5, "log_every": 3}


def saving_fit(folder, num_steps=20, **options):
    options = {"checkpoint_dir": folder, "save_every": 4, "keep_best": None} | options
    options = WATCHED | options
    return quiet_fit(num_steps=num_steps, **options)


def killed_fit(folder, at, **options):
    with pytest.raises(KilledError):
        saving_fit(folder, loggers=[kill_at(at)], **options)

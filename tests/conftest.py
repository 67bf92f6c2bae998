"""Strictness for every test: promotion, ranks, warnings (see pyproject.toml)."""

import signal

import chex
import jax
import precision
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _forget_traces():
    chex.clear_trace_counter()


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Let Ctrl-C interrupt, also where the suite is a background job of a script.

    A shell starts such a job with SIGINT ignored, and what it starts inherits that.
    """
    usual = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture
def x64():
    """Run the test in double precision."""
    with precision.x64():
        yield


@pytest.fixture
def usual_signals():
    """Handle signals as a program in the foreground does, wherever the tests run.

    A background job of a script has SIGINT ignored, and so do its children.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {n: signal.signal(n, handler) for n, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)

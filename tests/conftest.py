"""Strictness for every test: promotion, ranks, warnings (see pyproject.toml)."""

import chex
import jax
import precision
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _forget_traces():
    chex.clear_trace_counter()


@pytest.fixture
def x64():
    """Run the test in double precision."""
    with precision.x64():
        yield

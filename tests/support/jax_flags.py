"""Flags of JAX that exchange primitives; not every line of JAX has each."""

import contextlib

import jax
import pytest

EXCHANGING = ("jax_remat3", "jax_custom_jvp3", "jax_custom_vjp3")
SCAN = "jax_scan3"  # whose loops JAX cannot differentiate or batch yet


def require(name):
    """Skip a test whose flag this line of JAX lacks."""
    if not hasattr(jax.config, name):
        pytest.skip(f"JAX {jax.__version__} has no flag {name}")


@contextlib.contextmanager
def raised(name):
    """Trace under a flag; it is lowered again at the end."""
    require(name)
    old = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, old)

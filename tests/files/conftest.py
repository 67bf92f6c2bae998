"""The settings of JAX's compilation cache, as they were before a test."""

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def settings():
    """Put JAX's settings back after the test."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()

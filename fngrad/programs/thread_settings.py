"""Functions for another thread, under the settings of JAX of the one that gives them.

A context of JAX, such as `jax.default_device`, holds in the thread that entered it.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.experimental

_R = TypeVar("_R")

# Those that decide what a program computes, where, and what JAX refuses.
_SETTINGS = (
    "debug_infs",
    "debug_key_reuse",
    "debug_nans",
    "default_device",
    "default_matmul_precision",
    "default_prng_impl",
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "threefry_partitionable",
)


def with_settings_of_this_thread(fn: Callable[..., _R]) -> Callable[..., _R]:
    """Return a function that runs under the settings that are in force here and now.

    Transfers between host and device are allowed in it: what is given to another
    thread is meant to move.

    Example:
        >>> import threading
        >>> import jax
        >>> from fngrad.programs.thread_settings import with_settings_of_this_thread
        >>> def show():
        ...     print(jax.config.jax_numpy_rank_promotion)
        >>> with jax.numpy_rank_promotion("warn"):
        ...     thread = threading.Thread(target=with_settings_of_this_thread(show))
        >>> thread.start()
        warn
    """
    values = {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}

    @functools.wraps(fn)
    def under_settings(*args: Any, **kwargs: Any) -> _R:
        with contextlib.ExitStack() as stack:
            for name, value in values.items():
                stack.enter_context(_context(name)(value))
            stack.enter_context(jax.transfer_guard("allow"))
            return fn(*args, **kwargs)

    return under_settings


def _context(name: str) -> Any:
    """Return the maker of the context of a setting; that of x64 moved in JAX 0.8."""
    module: Any = jax if hasattr(jax, name) else jax.experimental
    return getattr(module, name)

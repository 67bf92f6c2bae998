"""Threads that begin with the settings of JAX of the one that starts them.

A context of JAX, such as `jax.default_device`, holds in the thread that entered it.
"""

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental

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

# Those that each thread entered, held until it ends: a context that was made from a
# generator ends where it is dropped.
_ENTERED: contextvars.ContextVar[contextlib.ExitStack] = contextvars.ContextVar(
    "entered"
)


def settings_of_this_thread() -> Callable[[], None]:
    """Return what puts the settings in force here and now in force in another thread.

    It is called in that thread, where they hold until the thread ends. Transfers
    between host and device are allowed there: what is given to another thread is meant
    to move.

    Example:
        >>> import concurrent.futures
        >>> import jax
        >>> from fngrad.programs.thread_settings import settings_of_this_thread
        >>> with jax.numpy_rank_promotion("warn"):
        ...     begin = settings_of_this_thread()
        >>> with concurrent.futures.ThreadPoolExecutor(initializer=begin) as pool:
        ...     future = pool.submit(lambda: jax.config.jax_numpy_rank_promotion)
        >>> print(future.result())
        warn
    """
    values = {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}

    def begin() -> None:
        contexts = contextlib.ExitStack()
        _ENTERED.set(contexts)
        for name, value in values.items():
            contexts.enter_context(_context(name)(value))
        contexts.enter_context(jax.transfer_guard("allow"))

    return begin


def _context(name: str) -> Any:
    """Return the maker of the context of a setting; that of x64 moved in JAX 0.8."""
    module: Any = jax if hasattr(jax, name) else jax.experimental
    return getattr(module, name)

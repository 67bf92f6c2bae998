"""Functions with another implementation on CPU, chosen when a program is lowered."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def by_platform(
    cpu: Callable[..., Any], default: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a function that runs ``cpu`` on CPU and ``default`` elsewhere.

    Both take the same arrays and return arrays of the same shapes and dtypes. Until a
    program is lowered it holds both, as a ``cond`` over a ``platform_index``; an
    exported program may hold both for good. A backward pass recomputes the values in
    between, since it would otherwise hold those of both implementations.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.programs.platforms import by_platform
        >>> double = by_platform(cpu=lambda x: x + x, default=lambda x: 2 * x)
        >>> print(jax.grad(double)(1.5))
        2.0
    """

    def chosen(*args: Any) -> Any:
        return lax.platform_dependent(*args, cpu=cpu, default=default)

    return jax.checkpoint(chosen, prevent_cse=False)

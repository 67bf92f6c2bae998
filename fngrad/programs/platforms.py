"""Platforms: which one is required, and what has another implementation on CPU."""

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

    if getattr(jax.config, "jax_remat3", False):  # which transposes no checkpoint
        return chosen
    return jax.checkpoint(chosen, prevent_cse=False)


def check_backend(required: str | None) -> None:
    """Raise unless JAX runs on the required backend; ``None`` allows any.

    Args:
        required: ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    Raises:
        RuntimeError: if it runs on another, or cannot start.

    Example:
        >>> from fngrad.programs.platforms import check_backend
        >>> check_backend(None)
    """
    if required is None:
        return
    backend = jax.default_backend()
    if required != backend:
        raise RuntimeError(
            f"need the backend {required!r}, got {backend!r}: JAX found no "
            f"{required}, or the installed jaxlib does not support it"
        )

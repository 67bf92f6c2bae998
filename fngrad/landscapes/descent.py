"""Paths of optimizers on a landscape."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.transforms.core import TransformLike, apply_updates, chain
from fngrad.types import Key, Scalar


def descend(
    f: Callable[[jax.Array], jax.Array],
    x0: Any,
    optimizer: TransformLike,
    num_steps: int,
    *,
    noise: Scalar = 0.0,
    key: int | Key = 0,
) -> jax.Array:
    """Return the path of an optimizer from x0, shape (num_steps + 1, dimension).

    Args:
        f: a point of shape (dimension,) -> a real scalar.
        x0: where to start: an array, or a tuple of numbers.
        optimizer: a transform.
        num_steps: how many steps to make, a Python int >= 0.
        noise: standard deviation of Gaussian noise added to the gradient's entries.
        key: draws the noise.

    Raises:
        ValueError: if the number of steps is negative, or x0 is not of shape
            (dimension,).

    Example:
        >>> import fngrad as fg
        >>> from fngrad.landscapes import descend, quadratic
        >>> path = descend(quadratic, (1.0, 1.0), fg.sgd(0.05), num_steps=20)
        >>> print(path.shape, path[1])
        (21, 2) [0.95 0.5 ]
    """
    num_steps = numerics.check_count("num_steps", num_steps)
    numerics.check_unmasked("x0", x0)
    start = jnp.asarray(x0, jnp.result_type(float))
    if start.ndim != 1:
        raise ValueError(f"need a start of shape (dimension,), got {start.shape}")
    transform = chain(optimizer)
    keys = jax.random.split(numerics.key(key), num_steps)

    def step(carry: Any, k_noise: Key) -> tuple[Any, jax.Array]:
        x, state = carry
        e = jax.random.normal(k_noise, x.shape, x.dtype)
        gradient = jax.grad(f)(x) + numerics.scaled(noise, e)
        updates, state = transform.update(gradient, state, x)
        x = apply_updates(x, updates)
        return (x, state), x

    _, path = jax.lax.scan(step, (start, transform.init(start)), keys)
    return jnp.concatenate([start[None], path])

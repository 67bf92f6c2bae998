"""The indices of a source's next batches, of many steps by one program.

On the CPU a program waits for those before it, a training step among them. A program
per batch would hold up each batch for a step.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import fngrad.numerics as numerics
from fngrad.data.dataset import Dataset, order_alone

INDICES = 4096  # of one program, about


def next_indices(order: Dataset, start: int) -> np.ndarray:
    """Return the indices of the batches from ``start`` on: int64, shape (steps, b).

    Raises:
        ValueError: if ``start`` is beyond int32.
    """
    if start > numerics.MAX_STEP:
        raise ValueError(f"need 0 <= step <= {numerics.MAX_STEP}, got step={start}")
    count = min(max(1, INDICES // order.batch_size), numerics.MAX_STEP + 1 - start)
    steps = np.arange(start, start + count, dtype=np.uint32)
    with on_host():
        return np.asarray(_indices(order_alone(order), steps)).astype(np.int64)


def each_step(
    begin: Callable[[int], Callable[[], np.ndarray]], start: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the steps from ``start`` on, each with the indices of its batch.

    ``begin(start)`` may begin to compute `next_indices`, which what it returns gives;
    it is called once ahead.
    """
    ahead = begin(start)
    while True:
        block = ahead()
        ahead = begin(start + len(block))
        yield from enumerate(block, start)
        start += len(block)


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the order is computed on the CPU, if JAX has one."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names others only
        return contextlib.nullcontext()


@jax.jit
def _indices(order: Dataset, steps: jax.Array) -> jax.Array:
    return jax.vmap(order.indices)(steps)

"""Batches that threads read before they are asked for."""

import collections
import contextvars
import functools
import itertools
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fngrad.data.dataset import Dataset
from fngrad.data.order_ahead import each_step, next_indices
from fngrad.programs.thread_settings import settings_of_this_thread
from fngrad.types import Batch


def read_ahead(
    read: Callable[[int, np.ndarray], Batch],
    order: Dataset,
    start: int,
    prefetch: int,
    threads: int,
) -> Generator[tuple[int, Batch], None, None]:
    """Yield the steps from ``start`` on, each with what ``read(step, indices)`` gives.

    Up to ``prefetch`` batches are read or wait, the one that is asked for among them,
    under the settings of JAX of the thread that asks for the first. Further reads begin
    when half are used, or before that, lest a thread has nothing to read: a thread that
    begins to read holds Python's lock while the next step should be dispatched, and
    several reads that begin at once hold up fewer steps.

    Raises:
        Exception: what ``read`` raises, when its batch is asked for.
    """
    if prefetch == 0:
        steps = each_step(lambda t: functools.partial(next_indices, order, t), start)
        for step, indices in steps:
            yield step, read(step, indices)
        return
    few = max(prefetch // 2, min(threads, prefetch - 1))
    waiting: collections.deque[tuple[int, Future[Batch]]] = collections.deque()
    with ThreadPoolExecutor(threads, "fngrad-read", settings_of_this_thread()) as pool:
        steps = each_step(lambda t: pool.submit(next_indices, order, t).result, start)
        try:
            while True:
                room = prefetch - len(waiting) if len(waiting) <= few else 0
                for step, indices in itertools.islice(steps, room):
                    # In a context of its own, which it may copy: that of the thread
                    # holds the settings, which must end in it.
                    run = contextvars.Context().run
                    waiting.append((step, pool.submit(run, read, step, indices)))
                step, future = waiting.popleft()
                yield step, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

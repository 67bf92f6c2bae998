"""Batches that threads read before they are asked for."""

import collections
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

    Up to ``prefetch`` batches are read ahead, under the settings of JAX of the thread
    that asks for the first. Further reads begin when half of those are used: a thread
    that begins to read holds Python's lock while the next step should be dispatched,
    and several reads that begin at once hold up fewer steps.

    Raises:
        Exception: what ``read`` raises, when its batch is asked for.
    """
    if prefetch == 0:
        begin = functools.partial(functools.partial, next_indices, order)
        for step, indices in each_step(begin, start):
            yield step, read(step, indices)
        return
    few = max(prefetch // 2, min(threads, prefetch - 1))
    waiting: collections.deque[tuple[int, Future[Batch]]] = collections.deque()
    with ThreadPoolExecutor(threads, "fngrad-read", settings_of_this_thread()) as pool:
        steps = each_step(
            lambda first: pool.submit(next_indices, order, first).result, start
        )
        try:
            while True:
                room = prefetch - len(waiting) if len(waiting) <= few else 0
                for step, indices in itertools.islice(steps, room):
                    waiting.append((step, pool.submit(read, step, indices)))
                step, future = waiting.popleft()
                yield step, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

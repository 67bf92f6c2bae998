"""Threads that read ahead: when they begin to read, and under which settings."""

import contextvars
import gc
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import fngrad.data as data
import fngrad.data.order_ahead as order_ahead
import fngrad.data.reading_ahead as reading_ahead

N = 11
ARRAYS = {"x": np.arange(N)}


@pytest.mark.parametrize(
    ("prefetch", "threads", "expected"),
    [
        (4, 1, "arrrraarraarr"),  # a: asks, r: begins to read
        (4, 3, "arrrrarararar"),
        (3, 2, "arrrarararar"),
        (1, 2, "ararararar"),
    ],
)
def test_reads_begin_together_when_half_of_those_ahead_are_used(
    monkeypatch, prefetch, threads, expected
):
    log = []

    class Logged(ThreadPoolExecutor):
        def submit(self, fn, /, *args):
            if fn is not order_ahead.next_indices:
                log.append("r")
            return super().submit(fn, *args)

    monkeypatch.setattr(reading_ahead, "ThreadPoolExecutor", Logged)
    source = data.from_source(ARRAYS, N, 2, prefetch=prefetch, threads=threads)
    batches = source.batches()
    for _ in range(5):
        log.append("a")
        next(batches)
    batches.close()
    assert "".join(log) == expected


def test_settings_end_in_their_thread_whatever_a_reader_keeps():
    kept = []

    def read(indices):
        kept.append(contextvars.copy_context())
        return {"i": indices}

    batches = data.from_source(read, N, 2, prefetch=2).batches()
    next(batches)
    batches.close()
    with jax.transfer_guard("disallow"):
        kept.clear()
        gc.collect()
        assert jax.config.jax_transfer_guard == "disallow"  # pyright: ignore

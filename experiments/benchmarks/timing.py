"""Timing side by side: interleaved repeats, medians, a table with ratios.

A machine's speed drifts, so cases take turns: every repeat runs each case once, and a
ratio is the median over the repeats of the ratio within one.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import fngrad.programs.text_tables as text_tables

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


def seconds(fn: Callable[[], Any]) -> float:
    """Return the seconds of one call, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def interleave(
    cases: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Return ``repeats`` measurements of every case, taken in turns.

    Args:
        cases: name -> a function that measures itself and returns seconds, such as
            ``lambda: seconds(fn) / num_steps``.
        repeats: how often each is measured, after one round that is thrown away:
            it compiles and warms caches. With 0 that round is what is measured.
    """
    rounds = [
        {name: case() for name, case in cases.items()} for _ in range(repeats + 1)
    ]
    return {name: [times[name] for times in rounds[1:] or rounds] for name in cases}


def paired_ratio(
    times: Mapping[str, Sequence[float]], case: str, against: str
) -> float:
    """Return the median, over the repeats, of the ratio of two cases in one repeat.

    The machine's load changes little within a repeat, so the median is steadier than
    the ratio of the medians.
    """
    pairs = zip(times[case], times[against], strict=True)
    return statistics.median(a / b for a, b in pairs)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Fit times = c * sizes**p over the larger half, where overheads are small."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0])


def table(times: Mapping[str, Sequence[float]], against: str, unit: str = "us") -> str:
    """Write one row per case: median, quartiles, and the paired ratio to one case.

    Args:
        times: name -> seconds, as `interleave` gives.
        against: the case that the ratios are against.
        unit: ``"s"``, ``"ms"`` or ``"us"``.
    """
    rows = [["", unit, "quartiles", "ratio"]]
    for name, values in times.items():
        low, middle, high = (f"{UNITS[unit] * q:.3f}" for q in _quartiles(values))
        ratio = f"{paired_ratio(times, name, against):.2f}"
        rows.append([name, middle, f"{low} - {high}", ratio])
    return text_tables.table(rows, left=1)


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")

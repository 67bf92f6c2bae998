"""How fast a device multiplies and copies, against the peak of its chip."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fngrad.accelerators.chips import chip_of_kind
from fngrad.accelerators.findings import OK, WARNING, Finding

SIZES = {"cpu": (1024, 2**24)}  # rows of the matrices, entries that are copied
_ACCELERATOR = (8192, 2**27)
_SECONDS = 0.3  # for each measurement
_MOST = 20  # results of products that wait on the device at once
_SLOW = 0.3  # of the peak: below it something is wrong with the device or its use


class Speed(NamedTuple):
    """What one device does per second."""

    dtype: str  # of the products
    flops: float  # of products of matrices
    bandwidth: float  # bytes read and written by a copy in place
    flops_share: float | None  # of the chip's peak, where that is known
    bandwidth_share: float | None


def measure_speed(device: Any, sizes: tuple[int, int] | None = None) -> Speed:
    """Time products of matrices and copies, for about a second.

    An accelerator multiplies in bfloat16, or in float16 if it is a GPU older than
    Ampere, which has no units for bfloat16; a CPU multiplies in float32.

    Args:
        device: of ``jax.devices()``.
        sizes: rows of the square matrices, and how many numbers of float32 are copied;
            None takes `SIZES`, which keep the device busy.
    """
    rows, entries = sizes or SIZES.get(device.platform, _ACCELERATOR)
    dtype = products_dtype(device)
    with jax.transfer_guard("allow"), jax.default_device(device):
        flops = 2 * rows**3 * _products_per_second(rows, dtype)
        bandwidth = 8 * entries * _copies_per_second(entries)
    chip = chip_of_kind(device.device_kind)
    return Speed(
        dtype=jnp.dtype(dtype).name,
        flops=flops,
        bandwidth=bandwidth,
        flops_share=None if chip is None else flops / chip.flops,
        bandwidth_share=None if chip is None else bandwidth / chip.bandwidth,
    )


def products_dtype(device: Any) -> Any:
    """Return the dtype in which a device multiplies fastest."""
    if device.platform == "cpu":
        return jnp.float32
    capability = str(getattr(device, "compute_capability", None) or "8")  # of CUDA
    major = capability.partition(".")[0]
    is_old = device.platform == "gpu" and major.isdigit() and int(major) < 8
    return jnp.float16 if is_old else jnp.bfloat16


def _products_per_second(rows: int, dtype: Any) -> float:
    # Zeros would cost less power, so some GPUs would multiply them faster.
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"))
    a, b = (jax.random.normal(key, (rows, rows), dtype) for key in keys)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=dtype))
    return _per_second(lambda _: multiply(a, b), a)


def _copies_per_second(entries: int) -> float:
    add = jax.jit(lambda x: x + jnp.float32(1), donate_argnums=0)
    return _per_second(add, jnp.zeros(entries, jnp.float32))


def _per_second(call: Callable[[Any], Any], x: Any) -> float:
    """Return how often a function of its last result runs per second, at its best."""
    x = jax.block_until_ready(call(x))  # compiles
    began = time.perf_counter()
    x = jax.block_until_ready(call(x))
    once = time.perf_counter() - began
    repeats = max(1, min(_MOST, int(_SECONDS / 3 / max(once, 1e-6))))
    best = once
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(repeats):  # the device has the next before it ends the last
            x = call(x)
        jax.block_until_ready(x)
        best = min(best, (time.perf_counter() - began) / repeats)
    return 1 / best


def judge_speed(found: Speed) -> Finding:
    """Return what is to be said about the speed of a device.

    Example:
        >>> from fngrad.accelerators.speed import Speed, judge_speed
        >>> print(judge_speed(Speed("bfloat16", 150e12, 700e9, 0.76, 0.85)).text)
        matmul 150 TFLOP/s in bfloat16 (76 % of the peak), copy 700 GB/s (85 %)
    """
    peak = (
        "" if found.flops_share is None else f" ({found.flops_share:.0%} of the peak)"
    )
    share = "" if found.bandwidth_share is None else f" ({found.bandwidth_share:.0%})"
    text = (
        f"matmul {_rate(found.flops, 'FLOP/s')} in {found.dtype}{peak}, "
        f"copy {_rate(found.bandwidth, 'B/s')}{share}"
    ).replace("%", " %")
    shares = [found.flops_share, found.bandwidth_share]
    if any(share is not None and share < _SLOW for share in shares):
        way_out = (
            "end other programs on this device; a hot or limited GPU "
            "(nvidia-smi -q -d PERFORMANCE) is slow too"
        )
        return Finding(WARNING, "speed", text, way_out)
    return Finding(OK, "speed", text)


def _rate(value: float, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value / 1e6:.3g} M{unit}"

"""Speeds are measured, and compared with the peak of the chip."""

import types

import jax
import jax.numpy as jnp
import pytest

import fngrad.accelerators.speed as speed
from fngrad.accelerators.speed import Speed, judge_speed, products_dtype

V5E = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def test_a_cpu_is_measured_without_a_peak():
    found = speed.measure_speed(jax.devices("cpu")[0], (32, 1024))
    assert found.dtype == "float32"
    assert 1e5 < found.flops < 1e15
    assert 1e5 < found.bandwidth < 1e15
    assert found.flops_share is found.bandwidth_share is None


def test_a_chip_is_compared_with_its_peak(monkeypatch):
    class Chip(types.SimpleNamespace):
        pass

    monkeypatch.setattr(speed, "_products_per_second", lambda rows, dtype: 90.0)
    monkeypatch.setattr(speed, "_copies_per_second", lambda entries: 600.0)
    monkeypatch.setattr(
        jax, "default_device", lambda device: jax.transfer_guard("allow")
    )
    found = speed.measure_speed(V5E)
    assert found.dtype == "bfloat16"
    assert found.flops == 2 * 8192**3 * 90
    assert found.bandwidth == 2**27 * 4 * 2 * 600  # read and written
    assert found.flops_share == found.flops / 197e12
    assert found.bandwidth_share == found.bandwidth / 819e9


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [
        ("cpu", None, jnp.float32),
        ("tpu", None, jnp.bfloat16),
        ("gpu", "7.5", jnp.float16),  # T4
        ("gpu", "8.0", jnp.bfloat16),
        ("gpu", "12.0", jnp.bfloat16),
        ("gpu", "gfx90a", jnp.bfloat16),
    ],
)
def test_products_are_in_the_dtype_of_the_peak(platform, capability, dtype):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    assert products_dtype(device) == dtype


def test_calls_are_counted_and_timed(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    assert speed._per_second(lambda x: calls.append(x) or x, 1.0) == 1.0
    assert len(calls) == 5  # one compiles, one is timed to choose how many


@pytest.mark.parametrize(
    ("shares", "status"),
    [((0.8, 0.9), "ok"), ((0.1, 0.9), "warning"), ((0.8, 0.2), "warning")],
)
def test_a_device_far_below_its_peak_is_a_warning(shares, status):
    assert judge_speed(Speed("bfloat16", 1e14, 1e11, *shares)).status == status


def test_without_a_peak_no_fraction_is_told():
    found = judge_speed(Speed("float32", 9.01e10, 2e10, None, None))
    assert found.text == "matmul 90.1 GFLOP/s in float32, copy 20 GB/s"
    slow = judge_speed(Speed("float32", 9e6, 2e6, None, None))
    assert slow.text == "matmul 9 MFLOP/s in float32, copy 2 MB/s"

"""Devices and memory are told; what is full or unknown is a warning."""

import types

import jax
import pytest

import fngrad.accelerators.hardware as hardware
from fngrad.accelerators.hardware import Devices, HostMemory, judge_devices

GIB = 2**30
V5E = Devices("tpu", "TPU v5 lite", "v5e", 1, 1, 1, int(15.75 * GIB), 0)


def statuses(found):
    return [each.status for each in found]


def test_the_devices_are_those_of_jax():
    found = hardware.find_devices()
    assert found.platform == jax.default_backend()
    assert found.kind == jax.devices()[0].device_kind
    assert (found.count, found.process_count) == (jax.device_count(), 1)


def test_a_fake_device_is_told_with_its_chip_and_memory(monkeypatch):
    stats = [
        {"bytes_limit": 10, "bytes_in_use": 1},
        {"bytes_limit": 8, "bytes_in_use": 7},
    ]
    fakes = [
        types.SimpleNamespace(device_kind="TPU v5 lite", memory_stats=lambda s=s: s)
        for s in stats
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: fakes)
    found = hardware.find_devices()
    assert (found.chip, found.memory, found.in_use) == ("v5e", 8, 7)
    fakes[1].memory_stats = lambda: None
    assert hardware.find_devices().memory == 10


def test_devices_are_told_in_a_line():
    (found,) = judge_devices(V5E)
    assert (found.status, found.text) == ("ok", "1 x TPU v5 lite (v5e), 15.8 GiB each")
    (found,) = judge_devices(V5E._replace(count=8, local_count=4, process_count=2))
    assert found.text.startswith("8 x TPU v5 lite (v5e) of 2 processes, 4 of this one")
    (found,) = judge_devices(Devices("cpu", "cpu", None, 1, 1, 1, None, None))
    assert (found.status, found.text) == ("ok", "1 x cpu")


def test_an_unknown_chip_is_a_warning():
    found = judge_devices(V5E._replace(kind="TPU v9", chip=None))
    assert statuses(found) == ["ok", "warning"]
    assert "the peaks of 'TPU v9' are not known here" in found[1].text


def test_a_device_that_others_fill_is_a_warning():
    found = judge_devices(V5E._replace(in_use=10 * GIB))
    assert statuses(found) == ["warning", "ok"]
    assert "10.0 GiB of 15.8 GiB of a device are in use" in found[0].text


@pytest.mark.parametrize(("memory", "count"), [(60e9, 0), (10e9, 1)])
def test_a_small_share_of_a_chip_is_a_warning(memory, count):
    kind = "NVIDIA H100 80GB HBM3"
    found = judge_devices(Devices("gpu", kind, "H100", 1, 1, 1, int(memory), 0))
    assert statuses(found) == ["warning"] * count + ["ok"]


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", (16, 8)), (str(4 * GIB), (4, 2)), (None, (16, 8))]
)
def test_the_memory_of_the_host_is_that_of_its_container(tmp_path, limit, expected):
    (tmp_path / "proc").mkdir()
    lines = f"MemTotal: {16 << 20} kB\nMemFree: 5 kB\nMemAvailable: {8 << 20} kB\n"
    (tmp_path / "proc/meminfo").write_text(lines)
    if limit is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys/fs/cgroup/memory.current").write_text(f"{3 * GIB}\n")
        stat = f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\n"
        (tmp_path / "sys/fs/cgroup/memory.stat").write_text(stat)
    assert hardware.host_memory(tmp_path) == tuple(GIB * n for n in expected)


def test_where_it_is_not_told_it_is_none(tmp_path):
    assert hardware.host_memory(tmp_path) is None
    assert hardware.judge_memory(None).status == "ok"


def test_little_memory_is_a_warning():
    found = hardware.judge_memory(HostMemory(16 * GIB, GIB // 2))
    assert (found.status, found.text) == ("warning", "512.0 MiB of 16.0 GiB available")
    assert hardware.judge_memory(HostMemory(16 * GIB, 8 * GIB)).status == "ok"

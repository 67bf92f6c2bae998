"""An accelerator that is there and not used is found, and named with its reason."""

import importlib.util

import pytest

from fngrad.accelerators.fallbacks import (
    Sign,
    judge_backend,
    reason_against,
    signs,
)

LIBTPU = Sign("tpu", "libtpu", is_library=True)
CHIP = Sign("tpu", "/dev/accel0")
GPU = Sign("gpu", "/dev/nvidia0")
PLUGIN = Sign("gpu", "jax-cuda12-plugin", is_library=True)


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: (
            None if name in ("libtpu", "jax_cuda12_plugin") else found(name)
        ),
    )


def judged(found, backend="cpu", asked=None, reason="the reason"):
    reasons = {"tpu": reason, "gpu": reason}
    return judge_backend(backend, asked, found, reasons, "0.7.2")


def make(root, *files, **texts):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(path.name, ""))


def names(found):
    return [(each.platform, each.text) for each in found]


@pytest.mark.parametrize(
    ("file", "sign"),
    [
        ("dev/accel0", ("tpu", "/dev/accel0")),
        ("dev/nvidia0", ("gpu", "/dev/nvidia0")),
        ("dev/nvidiactl", ("gpu", "/dev/nvidiactl")),
        ("dev/accel/accel0", None),  # a neural processor of a laptop
        ("dev/vfio/0", None),  # any device that is passed on
        ("dev/null", None),
    ],
)
def test_device_files_are_signs(tmp_path, file, sign):
    make(tmp_path, file)
    assert names(signs({}, tmp_path)) == ([sign] if sign else [])


def test_a_device_that_is_passed_on_is_a_tpu_beside_another_sign(tmp_path):
    make(tmp_path, "dev/vfio/0", "dev/vfio/vfio")
    found = names(signs({"TPU_WORKER_ID": "0"}, tmp_path))
    assert found == [("tpu", "/dev/vfio/0"), ("tpu", "TPU_WORKER_ID")]


def test_another_device_that_is_passed_on_is_no_tpu_beside_a_library(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "libtpu" or None
    )
    make(tmp_path, "dev/vfio/0")
    assert signs({}, tmp_path) == [LIBTPU]


def test_a_variable_alone_is_a_warning(tmp_path):
    (found,) = judged(signs({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path))
    assert found.status == "warning"
    assert found.text == (
        "cpu; CUDA_VISIBLE_DEVICES is installed or set, and no GPU was found"
    )


@pytest.mark.parametrize(
    ("vendor", "device", "count"),
    [("0x1ae0\n", "0x0063\n", 1), ("0x1ae0", "0x0042", 0), ("0x8086", "0x0063", 0)],
)
def test_a_tpu_is_seen_on_the_bus(tmp_path, vendor, device, count):
    folder = "sys/bus/pci/devices/0000:00:04.0"
    make(tmp_path, f"{folder}/vendor", f"{folder}/device", vendor=vendor, device=device)
    assert names(signs({}, tmp_path)) == [("tpu", "a TPU on the PCI bus")] * count


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"COLAB_TPU_ADDR": "10.0.0.2"}, [("tpu", "COLAB_TPU_ADDR")]),
        ({"TPU_ACCELERATOR_TYPE": "v5e"}, [("tpu", "TPU_ACCELERATOR_TYPE")]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [("gpu", "CUDA_VISIBLE_DEVICES")]),
        ({"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}, []),
    ],
)
def test_variables_are_signs(tmp_path, environment, expected):
    assert names(signs(environment, tmp_path)) == expected


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_no_sign(tmp_path, hidden):
    make(tmp_path, "dev/nvidia0")
    assert signs({"CUDA_VISIBLE_DEVICES": hidden}, tmp_path) == []


def test_libraries_are_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "libtpu" or None
    )
    assert signs({}, tmp_path) == [LIBTPU]


def test_an_accelerator_that_is_not_used_is_a_loud_problem():
    (found,) = judged([CHIP, LIBTPU])
    assert found.status == "problem"
    assert found.text == (
        "THE TPU IS NOT USED: /dev/accel0, libtpu are there, but JAX computes on the "
        "CPU: the reason"
    )
    assert "JAX_PLATFORMS=tpu python -c" in found.way_out


@pytest.mark.parametrize(
    ("sign", "command"),
    [
        (CHIP, 'pip install "jax[tpu]==0.7.2"'),
        (GPU, 'pip install "jax[cuda12]==0.7.2"'),
    ],
)
def test_without_its_library_the_way_out_installs_it(sign, command):
    (found,) = judged([sign])
    assert (found.status, found.way_out) == ("problem", command)


@pytest.mark.parametrize("sign", [LIBTPU, PLUGIN])
def test_a_library_alone_is_a_warning(sign):
    (found,) = judged([sign])
    assert (found.status, "was found" in found.text) == ("warning", True)
    assert "the reason" in found.way_out


def test_a_cpu_that_was_asked_for_is_a_warning():
    (found,) = judged([CHIP, LIBTPU], asked="cpu")
    assert (found.status, "jax_platforms=cpu" in found.text) == ("warning", True)
    (found,) = judged([CHIP, LIBTPU], asked="tpu,cpu")
    assert found.status == "problem"


def test_both_kinds_are_told_apart():
    assert [each.status for each in judged([CHIP, GPU])] == ["problem", "problem"]


def test_what_is_used_is_fine():
    (found,) = judged([CHIP, LIBTPU], backend="tpu")
    assert (found.status, found.text) == ("ok", "tpu")
    (found,) = judged([])
    assert (found.status, found.text) == ("ok", "cpu, with no sign of an accelerator")


def test_the_reason_is_that_of_jax():
    assert "no_such_platform" in reason_against("no_such_platform")
    assert reason_against("cpu") == ""

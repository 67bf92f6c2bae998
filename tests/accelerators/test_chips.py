"""The chips that device kinds name."""

import pytest

from fngrad.accelerators.chips import GPUS, TPUS, chip_of_kind


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
    ],
)
def test_a_device_kind_names_its_chip(kind: str, name: str):
    chip = chip_of_kind(kind)
    assert chip is not None
    assert chip.name == name


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "TPU v3", "NVIDIA L40S", ""])
def test_other_kinds_are_not_known(kind: str):
    assert chip_of_kind(kind) is None


def test_chips_know_their_names():
    for name, chip in {**TPUS, **GPUS}.items():
        assert chip.name == name
        assert chip.flops > 1e13
        assert chip.link < chip.bandwidth < chip.flops

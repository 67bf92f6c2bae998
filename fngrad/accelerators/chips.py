"""Chips: the published peaks of TPUs and GPUs, by the names that JAX gives devices.

All numbers are those of one device of JAX. A TPU v4 or v5p, whose two cores work as
one, is one device; a TPU7x chip is two, and each has half of its numbers.
"""

import re
from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """What one device of a kind can do at most."""

    name: str  # such as "v5e" or "H100"
    flops: float  # per second, of bfloat16 products; float16 where there is no bfloat16
    bandwidth: float  # bytes per second, of its memory
    memory: float  # bytes that programs may use
    link: float  # bytes per second that it sends to other chips, over all links at once


# Peaks: https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e and
# .../tpu7x, whose "bidirectional" bandwidth counts both directions. The links of v4
# are six of 50 GB/s: Jouppi et al. 2023, https://arxiv.org/abs/2304.01433. The memory
# is what the compiler of libtpu 0.0.42 leaves to a program.
TPUS = {
    "v4": Chip("v4", 275e12, 1228e9, 30.75 * GIB, 300e9),
    "v5e": Chip("v5e", 197e12, 819e9, 15.75 * GIB, 200e9),
    "v5p": Chip("v5p", 459e12, 2765e9, 95.74 * GIB, 600e9),
    "v6e": Chip("v6e", 918e12, 1638e9, 31.25 * GIB, 400e9),
    "tpu7x": Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, 94.75 * GIB, 300e9),
}

# Peaks without sparsity, memory as sold, and half of the links' bandwidth, which
# NVIDIA's data sheets give for both directions together:
# https://www.nvidia.com/en-us/data-center/h100/, .../h200/, .../a100/, .../l4/ and
# .../tesla-t4/. L4 and T4 have PCIe alone.
GPUS = {
    "H200": Chip("H200", 989e12, 4800e9, 141e9, 450e9),
    "H100": Chip("H100", 989e12, 3350e9, 80e9, 450e9),
    "H100 PCIe": Chip("H100 PCIe", 756e12, 2000e9, 80e9, 64e9),
    "A100": Chip("A100", 312e12, 1555e9, 40e9, 300e9),
    "A100 80GB": Chip("A100 80GB", 312e12, 1935e9, 80e9, 300e9),
    "L4": Chip("L4", 121e12, 300e9, 24e9, 32e9),
    "T4": Chip("T4", 65e12, 320e9, 16e9, 16e9),
}

# The first that is found in a device's kind decides.
_KINDS = (
    (r"TPU v4$", TPUS["v4"]),
    (r"TPU v5 ?(lite|e)$", TPUS["v5e"]),
    (r"TPU v5p?$", TPUS["v5p"]),
    (r"TPU v6 ?(lite|e)$", TPUS["v6e"]),
    (r"TPU ?v?7x?$", TPUS["tpu7x"]),
    (r"\bH200\b", GPUS["H200"]),
    (r"\bH100\b.*PCIe", GPUS["H100 PCIe"]),
    (r"\bH100\b", GPUS["H100"]),
    (r"\bA100\b.*80GB", GPUS["A100 80GB"]),
    (r"\bA100\b", GPUS["A100"]),
    (r"\bL4\b", GPUS["L4"]),
    (r"\bT4\b", GPUS["T4"]),
)


def chip_of_kind(kind: str) -> Chip | None:
    """Return the chip of a device, or None if its peaks are not known here.

    Args:
        kind: ``device.device_kind``.

    Example:
        >>> from fngrad.accelerators.chips import chip_of_kind
        >>> chip_of_kind("TPU v5 lite").name, chip_of_kind("NVIDIA A100-SXM4-80GB").name
        ('v5e', 'A100 80GB')
        >>> chip_of_kind("cpu") is None
        True
    """
    found = (chip for pattern, chip in _KINDS if re.search(pattern, kind))
    return next(found, None)

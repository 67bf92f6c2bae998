"""An accelerator that is there while JAX computes on the CPU."""

import contextlib
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from fngrad.accelerators.findings import OK, PROBLEM, WARNING, Finding

_GOOGLE = "0x1ae0"  # of PCI; its devices that are TPUs, v2 to TPU7x:
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
_TPU_FILES = ("accel[0-9]*", "vfio/[0-9]*")
_GPU_FILES = ("nvidia[0-9]*", "nvidiactl")
_TPU_VARIABLES = re.compile(
    r"COLAB_TPU_\w+|TPU_(NAME|ACCELERATOR_TYPE|TOPOLOGY|WORKER_\w+|CHIPS_PER_\w+)"
)
_GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_NO_GPU = ("", "-1", "none", "void", "NoDevFiles")  # which hide all GPUs
_LIBRARIES = {
    "tpu": ("libtpu",),
    "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
}
_VFIO = "/dev/vfio"


class Sign(NamedTuple):
    """Something that is there only, or mostly, with an accelerator."""

    platform: str  # "tpu" or "gpu"
    text: str  # such as "/dev/accel0"
    is_library: bool = False  # which may be installed without the device
    is_variable: bool = False  # which may be set without it


def signs(environment: Mapping[str, str], root: Path = Path("/")) -> list[Sign]:
    """Return the signs of accelerators, from files, variables and libraries.

    Args:
        environment: variables; ``os.environ``.
        root: of the file system.
    """
    if environment.get(_GPU_VARIABLE, "0") in _NO_GPU:
        return [each for each in _all(environment, root) if each.platform != "gpu"]
    return list(_all(environment, root))


def _all(environment: Mapping[str, str], root: Path) -> Iterator[Sign]:
    libraries = [
        Sign(platform, name.replace("_", "-"), is_library=True)
        for platform, names in _LIBRARIES.items()
        for name in names
        if importlib.util.find_spec(name) is not None
    ]
    variables = [
        Sign("tpu" if _TPU_VARIABLES.fullmatch(name) else "gpu", name, is_variable=True)
        for name in sorted(environment)
        if _TPU_VARIABLES.fullmatch(name) or name == _GPU_VARIABLE
    ]
    on_bus = [Sign("tpu", "a TPU on the PCI bus")] if _has_tpu(root) else []
    others = {each.platform for each in (*variables, *on_bus)}
    for platform, patterns in (("tpu", _TPU_FILES), ("gpu", _GPU_FILES)):
        for pattern in patterns:
            for path in sorted((root / "dev").glob(pattern)):
                name = f"/{path.relative_to(root)}"
                # Any device that is passed to a virtual machine is there too.
                if not name.startswith(_VFIO) or "tpu" in others:
                    yield Sign(platform, name)
    yield from (*on_bus, *variables, *libraries)


def _has_tpu(root: Path) -> bool:
    for folder in (root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor, device = (
                (folder / name).read_text().strip() for name in ("vendor", "device")
            )
            if vendor == _GOOGLE and device in _TPUS:
                return True
    return False


def start_failure() -> str | None:
    """Return JAX's reason if it starts on no platform, as with a wrong JAX_PLATFORMS.

    Example:
        >>> from fngrad.accelerators.fallbacks import start_failure
        >>> start_failure() is None
        True
    """
    try:
        jax.devices()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def judge_backend(
    backend: str,
    asked: str | None,
    found: Collection[Sign],
    reasons: Mapping[str, str],
    version: str,
) -> list[Finding]:
    """Return what is to be said about the platform on which JAX computes.

    Args:
        backend: of ``jax.default_backend()``.
        asked: of ``jax.config.jax_platforms``.
        found: the `signs`.
        reasons: by platform, why JAX does not use it, from `reason_against`.
        version: of JAX, for the command that installs its parts.
    """
    if backend != "cpu":
        return [Finding(OK, "backend", backend)]
    findings = []
    for platform in ("tpu", "gpu"):
        seen = [each for each in found if each.platform == platform]
        if seen:
            args = (platform, seen, asked, reasons.get(platform, ""), version)
            findings.append(_not_used(*args))
    return findings or [Finding(OK, "backend", "cpu, with no sign of an accelerator")]


def _not_used(
    platform: str, seen: list[Sign], asked: str | None, reason: str, version: str
) -> Finding:
    names = ", ".join(each.text for each in seen)
    verb = "is" if len(seen) == 1 else "are"
    name = platform.upper()
    text = f"{names} {verb} there, but JAX computes on the CPU"
    has_library = any(each.is_library for each in seen)
    if (asked or "").partition(",")[0] == "cpu":
        way_out = "unset it before jax is imported"
        text += f": jax_platforms={asked} (JAX_PLATFORMS) asks for it"
        return Finding(WARNING, "backend", text, way_out)
    if all(each.is_library or each.is_variable for each in seen):
        is_set = any(each.is_variable for each in seen)
        how = "installed or set" if is_set else "installed"
        text = f"cpu; {names} {verb} {how}, and no {name} was found"
        return Finding(WARNING, "backend", text, f"if there is a {name}: {reason}")
    text = f"THE {name} IS NOT USED: {text}{': ' if reason else ''}{reason}"
    if not has_library:
        extra = "tpu" if platform == "tpu" else "cuda12"
        return Finding(
            PROBLEM, "backend", text, f'pip install "jax[{extra}]=={version}"'
        )
    way_out = (
        f"stop other processes that hold the {name} and restart this one; "
        f"JAX_PLATFORMS={'tpu' if platform == 'tpu' else 'cuda'} python -c "
        '"import jax; jax.devices()" shows the whole error'
    )
    return Finding(PROBLEM, "backend", text, way_out)


def reason_against(platform: str) -> str:
    """Return JAX's reason why it does not use a platform; empty if it could.

    Example:
        >>> from fngrad.accelerators.fallbacks import reason_against
        >>> reason_against("cpu")
        ''
    """
    try:
        jax.devices(platform)
    except RuntimeError as error:
        return str(error).partition("\n")[0].partition(". Available backends")[0]
    return ""

"""Targets: what ``v5e:2x4`` means, and the libtpu that can compile for it."""

import importlib.metadata
import math
import re
from typing import Any, Literal, NamedTuple

from fngrad.accelerators.chips import TPUS, Chip
from fngrad.accelerators.versions import fits, required_parts, version_of

_FORM = re.compile(rf"({'|'.join(TPUS)}):(\d+(?:x\d+)+)")
_FLAT = ("v5e", "v6e")  # a torus of two axes; the others have three
_LARGEST_FLAT = 256  # chips
_FORMS = (
    '"v5e:1x1", "v5e:2x4" to "v5e:16x16", "v6e:2x2", "v4:2x2x1", "v5p:2x2x2", '
    '"tpu7x:2x2x1", "cuda" or "cpu"'
)

# The compiler asks a metadata server, or these.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of any target
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Target(NamedTuple):
    """What a step is prepared for."""

    name: str  # such as "v5e:2x4"
    platform: Literal["tpu", "cuda", "cpu"]
    chip: Chip | None  # of each device; None if only the platform is known
    devices: int | None  # of JAX; None if only the platform is known
    topology: dict[str, Any]  # arguments of JAX's get_topology_desc


def parsed_target(text: str) -> Target:
    """Return the target that a text names.

    Args:
        text: a TPU and its chips along each axis of the torus, or ``cuda`` or ``cpu``.

    Raises:
        TypeError: if it is not a string.
        ValueError: if it names no target.

    Example:
        >>> from fngrad.accelerators.targets import parsed_target
        >>> parsed_target("v5e:2x4").devices, parsed_target("tpu7x:2x2x1").devices
        (8, 8)
    """
    if not isinstance(text, str):
        raise TypeError(f"need a target such as {_FORMS}, got {text!r}")
    if text == "cuda" or text == "cpu":
        return Target(text, text, None, None, {})
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"need a target such as {_FORMS}, got {text!r}")
    kind, sides = found[1], [int(side) for side in found[2].split("x")]
    chips = math.prod(sides)
    _check_sides(text, kind, sides)
    topology: dict[str, Any] = {"platform": "tpu", "topology_name": text}
    if chips == 1:
        topology["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":  # else its two cores are two devices, as they never are in JAX
        topology["chip_config_name"] = "megacore"
    devices = 2 * chips if kind == "tpu7x" else chips
    return Target(text, "tpu", TPUS[kind], devices, topology)


def _check_sides(text: str, kind: str, sides: list[int]) -> None:
    rank, chips = 2 if kind in _FLAT else 3, math.prod(sides)
    if len(sides) != rank:
        form = "x".join("2" * rank)
        raise ValueError(f"need {rank} axes of {kind}, such as {form}, got {text!r}")
    if chips != 1 and (chips == 0 or sides[0] % 2 or sides[1] % 2):
        raise ValueError(
            f"need one chip, or an even number along the first two axes, since a host "
            f"has 2x2 chips, got {text!r}"
        )
    if kind in _FLAT and chips > _LARGEST_FLAT:
        raise ValueError(
            f"need at most {_LARGEST_FLAT} chips of {kind}, 16x16, got {text!r}"
        )


def check_libtpu(version: str | None, asked: str) -> None:
    """Raise unless libtpu is there and is the one that JAX asks for.

    Another one may miscompile or crash; and no extra of a package can follow the
    installed JAX, so the command is given here.

    Args:
        version: of the installed libtpu; None if there is none.
        asked: the condition in JAX's metadata, such as ``==0.0.42.*``.

    Raises:
        ImportError: if it is missing or another version; the message has the command.
    """
    if version is not None and fits(version, asked) is not False:
        return
    jax = importlib.metadata.version("jax")
    raise ImportError(
        f"need libtpu{asked}, the compiler that jax {jax} pins, got "
        f'{version or "none"}: pip install "libtpu{asked}"',
        name="libtpu",
    )


def check_installed_libtpu() -> None:
    """Raise unless the libtpu that the installed JAX asks for is installed.

    Raises:
        ImportError: as `check_libtpu`.
    """
    check_libtpu(version_of("libtpu"), required_parts("jax").get("libtpu", ""))

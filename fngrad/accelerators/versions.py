"""Versions of JAX and its parts, and whether they are those that JAX asks for."""

import importlib.metadata
import operator
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping

from fngrad.accelerators.findings import OK, PROBLEM, WARNING, Finding

_SHOWN = ("jax", "jaxlib", "libtpu", "numpy", "fngrad")
_LOADED = ("jax", "jaxlib", "numpy")  # whose modules tell their versions
_PARTS = re.compile(r"jaxlib|libtpu|jax-(cuda|rocm)\w*-(plugin|pjrt)")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?\s*\(?([^;()]*)\)?\s*(;.*)?")
_CONDITION = re.compile(r"([=<>!~]=?=?)\s*(\S+)")
_NUMBERS = re.compile(r"(\d+(?:\.\d+)*)(?:\+\S*)?(\.\*)?")
_COMPARISONS: dict[str, Callable[..., bool]] = {
    "==": operator.eq,
    "===": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def installed_versions() -> dict[str, str]:
    """Return the versions of JAX's parts, NumPy and fngrad, of those installed."""
    parts = sorted({*_SHOWN, *asked_versions()}, key=_order)
    found = {name: version_of(name) for name in parts}
    return {name: version for name, version in found.items() if version}


def asked_versions() -> dict[str, str]:
    """Return which versions of its parts JAX asks for, and its plugins of theirs."""
    parts = required_parts("jax")
    further = [required_parts(plugin) for plugin in parts]
    return {name: asked for each in (*further, parts) for name, asked in each.items()}


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def loaded_versions() -> dict[str, str]:
    """Return the versions of the modules that this process imported."""
    modules = {name: sys.modules.get(name) for name in _LOADED}
    return {
        name: module.__version__
        for name, module in modules.items()
        if module is not None and hasattr(module, "__version__")
    }


def required_parts(package: str) -> dict[str, str]:
    """Return which versions of JAX's parts a package asks for, by its metadata.

    A requirement without an extra counts where there is one, else that of the extra:
    JAX asks for libtpu and the plugins of GPUs in extras alone.

    Args:
        package: such as ``"jax"``; nothing is required if it is not installed.

    Example:
        >>> from fngrad.accelerators.versions import required_parts
        >>> sorted(required_parts("jax"))[-2:]
        ['jaxlib', 'libtpu']
    """
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return parts_of(lines)


def parts_of(lines: list[str]) -> dict[str, str]:
    """Return which versions of JAX's parts requirements ask for.

    Example:
        >>> from fngrad.accelerators.versions import parts_of
        >>> parts_of(["numpy>=2.0", 'libtpu==0.0.42.*; extra == "tpu"'])
        {'libtpu': '==0.0.42.*'}
    """
    asked: dict[str, str] = {}
    parsed = (_REQUIREMENT.fullmatch(line.strip()) for line in lines)
    matches = [m for m in parsed if m and _PARTS.fullmatch(m[1])]
    for match in sorted(matches, key=lambda m: m[3] is not None):
        asked.setdefault(match[1], match[2].strip())
    return asked


def fits(version: str, conditions: str) -> bool | None:
    """Return whether a version meets all conditions; None where it cannot be told.

    Versions are compared by their numbers; one with letters, such as a development
    version, is not judged.

    Example:
        >>> from fngrad.accelerators.versions import fits
        >>> fits("0.0.42.1", "==0.0.42.*"), fits("0.7.1", "<=0.7.2,>=0.7.2")
        (True, False)
        >>> fits("0.7.3.dev1", ">=0.7.2") is None
        True
    """
    judged = [_meets(version, each) for each in conditions.split(",") if each.strip()]
    if False in judged:
        return False
    return None if None in judged else True


def _meets(version: str, condition: str) -> bool | None:
    match = _CONDITION.fullmatch(condition.strip())
    if match is None or match[1] not in _COMPARISONS:
        return None
    own, other = _NUMBERS.fullmatch(version), _NUMBERS.fullmatch(match[2])
    if own is None or other is None or own[2]:
        return None
    numbers = [[int(n) for n in m[1].split(".")] for m in (own, other)]
    length = len(numbers[1]) if other[2] else max(map(len, numbers))
    left, right = (n[:length] + [0] * (length - len(n)) for n in numbers)
    return _COMPARISONS[match[1]](left, right)


def judge_versions(
    installed: Mapping[str, str],
    loaded: Mapping[str, str],
    required: Mapping[str, str],
    backend: str,
) -> list[Finding]:
    """Return what is to be said about versions.

    Args:
        installed: of `installed_versions`.
        loaded: of `loaded_versions`; another version than the installed one means that
            pip changed it under a running process.
        required: what JAX asks for, by `asked_versions`.
        backend: of ``jax.default_backend()``.
    """
    listed = {**installed, "Python": platform.python_version()}
    text = ", ".join(f"{name} {version}" for name, version in listed.items())
    return [
        *_moved(installed, loaded),
        *_unfit(installed, required, backend),
        Finding(OK, "versions", text),
    ]


def _moved(
    installed: Mapping[str, str], loaded: Mapping[str, str]
) -> Iterator[Finding]:
    for name, version in loaded.items():
        if installed.get(name, version) != version:
            yield Finding(
                PROBLEM,
                "versions",
                f"{name} {version} runs, but {name} {installed[name]} was installed "
                "after it was imported",
                "restart the Python process or the notebook's kernel",
            )


def _unfit(
    installed: Mapping[str, str], required: Mapping[str, str], backend: str
) -> Iterator[Finding]:
    jax = installed.get("jax", "")
    for name, conditions in required.items():
        version = installed.get(name)
        if version is None or fits(version, conditions) is not False:
            continue
        text = f"{name} is {version}, with jax {jax} it must be {name}{conditions}"
        way_out = f'pip install "{name}{conditions}"'
        if name != "libtpu":
            yield Finding(PROBLEM, "versions", text, way_out)
        elif backend == "tpu":  # Colab's image pairs jax 0.7.2 with an older libtpu
            kept = "keep it if the self-test passes, as on Colab's image; otherwise "
            yield Finding(WARNING, "versions", text, kept + way_out)
        else:
            yield Finding(WARNING, "versions", text, way_out)


def _order(name: str) -> tuple[int, str]:
    return (_SHOWN.index(name) if name in _SHOWN else len(_SHOWN), name)

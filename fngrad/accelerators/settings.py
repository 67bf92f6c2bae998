"""Variables and flags that change what JAX does, and whether they are in force."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from fngrad.accelerators.findings import OK, WARNING, Finding
from fngrad.files.compilation_cache import CompilationCache
from fngrad.logging.manifest import float32_products
from fngrad.programs.units import size_text

_VARIABLES = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|COLAB_TPU)_\w+|CUDA_VISIBLE_DEVICES|NVIDIA_TF32_OVERRIDE"
)
_TRUE = {"y", "yes", "t", "true", "on", "1"}  # as JAX reads them
_SLOW = {  # flags of debugging, and why they cost time
    "jax_disable_jit": "every operation is a program of its own",
    "jax_debug_nans": "the host waits for every result and checks it",
    "jax_debug_infs": "the host waits for every result and checks it",
    "jax_check_tracer_leaks": "every trace is checked",
    "jax_enable_checks": "every trace is checked",
}
_CPU_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def relevant_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that JAX, XLA and libtpu read.

    Example:
        >>> from fngrad.accelerators.settings import relevant_variables
        >>> relevant_variables({"HOME": "/root", "JAX_ENABLE_X64": "1"})
        {'JAX_ENABLE_X64': '1'}
    """
    names = sorted(filter(_VARIABLES.fullmatch, environment))
    return {name: environment[name] for name in names}


def judge_settings(
    variables: Mapping[str, str], in_force: Any, cpu_devices: int
) -> list[Finding]:
    """Return what is to be said about variables: which are there, which too late.

    JAX reads its variables when it is imported, XLA when the backend starts.

    Args:
        variables: of `relevant_variables`.
        in_force: ``jax.config``.
        cpu_devices: how many devices JAX has on the CPU; 0 if it does not use it.
    """
    found = list(_without_effect(variables, in_force, cpu_devices))
    if found:
        return found
    shown = ", ".join(f"{name}={value}" for name, value in variables.items())
    return [Finding(OK, "variables", shown or "none that JAX reads")]


def _without_effect(
    variables: Mapping[str, str], in_force: Any, cpu_devices: int
) -> Iterator[Finding]:
    for name, value in variables.items():
        flag = name.lower()
        if not value or not name.startswith("JAX_") or not hasattr(in_force, flag):
            continue
        now = getattr(in_force, flag)
        if not _says(value, now):
            yield Finding(
                WARNING,
                "variables",
                f"{name}={value}, but {flag} is {now!r}: the variable was set after "
                "jax was imported, or jax.config.update changed the flag",
                f"set it before the import, or jax.config.update({flag!r}, ...)",
            )
    counts = _CPU_DEVICES.findall(variables.get("XLA_FLAGS", ""))
    if counts and cpu_devices not in (0, int(counts[-1])):
        yield Finding(
            WARNING,
            "variables",
            f"XLA_FLAGS asks for {counts[-1]} devices on the CPU, JAX has "
            f"{cpu_devices}: the variable was set after JAX started",
            "set it before the import of jax, and restart the notebook's kernel",
        )


def judge_flags(in_force: Any, backend: str) -> list[Finding]:
    """Return the flags that make a training slow.

    Args:
        in_force: ``jax.config``.
        backend: of ``jax.default_backend()``.
    """
    slow = {name: why for name, why in _SLOW.items() if getattr(in_force, name, False)}
    if backend in ("tpu", "gpu") and getattr(in_force, "jax_enable_x64", False):
        slow["jax_enable_x64"] = f"a {backend.upper()} is slow in float64"
    return [
        Finding(
            WARNING,
            "flags",
            f"{name} is on: {why}",
            f"jax.config.update({name!r}, False)",
        )
        for name, why in slow.items()
    ]


def _says(text: str, value: Any) -> bool:
    """Return whether a variable has the value of its flag; True if it cannot tell."""
    if isinstance(value, bool):
        return (text.lower() in _TRUE) == value
    if isinstance(value, int | float):
        return _number(text) in (None, float(value))
    return text == value if isinstance(value, str) else value is not None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def judge_precision(backend: str, precision: str | None) -> Finding:
    """Return in what precision products of float32 are computed.

    Args:
        backend: of ``jax.default_backend()``.
        precision: of ``jax_default_matmul_precision``.

    Example:
        >>> from fngrad.accelerators.settings import judge_precision
        >>> print(judge_precision("cpu", None).text)
        products of float32 are computed in float32
    """
    products = float32_products(backend, precision)
    text = f"products of float32 are computed in {products}"
    if not products.startswith("float32"):
        text += '; fg.Policy(matmul_precision="highest") computes them in float32'
    return Finding(OK, "precision", text)


def matmul_precision() -> str | None:
    """Return ``jax_default_matmul_precision`` of this process."""
    config: Any = jax.config  # type checkers do not know its settings
    return config.jax_default_matmul_precision


def judge_cache(cache: CompilationCache) -> Finding:
    """Return what is to be said about compiled programs on disk."""
    if cache.folder is None:
        text = "off; fg.cache_compilations() keeps what is compiled for later processes"
        return Finding(OK, "compile cache", text)
    if not cache.is_on:
        text = f"{cache.folder} is not used: jax_enable_compilation_cache is False"
        way_out = "unset JAX_ENABLE_COMPILATION_CACHE before jax is imported"
        return Finding(WARNING, "compile cache", text, way_out)
    if cache.is_writable is False:
        text = f"{cache.folder} cannot be written: every process compiles anew"
        way_out = "fg.cache_compilations(folder) takes another folder"
        return Finding(WARNING, "compile cache", text, way_out)
    held = ""
    if cache.entries is not None and cache.size is not None:
        held = f", {cache.entries} programs, {size_text(cache.size)}"
    return Finding(OK, "compile cache", f"{cache.folder}{held}")

"""The facts that a manifest records: versions, device, flags, commit, command."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

_LIBRARIES = ("fngrad", "jax", "jaxlib", "numpy")
_FLAGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_debug_nans",
)
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS")


def collect() -> dict[str, Any]:
    """Return the facts of this process, in JSON's types; this starts JAX's backend.

    Returns:
        ``python, platform, versions, backend, device_kind, device_count,
        process_count, flags, environment, git, command, freeze``. The version of a
        library that is not installed as a package is None; so is ``git`` outside a
        repository. ``dirty`` says whether tracked files differ from the commit; it is
        None where git cannot tell, as without a work tree.
    """
    freeze = _freeze()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: freeze.get(name) for name in _LIBRARIES},
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "flags": {name: getattr(jax.config, name, None) for name in _FLAGS},
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "git": _git(),
        "command": shlex.join(sys.orig_argv),
        "freeze": [f"{name}=={version}" for name, version in freeze.items()],
    }


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _freeze() -> dict[str, str]:
    """Return the versions of installed packages by name, without unreadable ones."""
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        # Damaged metadata raises many kinds of errors.
        with contextlib.suppress(Exception):
            if package.name:
                found[package.name] = package.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _git() -> dict[str, Any] | None:
    commit = _output("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def _output(*command: str) -> str | None:
    """Return what a command prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace").strip()

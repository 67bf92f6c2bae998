"""What a run ran on: the facts that a manifest records."""

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
    """Return the facts of this process, in JSON's types; it starts jax's backend.

    Returns:
        ``python, platform, versions, backend, device_kind, device_count,
        process_count, flags, environment, git, command, freeze``. A version is null
        for what runs without being installed; ``git`` is null outside of a
        repository, and its ``dirty`` says that tracked files differ from the commit.
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
    """Return the versions of what is installed, without packages that cannot say."""
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        # Damaged metadata, such as text not in UTF-8, raise errors of many kinds.
        with contextlib.suppress(Exception):
            if package.name:
                found[package.name] = package.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _git() -> dict[str, Any] | None:
    commit = _output("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changes != ""}


def _output(*command: str) -> str | None:
    """Return what a command prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace").strip()

"""The facts that a manifest records: versions, device, flags, commit, command."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
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
# How products of float32 are computed, by backend and by jax.lax.Precision; elsewhere
# in float32.
_PRODUCTS = {
    "tpu": {
        "default": "bfloat16",
        "high": "three passes of bfloat16",
        "highest": "float32, in six passes of bfloat16",
    },
    "gpu": {
        "default": "TF32 where the GPU has it, otherwise float32",
        "high": "TF32 where the GPU has it, otherwise float32",
        "highest": "float32",
    },
}
_SYNONYMS = {"bfloat16": "default", "tensorfloat32": "high", "float32": "highest"}
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS")


def collect() -> dict[str, Any]:
    """Return the facts of this process, in JSON's types; this starts JAX's backend.

    Returns:
        ``python, platform, versions, backend, device_kind, device_count,
        process_count, float32_products, flags, environment, git, command, executable,
        cwd, freeze``. The version of a library that is not installed as a package is
        None; so is ``git`` outside a repository. ``dirty`` says whether tracked files
        differ from the commit; it is None where git cannot tell, as without a work
        tree.
        ``float32_products`` is `float32_products` of this process; a run that
        `fngrad.fit` makes records `products_in_words` of its step instead.
    """
    backend = jax.default_backend()
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore
    freeze = _freeze()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: freeze.get(name) for name in _LIBRARIES},
        "backend": backend,
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "float32_products": float32_products(backend, precision),
        "flags": {name: getattr(jax.config, name, None) for name in _FLAGS},
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "git": _git(),
        "command": shlex.join(sys.orig_argv),
        "executable": sys.executable,
        "cwd": os.getcwd(),
        "freeze": [f"{name}=={version}" for name, version in freeze.items()],
    }


def float32_products(backend: str, precision: str | None) -> str:
    """Return in words how matrix products and convolutions of float32 are computed.

    On a TPU or GPU the default is not float32; ``matmul_precision`` of `fngrad.Policy`
    and ``jax.default_matmul_precision`` choose another.

    Args:
        backend: of ``jax.default_backend()``.
        precision: of ``jax_default_matmul_precision``; None is JAX's default.

    Example:
        >>> from fngrad.logging.manifest import float32_products
        >>> float32_products("tpu", None)
        'bfloat16 (default)'
    """
    if backend not in _PRODUCTS:
        return "float32"
    asked = precision or "default"
    known = _PRODUCTS[backend].get(_SYNONYMS.get(asked, asked))
    return f"{known} ({asked})" if known else asked  # the name of an algorithm


def products_in_words(backend: str, precisions: Iterable[str]) -> str:
    """Return how a program computes its products of float32, ``"none"`` without any.

    Args:
        backend: of ``jax.default_backend()``.
        precisions: of `fngrad.programs.product_precisions.float32_precisions`.

    Example:
        >>> from fngrad.logging.manifest import products_in_words
        >>> products_in_words("tpu", ["highest", "default"])
        'bfloat16 (default); float32, in six passes of bfloat16 (highest)'
    """
    words = {float32_products(backend, precision) for precision in precisions}
    return "; ".join(sorted(words)) or "none"


def now(ago: float = 0.0) -> str:
    """Return the time in UTC some seconds ago, to the millisecond, in ISO 8601."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    return moment.isoformat(timespec="milliseconds")


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

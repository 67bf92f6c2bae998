"""Which part of the tests is run: with ``FNGRAD_PART=2/5`` the second fifth.

The gate runs a part of the slow tests, and on its other lines of JAX a part of the fast
ones. Each case is in one part, which depends on its name alone, so that all parts
together run every case once.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import pytest

PART = "FNGRAD_PART"


def leave_out_others(config: pytest.Config, items: list[Any]) -> None:
    """Remove the cases of the other parts.

    Raises:
        pytest.UsageError: ``FNGRAD_PART`` is no such part.
    """
    if PART not in os.environ:
        return
    part, count = _read(os.environ[PART])
    kept, others = [], []
    for item in items:
        (kept if order(item.nodeid) % count == part - 1 else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = kept


def order(name: str) -> int:
    """Return a random number that depends on the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest)


def whole(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of which all tests are run."""
    return {name: value for name, value in environment.items() if name != PART}


def _read(text: str) -> tuple[int, int]:
    part, _, count = text.partition("/")
    if part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count):
        return int(part), int(count)
    raise pytest.UsageError(f"{PART} must be a part such as 2/5, got {text!r}")

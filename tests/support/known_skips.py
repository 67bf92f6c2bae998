"""Hooks of pytest that list what is skipped, and fail the gate where that is not known.

It lists every reason, with the number of tests. With the environment variable
``FNGRAD_ONLY_KNOWN_SKIPS`` any reason that is not in `KNOWN` fails the run.
"""

import collections
import os
import re
from typing import Any

import pytest

GATE = "FNGRAD_ONLY_KNOWN_SKIPS"
KNOWN = (
    "runs with -m xla_defaults",  # and so in another stage of the gate
    "Chromium is not installed",  # the gate says so
    "comes with the extra dev",  # which the other lines of JAX do without
    "JAX 0.7 does not tell its devices",
    "JAX 0.7 fuses less of an update",
    "has no flag jax_",  # which newer lines of JAX have
    "has no primitive eval_jaxpr",  # likewise
    "there is a TPU",
    "need libtpu",  # which one stage of the gate has
    "mounting a small file system is not permitted here",
)


def pytest_sessionfinish(session):
    """Fail the run for an unknown reason."""
    if GATE in os.environ and any(map(_is_unknown, _skips(session.config))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """List the reasons."""
    for reason, count in sorted(_skips(config).items()):
        remark = f" (not in {__name__}.KNOWN)" if _is_unknown(reason) else ""
        terminalreporter.write_line(f"{count} skipped: {reason}{remark}")


def _is_unknown(reason: str) -> bool:
    return re.search("|".join(map(re.escape, KNOWN)), reason) is None


def _skips(config) -> dict[str, int]:
    """Return how many tests were skipped, by reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return collections.Counter(_reason(report.longrepr) for report in reports)


def _reason(longrepr: Any) -> str:
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")

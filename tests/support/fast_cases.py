"""How many cases of an expensive test are fast, and how many the gate runs.

``tests/fast_cases.toml`` holds, for each test whose cases take long together, how many
of them the fast tests run: a random sample that a new case hardly changes. Of a test or
an example of a docstring that is one case it is 0. ``tests/gate_cases.toml`` holds, for
each test whose cases take many seconds together, how many of them the gate runs, the
fast ones included. The others are marked ``exhaustive``; ``.ci/run exhaustive`` runs
them too. To make both tables anew on a quiet machine::

    pytest -n 2 -m "" --junitxml=times.xml
    python tests/support/fast_cases.py times.xml

On its other lines of JAX the gate sets ``FNGRAD_FEWER_CASES``: a part of the fast cases
of each test is run, and a part of the tests of one case; on each line another part.
"""

import collections
import hashlib
import os
import pathlib
import re
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from typing import Any

import jax

TESTS = pathlib.Path(__file__).parents[1]
FAST, GATE = TESTS / "fast_cases.toml", TESTS / "gate_cases.toml"
PACKAGE = "fngrad/"  # in which the examples of docstrings stand
FEWER = "FNGRAD_FEWER_CASES"
SECONDS = 0.25  # that the cases of one test may take together
GATE_SECONDS = 5.0  # that they may take together in the gate
LEAST = 6  # cases of a test that the gate runs, whatever they take
SINGLE = 0.5  # seconds that a test without cases may take
EXAMPLE = 1.0  # seconds that an example of a docstring may take
# Comparisons with what was computed otherwise stay whole: most faults in arithmetic are
# found by them.
ORACLE = re.compile(
    r"oracle(?!s_rounded)|formula|equals_the_reference|its_definition|every_argument"
    r"|closed_form|loop_over|equals_a_loop|scipy|counted_by_hand|float64s"
)
LONG = 3.0  # seconds that the only case of such a comparison may take
# Other comparisons, of which many are with a definition.
COMPARES = re.compile(
    r"are_those_of|is_that_of|that_of_the|scikit_learn|its_table|_equals_|is_the_mean"
)
COMPARED = 1.5  # seconds that the only case of one may take
# Each case is a subject of its own, so that the gate runs them all.
SUBJECTS = re.compile(r"all_pass|recipe|section|the_laws_hold|its_parameters")
HEADER = """\
# The number of cases that {}, of each test whose cases take long together.
# Made by tests/support/fast_cases.py.
"""
Numbers = dict[str, dict[str, int]]  # of cases, by file and test


def table(path: pathlib.Path) -> Numbers:
    """Return the numbers of cases by file (in ``tests/`` or the root) and test."""
    return tomllib.loads(path.read_text())


def mark_slow(items: Iterable[Any]) -> int:
    """Mark the cases that are left out of their tests' samples: slow, or exhaustive.

    Returns:
        How many cases it marked as slow.
    """
    cases = collections.defaultdict(list)
    for item in sorted(items, key=lambda item: _order(item.name)):
        name = getattr(item, "originalname", item.name)  # an example has none
        cases[_file(item.path), name].append(item)
    fast, gate = table(FAST), table(GATE)
    fewer = int(os.environ.get(FEWER, 1))
    count = 0
    for (file, test), found in cases.items():
        quick = [item for item in found if not _is_slow(item)]
        number = fast.get(file, {}).get(test, len(quick))
        first = (jax.__version_info__[1] + _order(test)[0]) % fewer
        for place, item in enumerate(quick):
            if place >= number or place % fewer != first:
                item.add_marker("slow")
                count += 1
        for item in found[gate.get(file, {}).get(test, len(found)) :]:
            if _is_slow(item):
                item.add_marker("exhaustive")
    return count


def _is_slow(item: Any) -> bool:
    return item.get_closest_marker("slow") is not None


def _file(path: pathlib.Path) -> str:
    """Return the path as the table has it."""
    return path.relative_to(TESTS.parent).as_posix().removeprefix("tests/")


def _order(name: str) -> bytes:
    """Return a random number of a case or test, which depends on its name alone."""
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()


Times = Mapping[tuple[str, str], list[float]]  # of each case, by file and test


def fast_numbers(times: Times) -> Numbers:
    """Return how many cases are fast, of each test with some that are not."""
    made: Numbers = {}
    for (file, test), seconds in sorted(times.items()):
        count, total = len(seconds), sum(seconds)
        if ORACLE.search(test) and (count > 1 or total < LONG):
            continue
        if count == 1:
            fit = int(total < _limit(file, test))
        else:
            fit = _fit(seconds, SECONDS, least=1)
        if fit < count:
            made.setdefault(file, {})[test] = fit
    return made


def _limit(file: str, test: str) -> float:
    """Return how many seconds a test of one case may take."""
    if file.startswith(PACKAGE):
        return EXAMPLE
    return COMPARED if COMPARES.search(test) else SINGLE


def gate_numbers(times: Times) -> Numbers:
    """Return how many cases the gate runs, of each test with some that it does not."""
    made: Numbers = {}
    for (file, test), seconds in sorted(times.items()):
        if SUBJECTS.search(test):
            continue
        fit = _fit(seconds, GATE_SECONDS, least=LEAST)
        if fit < len(seconds):
            made.setdefault(file, {})[test] = fit
    return made


def _fit(seconds: list[float], limit: float, least: int) -> int:
    """Return how many cases take the limit together: all, if they take little more."""
    count, total = len(seconds), sum(seconds)
    if total <= 1.5 * limit:
        return count
    return max(least, round(count * limit / total))


def read(report: str) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each case from a report of JUnit's kind."""
    times = collections.defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        path = TESTS.parent / (case.get("classname", "").replace(".", "/") + ".py")
        test = case.get("name", "").partition("[")[0]
        times[_file(path), test].append(float(case.get("time", 0)))
    return times


def text(numbers: Numbers, which: str) -> str:
    """Return a table as TOML, of the cases that are so."""
    parts = [HEADER.format(which)]
    for file, tests in numbers.items():
        lines = [f"{_key(test)} = {number}\n" for test, number in tests.items()]
        parts.append(f'["{file}"]\n' + "".join(lines))
    return "\n".join(parts)


def _key(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'


if __name__ == "__main__":
    read_times = read(sys.argv[1])
    FAST.write_text(text(fast_numbers(read_times), "are fast"))
    GATE.write_text(text(gate_numbers(read_times), "the gate runs"))

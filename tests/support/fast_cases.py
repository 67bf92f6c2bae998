"""How many cases of an expensive test are fast; the gate runs them all.

``tests/fast_cases.toml`` holds, for each test whose cases take long together, how many
of them the fast tests run: a random sample that a new case hardly changes. Of a test or
an example of a docstring that is one case it is 0. To make the table anew on a quiet
machine::

    pytest -n 2 -m "" --junitxml=times.xml
    python tests/support/fast_cases.py times.xml

On its other lines of JAX the gate sets ``FNGRAD_FEWER_CASES=3``: a third of the fast
cases of each test is run, and a third of the tests of one case; on each line another
third.
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
TABLE = TESTS / "fast_cases.toml"
PACKAGE = "fngrad/"  # in which the examples of docstrings stand
FEWER = "FNGRAD_FEWER_CASES"
SECONDS = 0.25  # that the cases of one test may take together
SINGLE = 0.5  # seconds that a test without cases may take
EXAMPLE = 1.0  # seconds that an example of a docstring may take
# Comparisons with what was computed otherwise stay whole: most faults in arithmetic are
# found by them.
ORACLE = re.compile(
    r"oracle(?!s_rounded)|formula|equals_the_reference|its_definition|every_argument"
    r"|closed_form|loop_over|equals_a_loop|scipy|counted_by_hand|float64s"
)
LONG = 3.0  # seconds that the only case of such a comparison may take
HEADER = """\
# The number of cases that are fast, of each test whose cases take long together.
# Made by tests/support/fast_cases.py.
"""


def table() -> dict[str, dict[str, int]]:
    """Return the number of fast cases by file (in ``tests/`` or the root) and test."""
    return tomllib.loads(TABLE.read_text())


def mark_slow(items: Iterable[Any]) -> int:
    """Mark the collected cases as slow that are not in their test's sample.

    Returns:
        How many cases it marked.
    """
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None:
            name = getattr(item, "originalname", item.name)  # an example has none
            cases[_file(item.path), name].append(item)
    numbers, count = table(), 0
    fewer = int(os.environ.get(FEWER, 1))
    for (file, test), found in cases.items():
        number = numbers.get(file, {}).get(test, len(found))
        first = (jax.__version_info__[1] + _order(test)[0]) % fewer
        for place, item in enumerate(sorted(found, key=lambda item: _order(item.name))):
            if place >= number or place % fewer != first:
                item.add_marker("slow")
                count += 1
    return count


def _file(path: pathlib.Path) -> str:
    """Return the path as the table has it."""
    return path.relative_to(TESTS.parent).as_posix().removeprefix("tests/")


def _order(name: str) -> bytes:
    """Return a random number of a case or test, which depends on its name alone."""
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()


def numbers(times: Mapping[tuple[str, str], list[float]]) -> dict[str, dict[str, int]]:
    """Return how many cases fit, by file and test, from the seconds of each case."""
    made: dict[str, dict[str, int]] = {}
    for (file, test), seconds in sorted(times.items()):
        count, total = len(seconds), sum(seconds)
        if ORACLE.search(test) and (count > 1 or total < LONG):
            continue
        if count == 1:
            fit = int(total < (EXAMPLE if file.startswith(PACKAGE) else SINGLE))
        else:
            fit = max(1, round(count * SECONDS / max(total, SECONDS)))
        if fit < count and total > 1.5 * SECONDS:
            made.setdefault(file, {})[test] = fit
    return made


def read(report: str) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each case from a report of JUnit's kind."""
    times = collections.defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        path = TESTS.parent / (case.get("classname", "").replace(".", "/") + ".py")
        test = case.get("name", "").partition("[")[0]
        times[_file(path), test].append(float(case.get("time", 0)))
    return times


def text(numbers: Mapping[str, Mapping[str, int]]) -> str:
    """Return the table as TOML."""
    parts = [HEADER]
    for file, tests in numbers.items():
        lines = [f"{_key(test)} = {number}\n" for test, number in tests.items()]
        parts.append(f'["{file}"]\n' + "".join(lines))
    return "\n".join(parts)


def _key(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'


if __name__ == "__main__":
    TABLE.write_text(text(numbers(read(sys.argv[1]))))

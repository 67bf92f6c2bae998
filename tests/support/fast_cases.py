"""How many cases of an expensive test are fast.

``tests/fast_cases.toml`` holds, for each test whose cases take long together, how many
of them the fast tests run: a random sample that a new case hardly changes. Of a test or
an example of a docstring that is one case it is 0. To make the table anew on a quiet
machine::

    pytest -n 2 -m "" --junitxml=times.xml
    python tests/support/fast_cases.py times.xml
"""

import collections
import pathlib
import re
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from typing import Any

from parts import order

TESTS = pathlib.Path(__file__).parents[1]
TABLE = TESTS / "fast_cases.toml"
SECONDS = 0.25  # that the cases of one test may take together
SINGLE = 0.5  # seconds that a test without cases, or an example, may take
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
    r"|are_critical_points|named_with_the_example"
)
COMPARED = 1.5  # seconds that the only case of one may take
HEADER = """\
# The number of cases that are fast, of each test whose cases take long together.
# Made by tests/support/fast_cases.py.
"""
Numbers = dict[str, dict[str, int]]  # of cases, by file and test


def table() -> Numbers:
    """Return the numbers of cases by file (in ``tests/`` or the root) and test."""
    return tomllib.loads(TABLE.read_text())


def mark_slow(items: Iterable[Any]) -> int:
    """Mark as slow the cases that are left out of their tests' samples.

    Returns:
        How many there are.
    """
    cases = collections.defaultdict(list)
    for item in sorted(items, key=lambda item: order(item.name)):
        name = getattr(item, "originalname", item.name)  # an example has none
        if not _is_slow(item):
            cases[_file(item.path), name].append(item)
    numbers, count = table(), 0
    for (file, test), found in cases.items():
        for item in found[numbers.get(file, {}).get(test, len(found)) :]:
            item.add_marker("slow")
            count += 1
    return count


def _is_slow(item: Any) -> bool:
    return item.get_closest_marker("slow") is not None


def _file(path: pathlib.Path) -> str:
    """Return the path as the table has it."""
    return path.relative_to(TESTS.parent).as_posix().removeprefix("tests/")


Times = Mapping[tuple[str, str], list[float]]  # of each case, by file and test


def fast_numbers(times: Times) -> Numbers:
    """Return how many cases are fast, of each test with some that are not."""
    made: Numbers = {}
    for (file, test), seconds in sorted(times.items()):
        count, total = len(seconds), sum(seconds)
        if ORACLE.search(test) and (count > 1 or total < LONG):
            continue
        fit = int(total < _limit(test)) if count == 1 else _fit(count, total)
        if fit < count:
            made.setdefault(file, {})[test] = fit
    return made


def _limit(test: str) -> float:
    """Return how many seconds a test of one case may take."""
    return COMPARED if COMPARES.search(test) else SINGLE


def _fit(count: int, total: float) -> int:
    """Return how many cases take their seconds: all, if they take little more."""
    return count if total <= 1.5 * SECONDS else max(1, round(count * SECONDS / total))


def read(report: str) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each case from a report of JUnit's kind."""
    times = collections.defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        path = TESTS.parent / (case.get("classname", "").replace(".", "/") + ".py")
        test = case.get("name", "").partition("[")[0]
        times[_file(path), test].append(float(case.get("time", 0)))
    return times


def text(numbers: Numbers) -> str:
    """Return the table as TOML."""
    parts = [HEADER]
    for file, tests in numbers.items():
        lines = [f"{_key(test)} = {number}\n" for test, number in tests.items()]
        parts.append(f'["{file}"]\n' + "".join(lines))
    return "\n".join(parts)


def _key(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'


if __name__ == "__main__":
    TABLE.write_text(text(fast_numbers(read(sys.argv[1]))))

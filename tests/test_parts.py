"""All parts of the tests together run every case once."""

import collections
import os
import pathlib
import re
import subprocess
import types

import parts
import pytest

GATE = pathlib.Path(__file__).parents[1] / ".ci" / "run"


class Case:
    """A collected case."""

    def __init__(self, number):
        self.nodeid = f"tests/test_x.py::test_a[{number}]"


def kept(monkeypatch, part, number=200):
    """Return the names of the cases that a part runs, and how many it tells to miss."""
    left_out = []
    hook = types.SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    items = [Case(i) for i in range(number)]
    monkeypatch.setenv(parts.PART, part)
    parts.leave_out_others(types.SimpleNamespace(hook=hook), items)
    return [item.nodeid for item in items], len(left_out)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_case_is_in_one_part(monkeypatch, count):
    found = [kept(monkeypatch, f"{k + 1}/{count}") for k in range(count)]
    times = collections.Counter(name for names, _ in found for name in names)
    assert len(times) == 200
    assert set(times.values()) == {1}
    assert all(len(names) + missed == 200 for names, missed in found)
    assert all(len(names) > 100 / count for names, _ in found)


def test_a_new_case_leaves_the_others_in_their_parts(monkeypatch):
    before, after = (kept(monkeypatch, "2/5", number)[0] for number in (199, 200))
    assert set(before) == set(after) - {Case(199).nodeid}


def test_without_a_part_every_case_is_run(monkeypatch):
    monkeypatch.delenv(parts.PART, raising=False)
    items = [Case(i) for i in range(9)]
    parts.leave_out_others(types.SimpleNamespace(), items)
    assert len(items) == 9


@pytest.mark.parametrize("text", ["", "2", "0/5", "6/5", "1/0", "a/b", "1/2/3"])
def test_what_is_no_part_is_refused(monkeypatch, text):
    with pytest.raises(pytest.UsageError, match="a part such as 2/5, got"):
        kept(monkeypatch, text)


def test_a_process_that_runs_all_tests_is_told_of_no_part(monkeypatch):
    monkeypatch.setenv(parts.PART, "1/5")
    told = parts.whole(os.environ)
    assert parts.PART not in told
    assert len(told) == len(os.environ) - 1


def turns(count, numbers):
    """Return whose turn the gate says each of some numbers is, of so many."""
    found = re.search(r"^turn\(\) \{.*?^\}", GATE.read_text("utf-8"), re.M | re.S)
    assert found
    loop = f"for n in {' '.join(map(str, numbers))}; do turn $n {count}; done"
    done = subprocess.run(
        ["bash", "-c", f"{found[0]}\n{loop}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [int(line) for line in done.stdout.split()]


def test_a_block_of_commits_runs_every_part():
    for count in (1, 2, 12):
        found = turns(count, range(5 * count, 9 * count))
        for k in range(4):
            assert sorted(found[k * count :][:count]) == list(range(count))


@pytest.mark.parametrize("stride", [2, 3, 11, 12])
def test_a_gate_that_runs_for_some_commits_comes_to_every_part(stride):
    assert set(turns(12, range(1000, 1000 + 100 * stride, stride))) == set(range(12))

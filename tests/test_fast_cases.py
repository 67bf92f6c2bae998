"""The table of fast cases names tests that exist, and is made from their times."""

import ast
import itertools
import pathlib

import fast_cases

TESTS = pathlib.Path(__file__).parent


def test_every_entry_is_a_test():
    for file, tests in fast_cases.table().items():
        tree = ast.parse((TESTS / file).read_text())
        there = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        assert set(tests) <= there, file


def test_the_oracles_are_compared_whole():
    for file, test in fast_cases.WHOLE:
        assert test not in fast_cases.table().get(file, {})
        assert test in (TESTS / file).read_text()


class Item:
    """A collected case."""

    def __init__(self, test, file="optimizers/test_laws.py", slow=False):
        self.originalname, self.path, self.slow = test, TESTS / file, slow

    def get_closest_marker(self, name):
        return self.slow or None

    def add_marker(self, name):
        assert name == "slow"
        self.slow = True


def test_a_sample_of_the_cases_stays_fast(monkeypatch):
    entries = {"optimizers/test_laws.py": {"test_a": 2, "test_b": 0, "test_c": 9}}
    monkeypatch.setattr(fast_cases, "table", lambda: entries)
    items = {t: [Item(t) for _ in range(6)] for t in ("test_a", "test_b", "test_c")}
    items["test_d"] = [Item("test_d"), Item("test_d", slow=True)]
    items["doctest"] = [object()]
    for _ in range(2):  # what is slow already is no case
        fast_cases.mark_slow(itertools.chain(*items.values()))
    assert [
        sum(not i.slow for i in items[t]) for t in entries["optimizers/test_laws.py"]
    ] == [2, 0, 6]
    assert [i.slow for i in items["test_d"]] == [False, True]
    again = [Item("test_a") for _ in range(6)]
    fast_cases.mark_slow(again)
    assert [i.slow for i in again] == [i.slow for i in items["test_a"]]


def test_the_table_is_made_from_the_times_of_a_report(tmp_path):
    report = tmp_path / "times.xml"
    cases = [("tests.a.test_x", f"test_many[{i}]", 0.1) for i in range(20)]
    cases += [("tests.a.test_x", f"test_few[{i}]", 3.0) for i in range(2)]
    cases += [("tests.a.test_x", "test_long", 2.5), ("tests.a.test_x", "test_short", 1)]
    cases += [("fngrad.tree", "fngrad.tree.norm", 9.0)]
    rows = "".join(
        f'<testcase classname="{c}" name="{n}" time="{t}"/>' for c, n, t in cases
    )
    report.write_text(f"<testsuites><testsuite>{rows}</testsuite></testsuites>")
    made = fast_cases.numbers(fast_cases.read(str(report)))
    assert made == {"a/test_x.py": {"test_few": 1, "test_long": 0, "test_many": 5}}

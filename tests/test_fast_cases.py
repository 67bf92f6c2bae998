"""The table of fast cases names tests that exist, and is made from their times."""

import ast
import doctest
import importlib
import itertools
import pathlib
import tomllib

import fast_cases

TESTS = pathlib.Path(__file__).parent
LAWS = "optimizers/test_laws.py"


def test_every_entry_is_a_test():
    for file, tests in fast_cases.table().items():
        assert set(tests) <= names(file), file


def names(file):
    """Return the tests of a file, or the examples in a file of the package."""
    if not file.startswith("fngrad/"):
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        return {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return {test.name for test in doctest.DocTestFinder().find(module)}


def test_comparisons_with_oracles_stay_whole():
    updates = fast_cases.table()["optimizers/test_updates.py"]
    assert set(updates) == {"test_updates_in_lower_precision_are_the_oracles_rounded"}
    seconds = {("a/test_x.py", "test_it_is_the_oracles"): [2.0] * 9}
    assert fast_cases.fast_numbers(seconds) == {}


class Item:
    """A collected case."""

    def __init__(self, test, case=0, slow=False):
        self.originalname, self.name = test, f"{test}[{case}]"
        self.path, self.markers = TESTS / LAWS, {"slow"} if slow else set()

    def get_closest_marker(self, name):
        return name if name in self.markers else None

    def add_marker(self, name):
        self.markers.add(name)


class Example(Item):
    """A collected example of a docstring."""

    def __init__(self, name):
        super().__init__(name)
        self.name, self.path = name, TESTS.parent / "fngrad/tree.py"
        del self.originalname


def cases(test, count):
    return [Item(test, case) for case in range(count)]


def fast(items):
    return {item.name for item in items if "slow" not in item.markers}


def test_a_sample_of_the_cases_stays_fast(monkeypatch):
    entries = {LAWS: {"test_a": 2, "test_b": 0, "test_c": 9}}
    entries["fngrad/tree.py"] = {"tree.norm": 0}
    monkeypatch.setattr(fast_cases, "table", lambda: entries)
    items = {test: cases(test, 6) for test in ("test_a", "test_b", "test_c")}
    items["test_d"] = [Item("test_d"), Item("test_d", 1, slow=True)]
    items["example"] = [Example("tree.norm"), Example("tree.sum")]
    everything = [*itertools.chain(*items.values())]
    assert fast_cases.mark_slow(everything) == 11
    assert fast_cases.mark_slow(everything) == 0  # what is slow already is no case
    sizes = {test: len(fast(found)) for test, found in items.items()}
    assert sizes == {"test_a": 2, "test_b": 0, "test_c": 6, "test_d": 1, "example": 1}


def test_a_new_case_replaces_at_most_one(monkeypatch):
    monkeypatch.setattr(fast_cases, "table", lambda: {LAWS: {"test_a": 10}})
    before, after = cases("test_a", 50), cases("test_a", 51)
    for found in (before, after):
        fast_cases.mark_slow(reversed(found))  # whatever their order
    assert len(fast(before) & fast(after)) >= 9


def test_the_table_is_made_from_the_times_of_a_report(tmp_path):
    report = tmp_path / "times.xml"
    rows = [("tests.a.test_x", f"test_many[{i}]", 0.2) for i in range(80)]
    rows += [("tests.a.test_x", f"test_few[{i}]", 9.0) for i in range(2)]
    rows += [
        ("tests.a.test_x", "test_long", 9.0),
        ("tests.a.test_x", "test_short", 0.1),
        ("tests.a.test_x", "test_it_is_that_of_its_definition", 1.2),
    ]
    rows += [("fngrad.tree", "fngrad.tree.norm", 9.0), ("fngrad.tree", "brief", 0.4)]
    text = "".join(
        f'<testcase classname="{c}" name="{n}" time="{t}"/>' for c, n, t in rows
    )
    report.write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    times = fast_cases.read(str(report))
    many = round(80 * fast_cases.SECONDS / 16.0)
    made = fast_cases.fast_numbers(times)
    assert made == {
        "a/test_x.py": {"test_few": 1, "test_long": 0, "test_many": many},
        "fngrad/tree.py": {"fngrad.tree.norm": 0},
    }
    assert tomllib.loads(fast_cases.text(made)) == made

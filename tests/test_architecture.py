"""The rules of floors, purity and style hold, and each of them can fail."""

import ast
import functools
import inspect
import pathlib
from collections.abc import Callable

import pytest
from house_rules import (
    FOLDERS,
    IMPURE,
    LAST_PURE_FLOOR,
    MAX_FILE,
    MAX_FUNCTION,
    ROOT,
    Complaints,
    circle_complaints,
    computation_complaints,
    docstring_complaints,
    floor_complaints,
    floor_of,
    import_style_complaints,
    imports_of,
    length_complaints,
    map_of_the_house,
    module_of,
    name_complaints,
    purity_complaints,
    python_files,
    reexport_complaints,
    root_complaints,
    top_level_complaints,
    warning_complaints,
)

METHOD_STEPS = "fngrad.steps."
PACKAGES = {module_of(p) for p in python_files("fngrad") if p.stem == "__init__"}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Return the parsed modules of the package by name."""
    return {
        module_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in python_files("fngrad")
    }


def _check(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_module_imports_from_lower_floors_only():
    _check(
        [
            complaint
            for module, source in sources().items()
            for complaint in floor_complaints(module, source, set(sources()))
        ]
    )


def test_every_folder_of_the_package_can_be_found_by_its_init():
    folders = {path.parent for path in python_files("fngrad")}
    _check([str(f) for f in sorted(folders) if not (f / "__init__.py").is_file()])


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {name for _, name in imports_of(source, set(sources()))} - {module}
        for module, source in sources().items()
    }
    _check(list(circle_complaints(graph)))


def test_the_lower_floors_are_pure():
    floors = {m: floor_of(m) for m in sources()}
    pure = [m for m, f in floors.items() if f is not None and f <= LAST_PURE_FLOOR]
    assert {"fngrad.types", "fngrad.tree", "fngrad.steps.core"} <= set(pure)
    complaints = {m: list(purity_complaints(m, sources()[m])) for m in pure}
    assert all(complaints[m] for m in IMPURE)
    _check([c for m in pure if m not in IMPURE for c in complaints[m]])


@pytest.mark.parametrize(
    "rule", [computation_complaints, docstring_complaints], ids=lambda f: f.__name__
)
def test_the_package_keeps_the_rule(rule: Callable[..., Complaints]):
    _check([c for module, source in sources().items() for c in rule(module, source)])


def test_every_warning_shows_the_callers_line():
    own = "fngrad.programs.caller_warnings"
    assert list(warning_complaints(own, sources()[own]))
    _check(
        [c for m in sources() if m != own for c in warning_complaints(m, sources()[m])]
    )


def test_a_folders_init_only_reexports():
    _check([c for name in PACKAGES for c in reexport_complaints(name, sources()[name])])


@pytest.mark.parametrize(
    "rule", [import_style_complaints, length_complaints], ids=lambda f: f.__name__
)
def test_all_python_keeps_the_rule(rule: Callable[..., Complaints]):
    complaints = []
    for path in python_files(*FOLDERS):
        text = path.read_text(encoding="utf-8")
        source = text if rule is length_complaints else ast.parse(text)
        complaints += rule(str(path.relative_to(ROOT)), source)
    _check(complaints)


def test_files_are_named_after_what_is_in_them():
    paths = [path.relative_to(ROOT) for path in python_files(*FOLDERS)]
    _check([complaint for path in paths for complaint in name_complaints(path)])


def test_the_top_level_holds_what_the_design_lists():
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    ignored = [line.strip("/") for line in lines]
    _check(list(top_level_complaints({p.name for p in ROOT.iterdir()}, ignored)))


BAD_PURITY = [
    "import os",
    "from pathlib import Path",
    "import numpy.random",
    "def f():\n    import time",
    "def f(x):\n    print(x)",
    "def f(p):\n    return open(p)",
    "import numpy as np\ndef f():\n    return np.random.rand()",
    "def f():\n    global count\n    count = 1",
]
GOOD_PURITY = [
    "import math, functools, itertools",
    "import jax\ndef f(key):\n    return jax.random.normal(key)",
    "def f(shape):\n    return shape.open()",
]
BAD_AT_IMPORT = [
    "ZERO = jnp.zeros(())",
    "def f(x=jnp.ones(3)): pass",
    "class A:\n    key = jax.random.key(0)",
    "PAIR = (1, [lax.add(1, 2)])",
    "@jax.random.wrap(1)\ndef f(): pass",
]
GOOD_AT_IMPORT = [
    "def f():\n    return jnp.zeros(())",
    "make = lambda: jnp.zeros(())",
    "@jax.jit\ndef f(x): return x",
    "g = jax.jit(f)",
    "jax.tree_util.register_pytree_node(A, flatten, unflatten)",
    "WIDE = jnp.float32",
]
BAD_IMPORTS = [
    "from . import tree",
    "from ..fngrad import tree",
    "import optax",
    "import flax.linen as nn",
    "from optax.losses import huber_loss",
    "def f():\n    from flax import nnx",
    'optax = pytest.importorskip("optax")',
    'import_extra("flax.nnx", "all")',
]
GOOD_IMPORTS = ["import fngrad.tree as tree", 'import_extra("matplotlib", "plot")']
BAD_DOCSTRINGS = ["x = 1", '"""Doc."""\ndef f(): pass', '"""Doc."""\nclass A: x = 1']
GOOD_DOCSTRINGS = ["", '"""Doc."""\ndef _f(): pass', '"""Doc."""\nx = 1']
BAD_REEXPORTS = [
    "def f(): pass",
    "x = 1",
    "x: int = 1",
    "if True:\n    import a",
    "f()",
]
GOOD_REEXPORTS = [
    '"""Doc."""\nimport a\nfrom b import c\n__all__ = ["c"]',
    "def __dir__() -> list[str]:\n    return sorted(__all__)",
]
BAD_WARNINGS = ["warnings.warn('')", "from warnings import warn"]
GOOD_WARNINGS = ["warn('')", "import warnings\nwarnings.catch_warnings()"]

RULES = [
    (purity_complaints, BAD_PURITY, GOOD_PURITY),
    (computation_complaints, BAD_AT_IMPORT, GOOD_AT_IMPORT),
    (import_style_complaints, BAD_IMPORTS, GOOD_IMPORTS),
    (docstring_complaints, BAD_DOCSTRINGS, GOOD_DOCSTRINGS),
    (reexport_complaints, BAD_REEXPORTS, GOOD_REEXPORTS),
    (warning_complaints, BAD_WARNINGS, GOOD_WARNINGS),
]


@pytest.mark.parametrize(("rule", "bad", "good"), RULES, ids=lambda f: "")
def test_a_rule_refuses_the_bad_and_passes_the_good(
    rule: Callable[..., Complaints], bad: list[str], good: list[str]
):
    for text in bad:
        assert list(rule("m", ast.parse(text))), f"{text!r} passed"
    for text in good:
        assert not list(rule("m", ast.parse(text))), f"{text!r} did not pass"


@pytest.mark.parametrize(
    ("module", "text", "passes"),
    [
        ("fngrad.tree.a", "from fngrad.types import Tree", True),
        ("fngrad.tree.a", "import fngrad.numerics", True),
        ("fngrad.numerics.a", "import fngrad.tree", True),  # one family
        ("fngrad.tree.a", "def f():\n    import fngrad.fitting.loops", False),
        ("fngrad.tree.a", "import fngrad", False),
        ("fngrad.tree.a", "from fngrad import types", True),
        ("fngrad.tree.a", "from fngrad import fit", False),
        ("fngrad.tree.a", "import jax, numpy", True),
        ("fngrad.transforms.a", "import fngrad.transforms.core", True),
        ("fngrad.transforms.a", "import fngrad.schedules.core", False),
        ("fngrad.transforms", "import fngrad.transforms.core", True),
        ("fngrad.transforms.a", "import fngrad.optimizers.adam", False),
        ("fngrad.optimizers.a", "import fngrad.transforms.core", True),
        ("fngrad.logging.a", "import fngrad.checkpoint", False),
        ("fngrad.fitting.loops", "import fngrad.logging", True),
        ("fngrad", "import fngrad.fitting.loops", True),
        ("fngrad.attic", "import math", False),
        ("fngrad.fitting.loops", "import fngrad.attic", False),
    ],
)
def test_an_import_from_the_same_floor_or_above_is_refused(
    module: str, text: str, passes: bool
):
    names = ("types", "tree", "fitting.loops", "transforms.core", "optimizers.adam")
    modules = {"fngrad", *(f"fngrad.{name}" for name in names)}
    complaints = list(floor_complaints(module, ast.parse(text), modules))
    assert bool(complaints) is not passes, complaints


def test_a_module_stands_on_the_floor_of_its_folder():
    assert floor_of("fngrad.layers") == floor_of("fngrad.layers.linear") == 1
    assert floor_of("fngrad.sweeps.running.runner") == floor_of("fngrad.fitting") == 7
    assert floor_of("fngrad.attic") is None


def test_the_root_holds_the_tables_entries_and_nothing_else():
    _check(list(root_complaints(root_entries())))
    assert list(root_complaints(root_entries() | {"utils"}))
    assert list(root_complaints(root_entries() - {"tree/"}))


def root_entries() -> set[str]:
    entries = (ROOT / "fngrad").iterdir()
    names = {f"{p.name}/" if p.is_dir() else p.stem for p in entries}
    return names - {"__pycache__/", "__init__", "py"}


def test_no_module_shares_its_name_with_a_function_of_the_face():
    import fngrad

    functions = {n for n in fngrad.__all__ if not inspect.ismodule(getattr(fngrad, n))}
    modules = {m for m in sources() if m.rpartition(".")[2] in functions}
    methods = {m for m in modules if m.startswith(("fngrad.optimizers.", METHOD_STEPS))}
    assert modules == methods, "only a method's file has the name of its function"


def test_the_map_of_the_readme_is_the_table():
    assert map_of_the_house() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_circle_of_imports_is_refused():
    assert not list(circle_complaints({"a": {"b", "c"}, "b": {"c"}, "c": set()}))
    (complaint,) = circle_complaints({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    assert "'b', 'c'" in complaint


def test_length_counts_neither_docstrings_nor_blank_lines():
    body = "    x = 1\n" * MAX_FUNCTION
    documented = f'def f():\n    """Doc.\n\n    More.\n    """\n\n{body}'
    assert not list(length_complaints("m", documented))
    assert list(length_complaints("m", f"{documented}    y = 2\n"))
    assert list(
        length_complaints(
            "m",
            f"def f():\n    class A:\n{body}        y = 2\n".replace(
                "    x", "        x"
            ),
        )
    )
    assert list(length_complaints("m", "x = 1\n" * (MAX_FILE + 1)))
    assert not list(length_complaints("m", "x = 1\n" * MAX_FILE))


def test_a_name_that_says_nothing_is_refused():
    for name in ("fngrad/utils.py", "tests/helpers/a.py", "fngrad/_base.py"):
        assert list(name_complaints(pathlib.PurePath(name))), name
    assert not list(name_complaints(pathlib.PurePath("fngrad/data/files.py")))


def test_a_stray_file_at_the_top_level_is_refused():
    assert list(top_level_complaints({"fngrad", "notes.md"}, ["*.egg-info"]))
    assert not list(top_level_complaints({".git", "a.egg-info"}, ["*.egg-info"]))

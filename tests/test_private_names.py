"""No private name of a library is used, apart from a table of exceptions.

Tests may use the private names of the package, not those of libraries.
"""

import ast
import pathlib
import re
from collections.abc import Iterator, Set

import pytest
from house_rules import module_of, python_files

EXCEPTIONS = {
    ("fngrad.checkpoint.manager", "threading._register_atexit"): (
        "the program's end waits for a write. Everything public runs too late: a "
        "non-daemon thread, an executor and `atexit` each lost the last checkpoint, "
        "since the interpreter refuses the executors that orbax writes with before it "
        "joins threads and calls `atexit`; so did orbax's AsyncCheckpointer"
    ),
    ("fngrad.distributed", "os._exit"): (
        "public, as documented: a process that fails must not wait for the others at "
        "its exit"
    ),
}
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}  # public, as documented
OF_NOTEBOOKS = {"_repr_html_", "_repr_png_"}  # IPython's documented protocol
IN_TEXT = re.compile(r"\b(?:jax|jaxlib|orbax|matplotlib|numpy)(?:\.\w+)*?\._[a-z]\w*")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _own_names(source: ast.AST) -> set[str]:
    """Return the names that a file binds itself: its own private names."""
    own: set[str] = set()
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
    return own


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    by_name = ("import_extra", "import_module")
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(by_name):
        return [str(getattr(node.args[0], "value", ""))]
    return []


def _attribute(node: ast.AST) -> str:
    """Return what a node reads of an object, by a dot or by getattr, if anything."""
    if isinstance(node, ast.Attribute):
        return ast.unparse(node)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
        return f"{ast.unparse(node.args[0])}.{getattr(node.args[1], 'value', '')}"
    return ""


def private_names(source: ast.AST, known: Set[str] = frozenset()) -> Iterator[str]:
    """Yield the private names that a file uses and that are not its own.

    Names in strings count, as in the code of a child process.

    Args:
        source: the file.
        known: further names that are the project's own.
    """
    own = _own_names(source) | OF_NAMED_TUPLES | OF_NOTEBOOKS | known
    for node in ast.walk(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from IN_TEXT.findall(node.value)
        for target in _imported(node):
            if any(map(_is_private, target.split("."))):
                yield target
        last = _attribute(node).rpartition(".")[2]
        if _is_private(last) and last not in own:
            yield _attribute(node)


def _parsed(*folders: str) -> dict[str, ast.AST]:
    return {
        module_of(path): ast.parse(path.read_text(encoding="utf-8"))
        for path in python_files(*folders)
    }


def test_no_private_name_of_a_library_is_used():
    found = {
        (module, name)
        for module, source in _parsed("fngrad", "experiments").items()
        for name in private_names(source)
    }
    assert found == set(EXCEPTIONS)


def test_no_test_uses_a_private_name_of_a_library():
    sources = _parsed("tests")
    del sources[module_of(pathlib.Path(__file__))]  # it has examples of such names
    known = set().union(*map(_own_names, _parsed("fngrad").values()))
    found = {(m, name) for m, a in sources.items() for name in private_names(a, known)}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import jax._src.core",
        "from jax._src import core",
        "from jax import _src",
        "from orbax.checkpoint._src.path import step",
        "import_extra('orbax.checkpoint._src', 'checkpoint')",
        "threading._register_atexit(print)",
        "jax.interpreters.xla._private.x",
        "getattr(threading, '_register_atexit')",
        "array.sharding._device_assignment",
        "CODE = 'import jax._src.xla_bridge as bridge'",
    ],
)
def test_a_private_name_is_found(line):
    assert len(set(private_names(ast.parse(line)))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import jax.extend.core",
        "from __future__ import annotations",
        "state._replace(step=1)",
        "type(x).__name__",
        "self._x = 1; self._x",
        "def _f(): ...\nmodule._f",
        "getattr(jnp, name, name)",
    ],
)
def test_a_name_that_is_public_or_the_files_own_is_not(line):
    assert list(private_names(ast.parse(line))) == []

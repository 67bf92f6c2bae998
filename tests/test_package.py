"""What is installed and imported: versions, extras, the face, the gate."""

import importlib
import inspect
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import types

import pytest

import fngrad

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = {
    "checkpoint": {"orbax-checkpoint"},
    "data": {"scikit-learn"},
    "cli": {"tyro", "tqdm"},
    "plot": {"matplotlib"},
    "tensorboard": {"tensorboardX"},
    "images": {"pillow"},
    "cache": {"filelock"},
    "files": {"safetensors", "flatbuffers"},
    "search": {"optuna"},
    "wandb": {"wandb"},
    "trackio": {"trackio"},
    "mlflow": {"mlflow-skinny"},
    "test": {
        *("pytest", "pytest-xdist", "chex", "hypothesis", "scipy", "equinox"),
        "grain",  # its datasets are refused with advice
        *("nbclient", "ipykernel"),  # run the tutorial
        *("tensorboard", "wandb", "trackio", "mlflow-skinny"),  # read logs back
    },
    "dev": {"ruff", "pyright", "pdoc"},
}
NOT_IN_ALL = {
    *("wandb", "trackio", "mlflow"),  # each installs dozens of libraries
    *("test", "dev"),
}
LIST_MODULES = "import sys; print(' '.join({n.partition('.')[0] for n in sys.modules}))"


def modules_after(imports: str) -> set[str]:
    """Return the top-level modules of a fresh process after its imports."""
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {LIST_MODULES}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return set(done.stdout.split())


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0]


def test_importing_fngrad_imports_jax_and_numpy_alone():
    allowed = modules_after("import jax, jax.numpy, numpy") | sys.stdlib_module_names
    assert modules_after("import fngrad") - allowed == {"fngrad"}


def test_importing_fngrad_starts_no_backend():
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform"}

    def run(code: str) -> int:
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
        return ended.returncode

    assert run("import fngrad") == 0
    assert run("import fngrad, jax; jax.devices()") != 0  # this starts one


def test_the_version_is_a_string():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", fngrad.__version__)


def test_the_package_is_typed():
    assert (ROOT / "fngrad" / "py.typed").is_file()


def test_all_names_exist_and_are_sorted():
    by_kind = sorted(
        set(fngrad.__all__), key=lambda n: (not n.isupper(), n[0].islower(), n)
    )
    assert list(fngrad.__all__) == by_kind  # CONSTANTS, Types, functions
    assert [n for n in fngrad.__all__ if not hasattr(fngrad, n)] == []


def test_the_core_depends_on_jax_and_numpy_alone():
    assert PYPROJECT["project"]["dependencies"] == ["jax>=0.7.2", "numpy"]
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"


def test_the_extras_are_those_of_the_design():
    extras = dict(PYPROJECT["project"]["optional-dependencies"])
    (everything,) = extras.pop("all")
    assert {e: {name_of(r) for r in reqs} for e, reqs in extras.items()} == EXTRAS
    inside = re.fullmatch(r"fngrad\[(.*)\]", everything)
    assert inside
    assert set(inside[1].split(",")) == EXTRAS.keys() - NOT_IN_ALL


def test_every_library_of_an_extra_for_users_is_imported():
    call = re.compile(r'import_extra\("([\w.]+)", "(\w+)"(?:, "([\w-]+)")?\)')
    imported: dict[str, set[str]] = {}
    for path in [*ROOT.glob("fngrad/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        for module, extra, library in call.findall(path.read_text(encoding="utf-8")):
            imported.setdefault(extra, set()).add(library or module.split(".")[0])
    for extra in EXTRAS.keys() - {"test", "dev"}:
        assert EXTRAS[extra] <= imported[extra], extra


def test_nothing_caps_jax_or_replaces_an_accelerators_install():
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in itertools.chain.from_iterable(groups):
        assert not re.match(r"jax(lib)?\s*(\[|.*<|.*==|.*~=)", requirement), requirement


def test_no_extra_installs_a_libtpu_other_than_that_of_the_installed_jax():
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    assert "libtpu" not in map(name_of, itertools.chain.from_iterable(extras))


@pytest.mark.parametrize(
    ("in_readme", "in_gate"),
    [
        ("python3 -m venv .venv", '"$python" -m venv "$venv"'),
        (
            '.venv/bin/pip install -e ".[all,test,dev]"',
            '"$venv/bin/pip" install -e ".[all,test,dev]"',
        ),
        (".venv/bin/pytest -n auto", '"$venv/bin/pytest" -n auto'),
    ],
)
def test_the_gate_runs_what_the_readme_says(in_readme: str, in_gate: str):
    assert in_gate in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert in_readme in (ROOT / "README.md").read_text(encoding="utf-8")


NAMESPACES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")
    for path in ROOT.glob("fngrad/**/*.py")
    if "\n__all__ = [" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", NAMESPACES)
def test_dir_of_a_namespace_lists_only_its_public_names(path: str):
    module = importlib.import_module(path.replace("/", "."))
    assert dir(module) == sorted(module.__all__)
    modules = (getattr(module, name) for name in dir(module))
    names = {m.__name__ for m in modules if isinstance(m, types.ModuleType)}
    assert all(name.startswith("fngrad.") for name in names)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_dir_of_every_namespace_of_the_face_is_tested():
    of_face = (getattr(fngrad, name) for name in fngrad.__all__)
    found = {m.__name__ for m in of_face if isinstance(m, types.ModuleType)}
    assert {"fngrad.closed_form", "fngrad.callbacks", "fngrad.tree"} <= found
    assert {name.replace(".", "/") for name in found} <= set(NAMESPACES)


@pytest.mark.parametrize("function", [fngrad.fit, *fngrad.REGISTRY.values()])
def test_a_signature_names_its_types_and_does_not_spell_them_out(function):
    assert "collections.abc" not in str(inspect.signature(function))


@pytest.mark.skipif(
    shutil.which("pyright", path=os.path.dirname(sys.executable)) is None,
    reason="pyright comes with the extra dev",
)
def test_the_type_of_every_public_name_is_known():
    scripts = os.path.dirname(sys.executable)  # whose libraries are to be found
    pyright = os.path.join(scripts, "pyright")
    done = subprocess.run(
        [pyright, "--verifytypes", "fngrad", "--ignoreexternal"],
        cwd=ROOT,
        env=os.environ
        | {"PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "Type completeness score: 100%" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout

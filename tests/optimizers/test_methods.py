"""One method, one file: where a rule is, and that its file says each thing once."""

import ast
import collections
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import pytest

import fngrad as fg
import fngrad.optimizers as optimizers
from fngrad.optimizers import REGISTRY

FOLDER = pathlib.Path(optimizers.__file__).parent
RULES = {**REGISTRY, "lbfgs": fg.lbfgs, "sophia": fg.sophia}
# Close relatives: one is an argument of the other, or both wrap one part.
SHARED = {
    "adamw": "adam",
    "momentum": "sgd",
    "signum": "sign_sgd",
    "schedule_free_sgd": "schedule_free",
    "schedule_free_adamw": "schedule_free",
    "dadapt_sgd": "dadapt",
    "dadapt_adamw": "dadapt",
}
NO_METHOD = {"__init__", "registry", "weight_decay", "distance_estimates"}
METHODS = sorted({path.stem for path in FOLDER.glob("*.py")} - NO_METHOD)


def file_complaints(rules: Mapping[str, Callable[..., object]]) -> Iterator[str]:
    for name, rule in rules.items():
        expected = f"fngrad.optimizers.{SHARED.get(name, name)}"
        if rule.__module__ != expected:
            yield f"{name} is in {rule.__module__}, not in {expected}"


def repetitions(source: str) -> list[str]:
    """Return the formulas and addresses that the docstrings of a file repeat."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    text = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    displayed = r"\qquad".join(re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL))
    formulas = re.split(r",?\s*\\qquad", displayed)
    said = ["".join(formula.split()) for formula in formulas]
    said += [address.rstrip(".,;`") for address in re.findall(r"https?://\S+", text)]
    return [x for x, count in collections.Counter(said).items() if x and count > 1]


def test_every_rule_is_in_the_file_of_its_name():
    assert not list(file_complaints(RULES))


def test_a_rule_in_another_file_is_refused():
    assert list(file_complaints({"adan": fg.adam}))
    assert list(file_complaints({"adamw": fg.adan}))
    assert not list(file_complaints({"adamw": fg.adamw}))


def test_every_file_of_the_folder_is_the_file_of_a_rule():
    assert SHARED.keys() <= RULES.keys()
    assert {SHARED.get(name, name) for name in RULES} == set(METHODS)


def test_every_registered_rule_is_on_the_face():
    for name, rule in RULES.items():
        assert getattr(fg, name) is rule, name
        assert getattr(optimizers, name) is rule, name
        assert name in fg.__all__, name
        assert name in optimizers.__all__, name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_each_formula_and_source_once(method: str):
    assert not repetitions((FOLDER / f"{method}.py").read_text(encoding="utf-8"))


def test_a_repeated_formula_or_source_is_found():
    one = 'def {}():\n    r"""Do.\n\n    $$a = b, \\qquad c = d$$\n    """\n'
    assert repetitions(one.format("f") + one.format("g")) == ["a=b", "c=d"]
    assert not repetitions(one.format("f"))
    link = 'def {}():\n    """Do: https://arxiv.org/abs/1."""\n'
    assert repetitions(link.format("f") + link.format("g"))

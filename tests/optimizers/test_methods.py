"""One method, one file: where a rule is, and that its file states each thing once."""

import ast
import collections
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import pytest

import fngrad as fg
import fngrad.optimizers as optimizers
from fngrad.optimizers import REGISTRY

FOLDER = pathlib.Path(optimizers.__file__).parent
RULES = {**REGISTRY, "lbfgs": fg.lbfgs, "sophia": fg.sophia}
# Close relatives: one is an argument of the other, both wrap one part, or one paper's
# two rules.
SHARED = {
    "adamw": "adam",
    "momentum": "sgd",
    "signum": "sign_sgd",
    "schedule_free_sgd": "schedule_free",
    "schedule_free_adamw": "schedule_free",
    "schedule_free_radam": "schedule_free",
    "dadapt_sgd": "dadapt",
    "dadapt_adamw": "dadapt",
    "muonh": "hyperball",
    "adamh": "hyperball",
}
SHARED_PARTS = {  # parts of no one method
    "scale_by_depth",
    "scale_by_learning_rate",
    "scale_by_schedule",
    "scale_by_step_length",
    "scale_by_trust_ratio",
    "scale_by_param_block_rms",
}
PARTS = {
    name: getattr(fg, name)
    for name in sorted(set(fg.__all__) - SHARED_PARTS)
    if name.startswith("scale_by_")
}
NOT_METHODS = {"__init__", "registry"}
METHODS = sorted({path.stem for path in FOLDER.glob("*.py")} - NOT_METHODS)


def misplaced_rules(rules: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    for name, rule in rules.items():
        expected = f"fngrad.optimizers.{SHARED.get(name, name)}"
        if rule.__module__ != expected:
            yield f"{name} is in {rule.__module__}, not in {expected}"


def misplaced_parts(parts: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    files = {f"fngrad.optimizers.{method}" for method in METHODS}
    for name, part in parts.items():
        if part.__module__ not in files:
            yield f"{name} is in {part.__module__}, not in the file of a method"


def repetitions(source: str) -> list[str]:
    """Return what the docstrings of a file repeat.

    These are displayed formulas, inline copies of them, links, citations and
    differences from a paper. Inline formulas may repeat each other: arguments are
    described in the part and in the recipe.
    """
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    text = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    displayed = formulas(r"\qquad".join(re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)))
    prose = re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
    stated = displayed + [
        formula
        for inline in re.findall(r"\$(.+?)\$", prose, re.DOTALL)
        for formula in formulas(inline)
        if formula in displayed
    ]
    stated += [link.rstrip(".,;`)") for link in re.findall(r"https?://\S+", text)]
    sentences = " ".join(text.replace("References:", ".").split())
    stated += re.findall(r"[A-Z][^.]*, (?:19|20)\d\d\b", sentences)
    stated += re.findall(r"Differs from [^.]+\.", sentences)
    return [x for x, count in collections.Counter(stated).items() if x and count > 1]


def formulas(text: str) -> list[str]:
    """Return the formulas of a display, without spaces and trailing punctuation."""
    parts = re.split(r"\\q?quad(?!\\text)", text)
    return [re.sub(r"\\[,;!]|\s", "", part).rstrip(".,;") for part in parts]


def test_every_rule_is_in_the_file_of_its_name():
    assert not list(misplaced_rules(RULES))
    assert fg.steps.sophia.__module__ == "fngrad.steps.sophia"


def test_a_rule_in_another_file_is_refused():
    assert list(misplaced_rules({"adan": fg.adam}))
    assert list(misplaced_rules({"adamw": fg.adan}))
    assert not list(misplaced_rules({"adamw": fg.adamw}))


def test_every_part_of_a_method_is_in_the_file_of_a_method():
    assert len(PARTS) > 25
    assert not list(misplaced_parts(PARTS))


@pytest.mark.parametrize("method", METHODS)
def test_every_part_of_a_method_is_exported(method: str):
    tree = ast.parse((FOLDER / f"{method}.py").read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in names if name.startswith("scale_by_")} <= PARTS.keys()


def test_a_part_in_another_folder_is_refused():
    assert list(misplaced_parts({"scale_by_adan": fg.scale_by_trust_ratio}))
    assert not list(misplaced_parts({"scale_by_adan": fg.scale_by_adan}))


def test_every_file_of_the_folder_is_the_file_of_a_rule():
    assert SHARED.keys() <= RULES.keys()
    assert {SHARED.get(name, name) for name in RULES} == set(METHODS)


def test_every_rule_that_the_folder_exports_is_registered():
    assert set(optimizers.__all__) - {"REGISTRY"} == RULES.keys()


def test_every_registered_rule_is_on_the_face():
    for name, rule in RULES.items():
        assert getattr(fg, name) is rule, name
        assert getattr(optimizers, name) is rule, name
        assert name in fg.__all__, name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_states_each_formula_and_source_once(method: str):
    assert not repetitions((FOLDER / f"{method}.py").read_text(encoding="utf-8"))


FORMULA = r"$$a_t = b\,c, \qquad d = e$$"
CITATION = "Xie et al., Adan: adaptive Nesterov momentum, 2022, algorithm 1."
REPEATED = {
    "displayed twice": (FORMULA, FORMULA),
    "displayed and inline": (FORMULA, r"With $d = e$ it is."),
    "a trailing comma": ("$$a = b$$", "$$a = b,$$"),
    "a thin space": ("$$a = b c$$", r"$$a = b\,c$$"),
    "quad for qquad": (FORMULA, r"$$f = g \quad d = e$$"),
    "a link": ("https://arxiv.org/abs/1.", "`x` (https://arxiv.org/abs/1)"),
    "a citation without its link": (CITATION + " https://arxiv.org/abs/1", CITATION),
    "a difference": (
        "Differs from it in: the\n    sign.",
        "Differs from it in: the sign.",
    ),
}


OTHER_DEFAULTS = {"scale_by_ademamix": {"alpha"}}  # as in optax
RECIPES = {"scale_by_belief": "adabelief", "scale_by_rms": "rmsprop"} | {
    part: name for name in RULES if (part := f"scale_by_{name}") in PARTS
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_part_and_its_recipe_have_the_same_defaults(name: str):
    own = inspect.signature(PARTS[name]).parameters
    theirs = inspect.signature(RULES[RECIPES[name]]).parameters
    shared = own.keys() & theirs.keys()
    differ = {a for a in shared if own[a].default != theirs[a].default}
    assert differ == OTHER_DEFAULTS.get(name, set())


# Prodigy and D-Adaptation scale the rate that they find, Adadelta its own units.
RATES = {
    "adadelta": 1.0,
    "adafactor": None,  # its own schedule
    "dadapt_adamw": 1.0,
    "dadapt_sgd": 1.0,
    "dog": 1.0,
    "prodigy": 1.0,
    "schedule_free_adamw": 0.0025,
    "schedule_free_radam": 0.0025,
    "schedule_free_sgd": 1.0,
}


def test_rules_have_a_learning_rate_by_default_only_where_their_paper_has_one():
    rates = {
        name: inspect.signature(rule).parameters["learning_rate"].default
        for name, rule in REGISTRY.items()
    }
    found = {
        name: rate
        for name, rate in rates.items()
        if rate is not inspect.Parameter.empty
    }
    assert found == RATES


def needs_nothing(part: Callable[..., Any]) -> bool:
    arguments = inspect.signature(part).parameters.values()
    return all(a.default is not a.empty for a in arguments)


@pytest.mark.parametrize(
    "name", [name for name, part in PARTS.items() if needs_nothing(part)]
)
def test_the_state_of_a_part_is_below_its_own_name(name: str):
    state = PARTS[name]().init({"w": jnp.ones((2, 2))})
    assert [*state] in ([name], [])


@pytest.mark.parametrize("evasion", REPEATED)
def test_a_repeated_formula_or_source_is_found(evasion: str):
    module = 'def {}():\n    r"""Do.\n\n    References:\n        {}\n    """\n'
    first, second = REPEATED[evasion]
    assert not repetitions(module.format("f", first))
    assert not repetitions(module.format("g", second))
    assert repetitions(module.format("f", first) + module.format("g", second))


def test_a_condition_in_words_is_part_of_its_formula():
    text = r"a = b \quad\text{if } c,\quad d = e"
    assert formulas(text) == [r"a=b\quad\text{if}c", "d=e"]
    text = r"a = b \quad\text{or}\quad c = d"
    assert formulas(text) == [r"a=b\quad\text{or}", "c=d"]


def test_a_source_is_cited_in_one_file():
    files = {}
    for method in METHODS:
        source = (FOLDER / f"{method}.py").read_text(encoding="utf-8")
        for link in set(re.findall(r"https?://[^\s`)]+[^\s`).,;]", source)):
            files.setdefault(link, []).append(method)
    assert len(files) > 30
    assert not {link: names for link, names in files.items() if len(names) > 1}

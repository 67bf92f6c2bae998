"""A name of another library leads to what stands for it here."""

import importlib
import re

import jax
import pytest

import fngrad as fg
from fngrad.programs.names_elsewhere import HERE

CASES = [(module, name) for module, names in HERE.items() for name in names]


@pytest.mark.parametrize("module", HERE)
def test_a_name_that_is_nowhere_is_missing_without_a_hint(module):
    namespace = importlib.import_module(module)
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        getattr(namespace, "nonsense")  # noqa: B009
    assert not hasattr(namespace, "__wrapped__")


def test_every_name_of_another_library_says_what_stands_for_it_here():
    for module, name in CASES:
        with pytest.raises(AttributeError, match=f"{name!r}; use "):
            getattr(importlib.import_module(module), name)


def test_what_stands_for_a_name_exists():
    roots = {"fngrad": fg, "jax": jax}
    for module, name in CASES:
        paths = re.findall(r"(?:fngrad|jax)\.[A-Za-z_.0-9]*\w", HERE[module][name])
        assert paths, (module, name)
        for path in paths:
            root, *parts = path.split(".")
            found = roots[root]
            for part in parts:
                found = getattr(found, part)

"""`fngrad optimizers`: the registry, with papers."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import fngrad.commands.texts as texts
import fngrad.optimizers as factories
from fngrad.optimizers import REGISTRY

_REFERENCES = re.compile(r"References:\n(.*?)(?:\n\s*\n|\Z)", re.DOTALL)
_LINK = re.compile(r"https?://\S+?(?=[.,]?(?:\s|$))")


def optimizers(*, json: bool = False) -> int:
    """List the optimizers that need only a learning rate, with their papers.

    Args:
        json: print JSON.
    """
    rows = [entry(name, factory) for name, factory in REGISTRY.items()]
    if json:
        print(texts.json_text(rows))
        return 0
    for row in rows:
        print(f"{row['name']}({row['arguments']})")
        print(f"    {row['summary']}")
        for link in row["papers"]:
            print(f"    {link}")
    return 0


def entry(name: str, factory: Callable[..., Any]) -> dict[str, Any]:
    """Return an optimizer's arguments, the first line of its docstring, its papers.

    An optimizer whose docstring has no link has those of the ones that it refers to.

    Args:
        name: of the optimizer.
        factory: its function.
    """
    docstring = inspect.getdoc(factory) or ""
    parameters = inspect.signature(factory).parameters.values()
    arguments = [
        p.name if p.default is p.empty else f"{p.name}={_short(p.default)}"
        for p in parameters
    ]
    return {
        "name": name,
        "arguments": ", ".join(arguments),
        "summary": docstring.partition("\n")[0],
        "papers": links(docstring) or _links_of_others(factory, docstring),
    }


def links(docstring: str) -> list[str]:
    """Return the links in the references of a docstring.

    Example:
        >>> from fngrad.commands.optimizers import links
        >>> links("A.\\n\\nReferences:\\n    One, 2024, https://a.org/x.1. Two.")
        ['https://a.org/x.1']
    """
    found = _REFERENCES.search(docstring)
    return _LINK.findall(found[1]) if found else []


def _links_of_others(factory: Any, docstring: str) -> list[str]:
    for name in re.findall(r"`(\w+)`", docstring):
        near = getattr(inspect.getmodule(factory), name, None)
        other = near or getattr(factories, name, None)
        found = links(inspect.getdoc(other) or "")
        if found:
            return found
    return []


def _short(default: Any) -> str:
    return getattr(default, "__name__", None) or repr(default)

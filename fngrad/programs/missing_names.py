"""What a namespace answers for a name that it lacks: what stands for it here.

A namespace that lacks a name looks it up, by its own ``__getattr__``: in its table of
`names_elsewhere`, among its own names, then in the other namespaces. Case, underscores
and some ends and beginnings of names do not count, as in ``FocalLoss``, ``Conv2d`` or
``tree_max``.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from fngrad.programs.names_elsewhere import HERE

_ENDS = {
    "fngrad.layers": re.compile("[123]d$"),
    "fngrad.losses": re.compile("loss$"),
    "fngrad.metrics": re.compile("score$"),
}
_BEGINNINGS = {
    "fngrad.metrics": re.compile(
        r"^(binary|multiclass|multilabel|(sparse)?categor\w*al)"
    ),
    "fngrad.tree": re.compile("^tree"),
}
# Whose names, such as `max` and `normal`, are for these and those around them.
_GENERIC = ("fngrad.tree", "fngrad.layers.initializers")
_MODULES = {"fngrad.projections": "fngrad.transforms.projections"}  # under other names
_MOST = 3  # namespaces that an answer names


def missing_from(namespace: str) -> Callable[[str], NoReturn]:
    """Return the ``__getattr__`` of a namespace, which knows names of other libraries.

    Args:
        namespace: its name, such as ``"fngrad.layers"``.

    Returns:
        A function of a name that raises AttributeError, with what stands for the name
        here, if it is one of another library.

    Example:
        >>> import fngrad as fg
        >>> fg.MultiSteps
        Traceback (most recent call last):
        ...
        AttributeError: module 'fngrad' has no attribute 'MultiSteps'; use \
fngrad.accumulate
    """

    def missing(name: str) -> NoReturn:
        # `import fngrad.postmortem.evidence as evidence` asks for a module in `fngrad`
        # that is still being imported, and then takes it from `sys.modules`.
        is_module = f"{_module(namespace)}.{name}" in sys.modules
        uses = [] if name.startswith("_") or is_module else _uses(namespace, name)
        hint = f"; use {' or '.join(uses)}" if uses else ""
        message = f"module {namespace!r} has no attribute {name!r}{hint}"
        if uses:
            raise AttributeError(message)
        # Python suggests a name that is spelled alike.
        raise AttributeError(
            message, name=name, obj=sys.modules.get(_module(namespace))
        )

    return missing


def _uses(namespace: str, name: str) -> list[str]:
    if own := _use(namespace, name):
        return [own]
    others = [n for n in HERE if n not in _GENERIC or n.startswith(f"{namespace}.")]
    found = filter(None, (_use(other, name) for other in others))
    return list(dict.fromkeys(found))[:_MOST]


def _use(namespace: str, name: str) -> str | None:
    known = _known(namespace)
    found = (known[form] for form in _forms(namespace, name) if form in known)
    return next(found, None)


def _forms(namespace: str, name: str) -> Iterator[str]:
    form = _plain(name)
    yield form
    for ends in (_ENDS, _BEGINNINGS):
        if namespace in ends:
            form = ends[namespace].sub("", form)
            yield form


def _known(namespace: str) -> dict[str, str]:
    """Return what stands for each name, by its plain form."""
    own = {_plain(n): f"{namespace}.{n}" for n in _names(namespace)}
    return own | {_plain(n): use for n, use in HERE[namespace].items()}


def _names(namespace: str) -> Sequence[str]:
    """Return the public names of a namespace; none while it is being imported."""
    # While fngrad itself is, an import would go round in a circle.
    is_whole = hasattr(sys.modules["fngrad"], "__all__")
    find = importlib.import_module if is_whole else sys.modules.get
    return getattr(find(_module(namespace)), "__all__", ())


def _module(namespace: str) -> str:
    return _MODULES.get(namespace, namespace)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()

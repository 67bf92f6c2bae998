"""Optional libraries: imported when used, and text that matplotlib does not parse."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fngrad.programs.missing_names import missing_from


def import_extra(
    module: str, extra: str, distribution: str | None = None
) -> ModuleType:
    """Import a module that fngrad does not depend on.

    Args:
        module: its dotted name, such as ``"matplotlib.figure"``.
        extra: the extra of fngrad that installs it, such as ``"plot"``.
        distribution: its name in the error, if that is not the module's first name.

    Raises:
        ImportError: if it is not installed; the message gives the pip command. If an
            installed module fails to import another one, that error is raised.

    Example:
        >>> from fngrad.programs.optional_imports import import_extra
        >>> import_extra("not_there.at_all", "plot")
        Traceback (most recent call last):
        ...
        ImportError: need not_there for this: pip install "fngrad[plot]"
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f'need {distribution or package} for this: pip install "fngrad[{extra}]"',
            name=package,
        ) from error


def literal(text: str) -> str:
    """Return text that matplotlib draws literally, not as mathtext.

    Metrics and hyperparameters may have any name: ``cost_$x_$`` is not a formula.
    Characters that cannot be printed are drawn as Python escapes them.

    Args:
        text: a name.

    Example:
        >>> from fngrad.programs.optional_imports import literal
        >>> print(literal("cost_$x_$"), literal("two\\nlines"))
        cost_\\$x_\\$ two\\nlines
    """
    shown = (c if c.isprintable() else repr(c)[1:-1] for c in text)
    return "".join(shown).replace("$", r"\$")


def imported_later(
    namespace: dict[str, Any], modules: dict[str, str]
) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``, which imports names at their first use.

    Args:
        namespace: the module's ``globals()``, where imported objects are kept.
        modules: by name, the module of that name or that defines it.

    Example:
        >>> from fngrad.programs.optional_imports import imported_later
        >>> namespace = {"__name__": "example"}
        >>> get = imported_later(namespace, {"sqrt": "math", "math": "math"})
        >>> get("sqrt")(9.0), namespace["sqrt"](4.0), get("math").floor(1.5)
        (3.0, 2.0, 1)
    """

    missing = missing_from(namespace["__name__"])

    def get(name: str) -> Any:
        if name not in modules:
            missing(name)
        module = importlib.import_module(modules[name])
        is_module = modules[name].rpartition(".")[2] == name
        namespace[name] = module if is_module else getattr(module, name)
        return namespace[name]

    return get

"""Libraries that are asked for by name, and imported when they are used."""

import importlib
from types import ModuleType


def import_extra(
    module: str, extra: str, distribution: str | None = None
) -> ModuleType:
    """Import a module that fngrad does not depend on.

    Args:
        module: its dotted name, such as ``"matplotlib.figure"``.
        extra: the extra of fngrad that installs it, such as ``"plot"``.
        distribution: what the error calls it, where that is not the module's first
            name.

    Raises:
        ImportError: it is not installed; the message gives the pip command. A module
            that is there but fails on an import of its own raises that error.

    Example:
        >>> from fngrad.extras import import_extra
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

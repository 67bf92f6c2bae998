"""Groups metrics into panels: those that measure one quantity share one."""

import re
from collections.abc import Iterable

MAX_PANELS = 12
NORM, LOSS = "norm", "loss"


def by_quantity(names: Iterable[str]) -> dict[str, list[str]]:
    """Group metrics by the quantity that they measure.

    A metric and its ``val/`` counterpart are one quantity, and so are all norms: names
    of which ``norm`` is a word, such as ``grad_norm`` and ``norm_before``. If that
    leaves more than `MAX_PANELS` groups, metrics are grouped by the last part of their
    names, after the last slash; if there are still too many, without its numbers.

    Args:
        names: of scalars.

    Returns:
        Quantity -> its metrics, in their order; the loss comes first. There may still
        be more than `MAX_PANELS`.

    Example:
        >>> from fngrad.logging.quantities import by_quantity
        >>> by_quantity(["grad_norm", "loss", "val/loss", "normalized_score"])
        {'loss': ['loss', 'val/loss'], 'norm': ['grad_norm'], \
'normalized_score': ['normalized_score']}
    """
    names = list(names)
    groups: dict[str, list[str]] = {}
    for quantity_of in (_measured, _last_part, _without_numbers):
        groups = {}
        for name in names:
            groups.setdefault(quantity_of(name), []).append(name)
        if len(groups) <= MAX_PANELS:
            break
    return dict(sorted(groups.items(), key=lambda item: item[0] != LOSS))


def _measured(name: str) -> str:
    own = name.removeprefix("val/")
    words = re.split(r"[^a-z]+", own.rpartition("/")[2].lower())
    return NORM if NORM in words else own


def _last_part(name: str) -> str:
    return _measured(name).rpartition("/")[2]


def _without_numbers(name: str) -> str:
    part = _last_part(name)
    return re.sub(r"[_.\-]*\d+", "", part) or part

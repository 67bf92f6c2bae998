"""Groups metrics into panels: those that measure one quantity share one."""

import re
from collections.abc import Iterable

MAX_PANELS = 12
NORM, LOSS = "norm", "loss"


def by_quantity(
    names: Iterable[str], known: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Group metrics by the quantity that they measure.

    A metric and its ``val/`` counterpart are one quantity, and so are all norms: names
    of which ``norm`` is a word, such as ``grad_norm`` and ``norm_before``. The parts of
    a metric, such as ``grad_norm/layers/0``, are a quantity of its name. If that leaves
    more than `MAX_PANELS` groups, metrics are grouped by the last part of their names,
    after the last slash; if there are still too many, without its numbers.

    Args:
        names: of scalars.
        known: further names, of which these may be parts.

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
    wholes = wholes_of(names, known)
    groups: dict[str, list[str]] = {}
    for quantity_of in (_measured, _last_part, _without_numbers):
        groups = {}
        for name in names:
            groups.setdefault(wholes.get(name, quantity_of(name)), []).append(name)
        if len(groups) <= MAX_PANELS:
            break
    return dict(sorted(groups.items(), key=lambda item: item[0] != LOSS))


def wholes_of(names: Iterable[str], known: Iterable[str] = ()) -> dict[str, str]:
    """Return the metrics that are parts of another one, by layer or group.

    Args:
        names: of metrics.
        known: further names, of which these may be parts.

    Returns:
        Part -> the metric of which it is a part.

    Example:
        >>> from fngrad.logging.quantities import wholes_of
        >>> wholes_of(["grad_norm", "grad_norm/layers/0", "val/loss"])
        {'grad_norm/layers/0': 'grad_norm'}
    """
    wholes, found = {*names, *known}, {}
    for name in names:
        ends = [i for i, letter in enumerate(name) if letter == "/"]
        prefixes = [name[:end] for end in ends if name[:end] in wholes]
        if prefixes:
            found[name] = prefixes[0]
    return found


def is_norm(name: str) -> bool:
    """Return whether a metric or a quantity is a norm."""
    return NORM in re.split(r"[^a-z]+", name.rpartition("/")[2].lower())


def _measured(name: str) -> str:
    own = name.removeprefix("val/")
    return NORM if is_norm(own) else own


def _last_part(name: str) -> str:
    return _measured(name).rpartition("/")[2]


def _without_numbers(name: str) -> str:
    part = _last_part(name)
    return re.sub(r"[_.\-]*\d+", "", part) or part

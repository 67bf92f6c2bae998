"""What an autopsy found, and its text."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fngrad.programs.printed import preformatted, shown
from fngrad.types import Path

_SHOWN = 4  # leaves, rows and norms in the text
_PHASES = {
    "state": "with the state that it was given",
    "batch": "with its batch",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer",
    "unknown": "",
}
_METRICS = ("loss", "grad_norm", "update_norm", "param_norm", "learning_rate")


class Autopsy(NamedTuple):
    """Why a step went bad; ``print`` shows it.

    ``phase`` is where the first bad number appeared: in the ``state`` or the ``batch``
    that the step was given, in the ``forward`` or ``backward`` pass, in the
    ``optimizer`` (everything after the gradient), or ``unknown`` where the step is
    finite when it is evaluated operation by operation.
    """

    step: int  # counts from 1
    phase: str
    operation: str | None  # the primitive; None for a bad state or batch
    explanation: str  # such as "exp(104.2) = inf"
    lines: list[str]  # its source lines, innermost first; the last is the user's
    layer: Path  # named scopes around the operation; empty outside layers
    leaf: Path | None  # the first bad one: batch/x, gradient/w, params/w
    leaves: list[Path]  # all bad ones, in the order of evaluation
    magnitudes: list[float]  # largest finite |entry| of each input; NaN without one
    rows: np.ndarray | None  # of the batch that make the step bad, where known
    indices: np.ndarray | None  # examples of the dataset: those rows, or all
    metrics: dict[str, np.ndarray]  # of the last steps; the bad one is the last
    norms: dict[Path, float]  # of the parameters before the step, largest first

    def __str__(self) -> str:
        where = _PHASES[self.phase]
        head = f"step {self.step} went bad {where}".rstrip()
        pairs = [(name, text) for name, text in _facts(self) if text]
        width = max((len(name) for name, _ in pairs), default=0)
        facts = [f"  {name:<{width}}  {text}" for name, text in pairs]
        return "\n".join([f"{head}: {self.explanation}", *facts])

    def __repr__(self) -> str:
        return shown(self, str)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def _facts(found: Autopsy) -> Iterator[tuple[str, str]]:
    yield "operation", found.operation or ""
    yield "layer", found.layer
    for line, name in zip(found.lines, ("line", "called from"), strict=False):
        yield name, line
    yield "first leaf", found.leaf or ""
    yield "other leaves", _some(found.leaves[1:])
    yield "inputs up to", ", ".join(f"{x:.4g}" for x in found.magnitudes)
    if found.rows is not None:
        yield "rows", _some(found.rows)
    if found.indices is not None:
        yield "examples", _some(found.indices)
    last = found.step
    count = len(next(iter(found.metrics.values()), []))
    yield "steps", "".join(f"{t:>11}" for t in range(last - count + 1, last + 1))
    for name in _METRICS:
        if name in found.metrics:
            yield name, "".join(f"{x:>11.4g}" for x in found.metrics[name])
    largest = [f"{path} {norm:.4g}" for path, norm in found.norms.items()]
    yield "norms before", _some(largest)


def _some(items: list | np.ndarray) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    more = len(items) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown

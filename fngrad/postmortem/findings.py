"""What an autopsy found, and how it is told."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

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
_TOLD = ("loss", "grad_norm", "update_norm", "param_norm", "learning_rate")


class Autopsy(NamedTuple):
    """Why a step went bad; ``print`` shows it.

    ``phase`` is where the first bad number came from: the ``state`` or the ``batch``
    that the step was given, the ``forward`` or ``backward`` pass, the ``optimizer``
    (all that comes after the gradient), or ``unknown`` where operation by operation
    the step is finite.
    """

    step: int  # counts from 1
    phase: str
    operation: str | None  # the primitive; None for a bad state or batch
    explanation: str  # such as "exp(104.2) = inf"
    lines: list[str]  # where it was written, innermost first; the last is the user's
    layer: Path  # named scopes around the operation; empty outside of layers
    leaf: Path | None  # the first that it made bad: batch/x, gradient/w, params/w
    leaves: list[Path]  # all that it made bad, in that order
    magnitudes: list[float]  # largest finite |entry| of each input of the operation
    rows: np.ndarray | None  # of the batch that alone do it, where they can be told
    indices: np.ndarray | None  # the dataset's examples: those rows, or all
    metrics: dict[str, np.ndarray]  # of the last steps; the bad one is the last
    norms: dict[Path, float]  # of the parameters' leaves before it, largest first

    def __str__(self) -> str:
        where = _PHASES[self.phase]
        head = f"step {self.step} went bad {where}".rstrip()
        pairs = [(name, text) for name, text in _facts(self) if text]
        width = max((len(name) for name, _ in pairs), default=0)
        facts = [f"  {name:<{width}}  {text}" for name, text in pairs]
        return "\n".join([f"{head}: {self.explanation}", *facts])


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
    for name in _TOLD:
        if name in found.metrics:
            yield name, "".join(f"{x:>11.4g}" for x in found.metrics[name])
    largest = [f"{path} {norm:.4g}" for path, norm in found.norms.items()]
    yield "norms before", _some(largest)


def _some(items: list | np.ndarray) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    more = len(items) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown

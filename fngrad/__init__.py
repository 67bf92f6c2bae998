"""fngrad: a purely functional training framework on JAX.

Training is a pure function. A transform is a pair of pure functions; a step takes a
state and a batch and gives the next state; a run is a fold of steps.
"""

__version__ = "0.1.0"

from fngrad.transforms.core import (
    Transform,
    apply_updates,
    chain,
    identity,
    named,
)
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.scaling import (
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from fngrad.tree import split

__all__ = [
    "Transform",
    "apply_updates",
    "chain",
    "freeze",
    "identity",
    "masked",
    "named",
    "partition",
    "scale",
    "scale_by_learning_rate",
    "scale_by_schedule",
    "split",
]

"""Names of the values that flow through a training run.

Every tree is a pytree of arrays; the names say which role it plays. A *path* is a
leaf's place in its tree, written ``layers/0/weight``.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import jax

Tree = TypeVar("Tree")

Params: TypeAlias = Any  # what is learned
Updates: TypeAlias = Any  # shaped like the parameters; added to them
OptState: TypeAlias = Any
ModelState: TypeAlias = Any  # what the model carries but does not learn
Batch: TypeAlias = Any  # arrays whose first axis counts examples
Metrics: TypeAlias = dict[str, jax.Array]  # scalars by name
Key: TypeAlias = jax.Array  # typed, shape (); jax.random.key(seed)
Path: TypeAlias = str
Mode: TypeAlias = Literal["min", "max"]  # which way a metric gets better
Reported: TypeAlias = tuple[
    Updates, OptState, Metrics
]  # by an update that also reports

Scalar: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[jax.Array], Scalar]  # step, int32 () -> value
Hyper: TypeAlias = float | jax.Array | Schedule

# A tree of bools (a prefix will do), a glob over paths, or a predicate.
Selector: TypeAlias = Any | str | Callable[[Path, Any], bool]

# (params, batch) -> loss, or more: see fngrad.training.make_step.
LossFn: TypeAlias = Callable[..., Any]

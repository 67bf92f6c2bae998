"""Names of the values that flow through a training run.

Every tree is a pytree of arrays; its name says which role it has. A *path* is the
position of a leaf in its tree, written ``layers/0/weight``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import jax

Tree = TypeVar("Tree")

Params: TypeAlias = Any  # what is trained
Updates: TypeAlias = Any  # shaped like the parameters; added to them
OptState: TypeAlias = Any
ModelState: TypeAlias = Any  # state of the model that is not trained
Batch: TypeAlias = Any  # arrays whose first axis counts examples
Metrics: TypeAlias = dict[str, jax.Array]  # scalars by name
Key: TypeAlias = jax.Array  # typed, shape (); jax.random.key(seed)
Path: TypeAlias = str
Mode: TypeAlias = Literal["min", "max"]  # the direction in which a metric improves
Reported: TypeAlias = tuple[Updates, OptState, Metrics]  # an update with metrics

Scalar: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[jax.Array], Scalar]  # step, int32 () -> value
Hyper: TypeAlias = float | jax.Array | Schedule

# A tree of bools (a prefix will do), a glob over paths or several, or a predicate.
Selector: TypeAlias = Any | str | Sequence[str] | Callable[[Path, Any], bool]

# (params, batch) -> loss, or more: see fngrad.training.make_step.
LossFn: TypeAlias = Callable[..., Any]

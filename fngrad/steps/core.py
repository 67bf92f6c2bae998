"""Updates of parameters, for the steps that evaluate the loss themselves.

Such a step evaluates one function, the loss for its batch, key and model state, more
than once or in more than one way. Its own state is that of a part of the optimizer,
which it finds by type (`fngrad.transforms.queries`).
"""

from typing import Any

import fngrad.tree as tree
from fngrad.training import TrainState
from fngrad.training.step_metrics import Move
from fngrad.transforms.core import Transform, apply_updates, update_and_report
from fngrad.types import Tree, Updates


def move_by(
    transform: Transform, state: TrainState, trainable: Any, gradient: Updates
) -> Move:
    """Call the optimizer with a gradient, or a direction in its place, and move."""
    updates, opt_state, reports = update_and_report(
        transform, gradient, state.opt_state, state.params
    )
    return Move(displace(state.params, trainable, updates), opt_state, updates, reports)


def displace(params: Tree, trainable: Any, updates: Updates) -> Tree:
    """Return params + updates for trainable leaves; the other leaves stay."""
    moved = apply_updates(tree.keep(trainable, params), tree.keep(trainable, updates))
    return tree.merge(moved, params)

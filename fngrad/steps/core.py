"""What all steps that look at the loss have in common.

Such a step evaluates one function, the loss at its batch with its key and model
state, more than once or in more than one way. What it keeps between steps is in the
state of a part of the optimizer, which it finds there by its type.
"""

from collections.abc import Callable
from typing import Any

import jax

import fngrad.tree as tree
from fngrad.training import TrainState
from fngrad.training.step_metrics import Move
from fngrad.transforms.core import Transform, apply_updates, update_and_report
from fngrad.types import Tree, Updates


def move_by(
    transform: Transform, state: TrainState, learned: Any, given: Updates
) -> Move:
    """Give the optimizer something, and go where its update leads."""
    updates, opt_state, told = update_and_report(
        transform, given, state.opt_state, state.params
    )
    return Move(displace(state.params, learned, updates), opt_state, updates, told)


def displace(params: Tree, learned: Any, updates: Updates) -> Tree:
    """Return params + updates where learned; the other leaves stay."""
    moved = apply_updates(tree.keep(learned, params), tree.keep(learned, updates))
    return tree.merge(moved, params)


def find_parts(state: Any, kind: type) -> list[Any]:
    """Return the nodes of one type in a state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]


def replace_parts(state: Any, kind: type, fn: Callable[[Any], Any], part: str) -> Any:
    """Return the state with ``fn(node)`` for every node of one type.

    Raises:
        ValueError: there is none; the message names the part that makes one.
    """
    if not find_parts(state, kind):
        raise ValueError(
            f"need an optimizer with the part {part}, got a state with the leaves "
            f"{list(tree.leaf_paths(state))}"
        )
    return jax.tree.map(
        lambda x: fn(x) if isinstance(x, kind) else x,
        state,
        is_leaf=lambda x: isinstance(x, kind),
    )

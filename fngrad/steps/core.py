"""What all steps that look at the loss have in common.

Such a step evaluates one function, the loss at its batch with its key and model
state, more than once or in more than one way. What it keeps between steps is in the
state of a part of the optimizer, which it finds there by its type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import fngrad.measures as measures
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.objective import Gradient, Value
from fngrad.training import TrainState
from fngrad.transforms.core import Transform, apply_updates, learned_leaves
from fngrad.types import Batch, Key, Metrics, OptState, Params, Tree, Updates


class Start(NamedTuple):
    """Where a step begins."""

    learned: Any  # which leaves move, a tree of bools
    key: Key  # of every evaluation in this step
    value: Value  # at the parameters
    grads: Updates  # at the parameters; zero where nothing is learned


class Move(NamedTuple):
    """What a step did."""

    params: Params
    opt_state: OptState
    updates: Updates  # params minus the old ones
    given: Updates  # what the optimizer was given
    seen: OptState  # the state it was given with


def open_step(transform: Transform, state: TrainState) -> tuple[Any, Key]:
    """Return which leaves are learned, and the key of this step.

    Raises:
        TypeError: the state is no TrainState.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"need a TrainState from init_state, got {type(state).__name__}"
        )
    key = jax.random.fold_in(state.key, state.step)
    return learned_leaves(transform, state.params), key


def begin(
    transform: Transform, gradient: Gradient, state: TrainState, batch: Batch
) -> Start:
    """Evaluate the loss and its gradient where the step begins."""
    learned, key = open_step(transform, state)
    value, grads = gradient(state.params, learned, batch, key, state.model_state)
    return Start(learned, key, value, grads)


def finish(
    transform: Transform, state: TrainState, start: Start, move: Move, more: Metrics
) -> tuple[TrainState, Metrics]:
    """Return the next state, and what every step reports with ``more``."""
    new_state = TrainState(
        numerics.next_step(state.step),
        state.key,
        move.params,
        move.opt_state,
        start.value.model_state,
    )
    metrics = measures.standard_metrics(
        transform,
        start.value,
        start.learned,
        start.grads,
        move.updates,
        move.seen,
        state.params,
        given=move.given,
        more=more,
    )
    return new_state, metrics


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

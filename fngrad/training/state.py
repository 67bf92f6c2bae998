"""The training state: all that changes during training."""

from typing import Any, NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.programs.leaf_tables as leaf_tables
import fngrad.tree as tree
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.programs.printed import preformatted, scalar_text, shown
from fngrad.transforms.core import TransformLike, chain
from fngrad.types import Key, ModelState, OptState, Params, Path, Tree


class TrainState(NamedTuple):
    """All that changes during training."""

    step: jax.Array  # int32, shape (); steps made so far
    key: Key  # typed, shape (); never changes
    params: Params
    opt_state: OptState
    model_state: ModelState  # () unless the loss carries one

    def __repr__(self) -> str:
        return shown(self, _text)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


@explains_keywords()
def init_state(
    params: Params,
    optimizer: TransformLike,
    key: int | Key,
    model_state: ModelState = (),
) -> TrainState:
    """Return the state of step 0.

    Args:
        params: a pytree of float or complex arrays.
        optimizer: the transform that is also passed to `make_step`.
        key: a typed key or an int of any size; all randomness of the run derives
            from it.
        model_state: state of the model that is not trained, e.g. batch statistics.

    Raises:
        TypeError: if a leaf is not an array, a trainable leaf is an integer array, the
            key is neither a typed key nor an int, or params is an optimizer or a model.
        ValueError: if there are no parameters, or an array is masked.
    """
    if hasattr(params, "init"):
        what = "an optimizer" if hasattr(params, "update") else "a model"
        raise TypeError(
            f"need init_state(params, optimizer, key), got {what} as params; "
            "model.init(key) gives a model's parameters"
        )
    opt_state = chain(optimizer).init(params)
    for path, leaf in tree.leaf_paths(model_state).items():
        numerics.check_unmasked(f"model_state at {path!r}", leaf)
    params, model_state = tree.strong((params, model_state))
    return TrainState(
        numerics.first_step(), numerics.key(key), params, opt_state, model_state
    )


def check_train_state(state: Any) -> None:
    """Raise unless a state is a TrainState.

    Raises:
        TypeError: if it is another object, such as a tuple of several states.
    """
    if isinstance(state, TrainState):
        return
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, TrainState))
    remedy = ""
    if any(isinstance(part, TrainState) for part in parts):
        remedy = (
            ": one TrainState holds several models, its params and opt_state are dicts "
            "with an entry for each; fngrad.partition gives each its own optimizer"
        )
    raise TypeError(
        f"need a TrainState from fngrad.init_state, got {type(state).__name__}{remedy}"
    )


def snapshot(state: Tree) -> Tree:
    """Return a state with a copy of every array, without weak types.

    A copy stays valid after the donation of the original. Leaves that share an array
    have separate copies.

    Raises:
        ValueError: if an array is masked.
    """

    def copied(path: Path, x: Any) -> jax.Array:
        numerics.check_unmasked(f"a state at {path!r}", x)
        return tree.copied(x)

    return tree.map_with_path(copied, state)


def _text(state: TrainState) -> str:
    """Return the step, a table of the parameters, and what else there is in bytes."""
    params = leaf_tables.leaves_of(state.params)
    rest = ""
    for name, part in (
        ("opt_state", state.opt_state),
        ("model_state", state.model_state),
    ):
        if leaves := leaf_tables.leaves_of(part):
            rest += f"; {name} {sum(leaf.bytes for leaf in leaves):,} bytes"
    amount = leaf_tables.amount(params)
    head = f"TrainState(step={scalar_text(state.step)}): {amount}{rest}"
    return f"{head}\n{leaf_tables.table(params, most=leaf_tables.MOST)}"

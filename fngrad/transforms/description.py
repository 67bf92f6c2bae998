"""A table of what an optimizer does with each parameter."""

from typing import Any, NamedTuple

import jax

import fngrad.programs.text_tables as text_tables
import fngrad.transforms.structure as structure
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    chain,
    trainable_leaves,
)
from fngrad.transforms.leaf_states import num_bytes, stack_name, state_by_leaf
from fngrad.types import Params, Path


def describe(optimizer: TransformLike, params: Params) -> str:
    """Return a table of what an optimizer does with each parameter.

    One line per leaf: path, shape, dtype, its group if there are any, learning rate and
    weight decay, whether it is trainable, and the state kept for it, with its bytes; of
    the stacks of `stack_leaves` its share. A line ``(shared)`` has the arrays that
    belong to no leaf, without counters and other scalars. The last line has the totals.
    A schedule is given by its name, a hyperparameter of `tunable` by its first value.

    Args:
        optimizer: a transform.
        params: arrays or ShapeDtypeStructs; nothing is computed.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"embed": jnp.ones((5, 2)), "head": jnp.ones(2)}
        >>> rule = fg.adamw(1e-3, weight_decay=0.1)
        >>> optimizer = fg.partition([("embed", fg.freeze()), ("**", rule)])
        >>> print(fg.describe(optimizer, params))  # doctest: +ELLIPSIS
        leaf   shape   dtype    group  learning rate  decay  trainable  state
        embed  (5, 2)  float32  embed  none           none   no         none
        head   (2,)    float32  **     0.001          0.1    yes        scale_by_adam...
        total  12 parameters, 2 trainable, 28 bytes of state
    """
    state = jax.eval_shape(optimizer.init, params)
    leaves = tree.leaf_paths(params)
    is_trainable = tree.leaf_paths(trainable_leaves(chain(optimizer), params))
    trainable = {p: leaf for p, leaf in leaves.items() if is_trainable[p]}
    kept = state_by_leaf(state, params)
    facts = {path: _facts(optimizer, path, leaf) for path, leaf in leaves.items()}
    has_groups = any(fact.groups for fact in facts.values())
    head = ["group"] * has_groups + ["learning rate", "decay", "trainable", "state"]
    rows = [["leaf", "shape", "dtype", *head]]
    for path, leaf in leaves.items():
        answer = "yes" if path in trainable else "no"
        groups, *numbers = facts[path]
        numbers = numbers if path in trainable else [[], []]
        texts = [_joined(some) for some in ([groups] * has_groups + numbers)]
        first = [path, str(leaf.shape), str(leaf.dtype), *texts]
        rows.append([*first, answer, _sum_up(kept.of_leaves[path])])
    if kept.shared:
        rows.append(["(shared)", _sum_up(kept.shared)])
    sizes = [tree.size(some) for some in (leaves, trainable)]
    total = (
        f"{sizes[0]} parameters, {sizes[1]} trainable, "
        f"{num_bytes(state)} bytes of state"
    )
    return text_tables.table([*rows, ["total", total]])


class _Facts(NamedTuple):
    """What is known of an optimizer at a leaf, as text."""

    groups: list[str]  # the globs of the partitions that hold the leaf, outermost first
    rates: list[str]
    decays: list[str]


def _facts(transform: Any, path: Path, leaf: Any) -> _Facts:
    """Collect over all parts that get a leaf."""
    facts = _Facts([], [], [])
    if not isinstance(transform, Transform):
        return facts
    for part in structure.parts_of(transform):
        if part is not transform and structure.is_composed(part):
            _extend(facts, _facts(part, path, leaf))
            continue
        values = structure.hyperparameters_of(part)
        if "learning_rate" in values:
            facts.rates.append(structure.value_text(values["learning_rate"]))
        mask = structure.variables_of(part).get("mask")
        decay = structure.value_text(values.get("weight_decay", 0))
        if decay != "0" and _takes(mask, path, leaf):
            facts.decays.append(decay)
        seen = _seen_inside(part, path, leaf)
        for group in structure.groups_of(part):
            if group.takes is None or group.takes(*seen):
                facts.groups.extend([group.label] if group.label else [])
                _extend(facts, _facts(group.inner, *seen))
                break
    return facts


def _seen_inside(part: Transform, path: Path, leaf: Any) -> tuple[Path, Any]:
    """Return the path and the leaf that the selectors inside of a part get."""
    wrapper = structure.name_of_part(part)
    if wrapper == "stack_leaves":
        return stack_name(leaf), leaf
    if wrapper == "layerwise" and structure.variables_of(part)["selects"](path, leaf):
        return path, jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return path, leaf


def _extend(facts: _Facts, more: _Facts) -> None:
    for some, others in zip(facts, more, strict=True):
        some.extend(others)


def _takes(mask: Any, path: Path, leaf: Any) -> bool:
    return mask is None or tree.selector_predicate(mask)(path, leaf)


def _joined(texts: list[str]) -> str:
    """Return different texts in order."""
    return ", ".join(dict.fromkeys(texts)) or "none"


def _sum_up(kept: dict[Path, int]) -> str:
    if not kept:
        return "none"
    names = ["/".join(path.split("/")[-2:]) for path in kept]
    return f"{', '.join(names)}: {sum(kept.values())} bytes"

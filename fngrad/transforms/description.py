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
from fngrad.transforms.quantized_update import is_short
from fngrad.types import Params, Path


def describe(optimizer: TransformLike, params: Params) -> str:
    """Return a table of what an optimizer does with each parameter.

    One line per leaf: path, shape, dtype, its group if there are any, learning rate and
    weight decay, whether it is trainable, and the state kept for it, with its bytes.
    The last line has the totals. A schedule is given by its name, a hyperparameter of
    `tunable` by its first value.

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
    arrays, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_short)
    leaves = tree.leaf_paths(params)
    is_trainable = tree.leaf_paths(trainable_leaves(chain(optimizer), params))
    trainable = {p: leaf for p, leaf in leaves.items() if is_trainable[p]}
    by_path = {
        tree.path_string(path).removesuffix("/leaves"): array for path, array in arrays
    }
    kept = _state_by_leaf(by_path, leaves)
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
        rows.append([*first, answer, _sum_up(kept[path])])
    sizes = [sum(x.size for x in some.values()) for some in (leaves, trainable)]
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
        if part.name == "stack_leaves":  # its selectors get the name of a stack
            path = f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"
        values = structure.hyperparameters_of(part)
        if "learning_rate" in values:
            facts.rates.append(structure.value_text(values["learning_rate"]))
        mask = structure.variables_of(part).get("mask")
        decay = structure.value_text(values.get("weight_decay", 0))
        if decay != "0" and _takes(mask, path, leaf):
            facts.decays.append(decay)
        for group in structure.groups_of(part):
            if group.takes is None or group.takes(path, leaf):
                facts.groups.extend([group.label] if group.label else [])
                _extend(facts, _facts(group.inner, path, leaf))
                break
    return facts


def _extend(facts: _Facts, more: _Facts) -> None:
    for some, others in zip(facts, more, strict=True):
        some.extend(others)


def _takes(mask: Any, path: Path, leaf: Any) -> bool:
    return mask is None or tree.selector_predicate(mask)(path, leaf)


def _joined(texts: list[str]) -> str:
    """Return different texts in order."""
    return ", ".join(dict.fromkeys(texts)) or "none"


def _state_by_leaf(
    state: dict[Path, Any], leaves: dict[Path, Any]
) -> dict[Path, dict[str, Any]]:
    """Return each parameter's state: arrays of its shape whose path ends in its own."""
    kept: dict[Path, dict[str, Any]] = {path: {} for path in leaves}
    for full, leaf in state.items():
        owners = [
            path
            for path, param in leaves.items()
            if f"/{full}".endswith(f"/{path}") or not path
            if leaf.shape == param.shape
        ]
        if owners:
            owner = max(owners, key=len)
            kept[owner][full.removesuffix(owner).removesuffix("/")] = leaf
    return kept


def _sum_up(kept: dict[str, Any]) -> str:
    if not kept:
        return "none"
    names = ["/".join(prefix.split("/")[-2:]) for prefix in kept]
    return f"{', '.join(names)}: {num_bytes(kept)} bytes"


def num_bytes(a: Any) -> int:
    """Return the size of a tree's arrays, which may be abstract, in bytes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(a))

"""A table of a model's layers, or of the leaves of its parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.layers.layer_tree as layer_tree
import fngrad.programs.leaf_tables as leaf_tables
import fngrad.programs.text_tables as text_tables
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.programs.operation_counts import costs
from fngrad.types import Path


class _Line(NamedTuple):
    """A layer of the table."""

    label: str
    output: str
    leaves: list[leaf_tables.Leaf]  # of the parameters
    flops: int


def leaf_table(params: Any) -> str:
    """Return a table of the leaves of parameters, see `fngrad.summary`.

    Raises:
        ValueError: if there are none.
    """
    leaves = leaf_tables.leaves_of(params)
    if not leaves:
        raise ValueError("need parameters, at least one array, got an empty tree")
    return leaf_tables.table(leaves, share=True, total=True)


def layer_table(layer: Layer | StatefulLayer, example: Any) -> str:
    """Return a table of a layer and of those inside of it, see `fngrad.summary`.

    Raises:
        TypeError: if there is no example.
        ValueError: from the layer, if the example does not fit.
    """
    if example is None:
        raise TypeError(
            "need an example for a layer: fngrad.summary(model, x) with one x, without "
            "a batch axis; fngrad.summary(params) takes parameters alone"
        )
    params, state = layer_tree.abstract_init(layer)
    x = jax.tree.map(_abstract, example)
    lines: list[_Line] = []
    _collect(lines, layer, params, state, x, "", 0, 1)
    whole = lines[0]
    count = sum(leaf.count for leaf in whole.leaves)
    rows = [["layer", "output", "parameters", "bytes", "share", "FLOPs"]]
    rows += [_row(line, count) for line in lines]
    totals = [leaf_tables.amount(whole.leaves)]
    if leaves := leaf_tables.leaves_of(state):
        totals.append(f"model_state {sum(leaf.bytes for leaf in leaves):,} bytes")
    totals.append(f"{whole.flops:,} FLOPs forward")
    return text_tables.table([*rows, ["total", ", ".join(totals)]], left=2)


def _collect(
    lines: list[_Line],
    layer: Any,
    params: Any,
    state: Any,
    x: Any,
    path: Path,
    depth: int,
    times: int,
) -> Any:
    """Add the lines of a layer and of those inside of it; return its abstract output.

    Args:
        lines: of the table.
        layer: a layer or a function of x.
        params: of one pass through the layer, abstract.
        state: likewise.
        x: the input, abstract.
        path: of the layer in its combinator.
        depth: how many combinators it is in.
        times: how many passes the loops around it make.
    """
    y, flops = _forward(layer, params, state, x)
    label = f"{path} {layer_tree.full_name(layer)}".strip()
    leaves = [
        leaf._replace(count=leaf.count * times, bytes=leaf.bytes * times)
        for leaf in leaf_tables.leaves_of(params)
    ]
    lines.append(_Line("  " * depth + label, _shapes(y), leaves, flops * times))
    inside = layer
    while (parts := layer_tree.parts_of(inside)).inner is not None:
        if parts.count is not None:
            params, state = _one_pass(params), _one_pass(state)
            times *= parts.count
        inside = layer_tree.original(parts.inner)
    for child in parts.children:
        is_tied = child.shares is not None
        place = child.shares if is_tied else child.place
        own = layer_tree.at_place(params, place)
        own_state = layer_tree.at_place(state, child.place)
        entry, at = layer_tree.original(child.layer), len(lines)
        z = _collect(lines, entry, own, own_state, x, child.path, depth + 1, times)
        if is_tied:  # what it takes is counted where it stands
            lines[at:] = [line._replace(leaves=[]) for line in lines[at:]]
        x = z if parts.in_turn else x
    return y


def _forward(layer: Any, params: Any, state: Any, x: Any) -> tuple[Any, int]:
    """Return a layer's abstract output, and the FLOPs of its forward pass."""
    if isinstance(layer, StatefulLayer):
        args = (params, state, x)
        y, _ = jax.eval_shape(layer.apply, *args)
        return y, costs(layer.apply, *args).flops
    args = (params, x) if isinstance(layer, Layer) else (x,)
    apply = layer.apply if isinstance(layer, Layer) else layer
    return jax.eval_shape(apply, *args), costs(apply, *args).flops


def _one_pass(a: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), a)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    if isinstance(dtype, np.dtype):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(np.shape(x), dtype)


def _shapes(y: Any) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in jax.tree.leaves(y))


def _row(line: _Line, whole: int) -> list[str]:
    count = sum(leaf.count for leaf in line.leaves)
    size = sum(leaf.bytes for leaf in line.leaves)
    numbers = [f"{count:,}", f"{size:,}", leaf_tables.percent(count, whole)]
    return [line.label, line.output, *numbers, f"{line.flops:,}"]

"""What a layer is made of: its name, its children, its sizes, for people.

It also says how the same is made of other layers, such as attention with a cache.

A layer is two functions. What a combinator's ``apply`` is made of stands in an
attribute of that function; every other layer is named after the function that made it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax

import fngrad.programs.leaf_tables as leaf_tables
import fngrad.programs.text_tables as text_tables
from fngrad.types import Path

IDENTITY = "identity"  # the name of a `serial` without layers
_PARTS = "_parts"
_LIFTED = "_lifted"
_MOST_LINES = 40
_MOST_SHAPES = 3

Apply = TypeVar("Apply", bound=Callable[..., Any])


class Child(NamedTuple):
    """A layer in a combinator."""

    path: Path  # as in messages
    place: int | str | None  # in the parameters; None for what has none
    layer: Any  # a layer or a function of x
    shares: int | str | None = None  # the place of the child whose parameters it takes


class Parts(NamedTuple):
    """What an ``apply`` is made of."""

    name: str
    children: tuple[Child, ...] = ()
    in_turn: bool = True  # whether each child gets the output of the one before it
    inner: Any = None  # a layer with the same parameters, in place of children
    count: int | None = None  # how often a loop applies the inner layer
    # A function of layers -> the layer made of what it returns for each one inside.
    rebuilt: Callable[[Callable[[Any], Any]], Any] | None = None
    # Of a layer of sequences: (max_length, dtype) -> the one with a cache as its state,
    # and () -> the one with attention weights as its state.
    cached: Callable[[int, Any], Any] | None = None
    weighing: Callable[[], Any] | None = None
    by_position: bool = False  # whether y at a position depends on x there alone
    tokens: int | None = None  # of x, which are ints in [0, tokens)


class Node(NamedTuple):
    """A layer in the tree, with its abstract parameters and state."""

    path: Path
    depth: int
    name: str
    layer: Any
    params: Any  # None where they are not known
    state: Any
    has_children: bool


def made_of(apply: Apply, parts: Parts) -> Apply:
    """Return an ``apply`` that knows what it is made of."""
    setattr(apply, _PARTS, parts)
    return apply


def by_position(apply: Apply) -> Apply:
    """Return an ``apply`` that treats each position of a sequence by itself."""
    return made_of(apply, Parts(_maker_of(apply), by_position=True))


def same_parts(apply: Apply, source: Callable[..., Any]) -> Apply:
    """Return an ``apply`` that is made of the same as another one."""
    parts = getattr(source, _PARTS, None)
    return apply if parts is None else made_of(apply, parts)


def lifted_from(apply: Apply, entry: Any) -> Apply:
    """Return the ``apply`` of a stateful layer that stands for ``entry``."""
    setattr(apply, _LIFTED, entry)
    return apply


def parts_of(layer: Any) -> Parts:
    """Return what a layer or a function is made of; of other layers, the name."""
    apply = getattr(layer, "apply", None)
    if apply is None:
        return Parts(_function_name(layer))
    return getattr(apply, _PARTS, None) or Parts(_maker_of(apply))


def changed(layer: Any, change: Callable[[Any, Parts], Any]) -> Any:
    """Return a layer in which ``change`` replaced every layer that is not a combinator.

    Args:
        layer: a layer or a function of x.
        change: (layer, what it is made of) -> the one in its place.
    """
    parts = parts_of(layer)
    if parts.rebuilt is None:
        return change(layer, parts)
    return parts.rebuilt(lambda inner: changed(inner, change))


def original(layer: Any) -> Any:
    """Return the layer or function from which a stateful layer was lifted."""
    return getattr(getattr(layer, "apply", None), _LIFTED, layer)


def full_name(layer: Any) -> str:
    """Return a layer's name with those inside, as ``repeat(residual(serial), 3)``."""
    parts = parts_of(layer)
    if parts.inner is None:
        return parts.name
    count = "" if parts.count is None else f", {parts.count}"
    return f"{parts.name}({full_name(original(parts.inner))}{count})"


def own_children(layer: Any) -> tuple[Child, ...]:
    """Return the children of a layer or of the layer inside of it."""
    parts = parts_of(layer)
    return parts.children if parts.inner is None else own_children(parts.inner)


def tokens_of(layer: Any) -> int | None:
    """Return how many tokens a model knows, if its x go to an embedding at once."""
    parts = parts_of(layer)
    if parts.inner is not None:
        return tokens_of(original(parts.inner))
    of_x = parts.children[:1] if parts.in_turn else parts.children
    counts = [parts.tokens, *(tokens_of(original(child.layer)) for child in of_x)]
    return min((n for n in counts if n is not None), default=None)


def abstract_init(layer: Any) -> tuple[Any, Any]:
    """Return a layer's parameters and model state as ShapeDtypeStructs.

    A model state of ``()`` stands for none. Nothing is computed.
    """
    if not hasattr(layer, "init"):
        return (), ()
    made = jax.eval_shape(lambda: layer.init(jax.random.key(0)))
    return made if is_stateful(layer) else (made, ())


def is_stateful(layer: Any) -> bool:
    """Return whether a layer carries a state."""
    return type(layer).__name__ == "StatefulLayer"


def nodes(
    layer: Any, params: Any, state: Any, path: Path = "", depth: int = 0
) -> Iterator[Node]:
    """Yield a layer and all layers inside of it, from the outside in."""
    children = own_children(layer)
    name = full_name(layer)
    yield Node(path, depth, name, layer, params, state, bool(children))
    for child in children:
        entry = original(child.layer)
        own, own_state = at_place(params, child.place), at_place(state, child.place)
        yield from nodes(entry, own, own_state, child.path, depth + 1)


def at_place(a: Any, place: int | str | None) -> Any:
    """Return the parameters or the state of a child; ``()`` if it has none."""
    if a is None or place is None or a == ():
        return None if a is None else ()
    return a[place] if isinstance(place, str) else a["layers"][place]


def text(layer: Any) -> str:
    """Return the tree of a layer with its sizes."""
    try:
        params, state = abstract_init(layer)
    except Exception:  # an init with other arguments, or with an error of its own
        params, state = None, None
    found = list(nodes(layer, params, state))
    head = f"{type(layer).__name__}: {found[0].name}"
    if params is not None:
        head += f", {leaf_tables.amount(leaf_tables.leaves_of(params))}"
    if leaves := leaf_tables.leaves_of(state):
        head += f"; model_state {sum(leaf.bytes for leaf in leaves):,} bytes"
    if len(found) == 1:
        return head + (f": {_shapes(params)}" if _shapes(params) else "")
    rows = [_row(node) for node in found[1:]]
    more = len(rows) - _MOST_LINES
    lines = text_tables.table(rows[:_MOST_LINES], left=4)
    return f"{head}\n{lines}" + (f"\n  ... and {more} more" if more > 0 else "")


def _row(node: Node) -> list[str]:
    leaves = leaf_tables.leaves_of(node.params)
    count = f"{sum(leaf.count for leaf in leaves):,}" if leaves else ""
    shapes = "" if node.has_children else _shapes(node.params)
    return ["  " * node.depth + node.path, node.name, count, shapes]


def _shapes(params: Any) -> str:
    """Write the leaves of a layer as ``bias (3,), weight (4, 3)``."""
    leaves = leaf_tables.leaves_of(params)
    texts = [f"{leaf.path} {leaf.shape}".strip() for leaf in leaves]
    more = len(texts) - _MOST_SHAPES
    shown = ", ".join(texts[:_MOST_SHAPES])
    return f"{shown} and {more} more" if more > 0 else shown


def _maker_of(apply: Callable[..., Any]) -> str:
    """Return the name of the function that made an ``apply``, or else of itself."""
    if isinstance(apply, functools.partial):
        return _maker_of(apply.func)
    qualname = getattr(apply, "__qualname__", type(apply).__qualname__)
    outer, inside, _ = qualname.rpartition(".<locals>.")
    return (outer if inside else qualname).split(".")[-1].strip("_<>")


def _function_name(fn: Any) -> str:
    if isinstance(fn, functools.partial):
        return _function_name(fn.func)
    return getattr(fn, "__name__", type(fn).__name__).strip("<>")

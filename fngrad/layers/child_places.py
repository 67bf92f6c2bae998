"""Where the parameters and states of a combinator's children are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fngrad.layers.core import REMEDY, StatefulLayer
from fngrad.types import Path


class PlacedChild(NamedTuple):
    """A layer in a combinator, and where its parameters are."""

    layer: StatefulLayer
    place: int | str | None  # in the parameters; None for what has none of its own
    path: Path  # in messages
    shares: int | str | None = None  # the place of another child, whose it takes


def check_shares(children: tuple[PlacedChild, ...]) -> None:
    """Raise unless every tied child names another one with parameters.

    Raises:
        ValueError: if one does not.
    """
    places = [child.place for child in children if child.place is not None]
    for child in children:
        if child.shares is not None and child.shares not in places:
            raise ValueError(
                f"{child.path}: need to tie it to one of the entries {places}, which "
                f"have parameters, got {child.shares!r}"
            )


def pack(children: tuple[PlacedChild, ...], values: Sequence[Any]) -> Any:
    """Put what belongs to the children at their places."""
    placed = [
        (child.place, value)
        for child, value in zip(children, values, strict=True)
        if child.place is not None
    ]
    if any(isinstance(place, str) for place, _ in placed):
        return dict(placed)
    return {"layers": [value for _, value in placed]}


def unpack(what: str, children: tuple[PlacedChild, ...], packed: Any) -> list[Any]:
    """Return each child's entry, or that of the one it is tied to; () without one."""
    places = [child.place for child in children if child.place is not None]
    if not places:
        return [()] * len(children)
    is_named = isinstance(places[0], str)
    found = packed if is_named else _field(packed, "layers")
    if not _fits(places, found):
        count = f"{len(places)} entries under 'layers'"
        need = f"the entries {places}" if is_named else count
        is_state_missed = what == "model state" or (
            isinstance(packed, tuple) and len(packed) == 2
        )
        remedy = REMEDY if is_state_missed else ""
        if not is_named and _is_stacked(packed, len(places)):
            remedy = "; fngrad.layers.unstack_layers converts those of layers.repeat"
        raise ValueError(
            f"need {what} that this model's init made, with {need}, "
            f"got {describe(packed)}{remedy}"
        )
    return [() if at is None else found[at] for at in map(_source, children)]


def _is_stacked(packed: Any, count: int) -> bool:
    leaves = jax.tree.leaves(packed)
    return bool(leaves) and all(jnp.shape(leaf)[:1] == (count,) for leaf in leaves)


def _source(child: PlacedChild) -> int | str | None:
    return child.place if child.shares is None else child.shares


def _field(packed: Any, name: str) -> Any:
    return packed.get(name) if isinstance(packed, dict) else None


def _fits(places: list[Any], found: Any) -> bool:
    if isinstance(places[0], str):
        return isinstance(found, dict) and set(found) == set(places)
    return isinstance(found, list | tuple) and len(found) == len(places)


def describe(packed: Any) -> str:
    """Return for messages what stands in the place of a combinator's parameters."""
    if isinstance(packed, dict):
        inner = packed.get("layers")
        if isinstance(inner, list | tuple):
            return f"{len(inner)} entries under 'layers'"
        return f"a dict with the entries {list(packed)}"
    if isinstance(packed, list | tuple):
        return f"a {type(packed).__name__} of {len(packed)} entries"
    return f"a {type(packed).__name__}"

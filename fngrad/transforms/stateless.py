"""Transforms without a state."""

from collections.abc import Callable

from fngrad.transforms.core import Transform, chain
from fngrad.types import Params, Updates


def stateless(change: Callable[[Updates, Params], Updates], name: str) -> Transform:
    """Make a transform of a function that maps updates and parameters to updates."""

    def update(updates: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
        return change(updates, params), state

    return chain(Transform(lambda params: (), update, name=name))

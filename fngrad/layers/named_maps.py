"""Several affine maps by name: the parameters of attention and of gated layers."""

from collections.abc import Callable
from typing import TypeAlias

import jax

import fngrad.numerics as numerics
from fngrad.layers.initializers import ZEROS, Initializer, dense_params, dense_shapes
from fngrad.types import Key, Params, Path

# By name the shape of the weight, ``(in_size, out_size)``, and what draws it.
Maps: TypeAlias = dict[str, tuple[tuple[int, int], Initializer]]


def shapes_of_maps(maps: Maps, bias: bool) -> dict[Path, tuple[int, ...]]:
    """Return the shapes of the parameters by path."""
    shapes: dict[Path, tuple[int, ...]] = {}
    for name, (shape, _) in maps.items():
        shapes |= dense_shapes(shape, bias, name)
    return shapes


def init_of_maps(maps: Maps, bias: bool) -> Callable[[Key], Params]:
    """Return the ``init`` of a layer of such maps; a bias begins at 0."""
    bias_init = ZEROS if bias else None

    def init(key: Key) -> Params:
        keys = jax.random.split(numerics.key(key), len(maps))
        return {
            name: dense_params(k, shape, weight_init, bias_init)
            for k, (name, (shape, weight_init)) in zip(keys, maps.items(), strict=True)
        }

    return init

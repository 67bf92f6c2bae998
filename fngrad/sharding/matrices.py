"""Rules of whole matrices on a mesh: which device computes what.

Iterations and decompositions of a matrix that is split over devices would communicate
in every product. So a matrix is gathered once before them, and every device computes
the same; what follows needs its part only. Of a stack of equal matrices each device
computes its share, if the number of devices divides theirs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import fngrad.tree as tree
from fngrad.sharding.constraints import WHOLE, constrained
from fngrad.sharding.meshes import BATCH_AXIS, AnyMesh, batch_devices
from fngrad.types import Tree


class Place(NamedTuple):
    """Where a function of a matrix computes."""

    mesh: AnyMesh | None
    axis: str | None  # of the mesh, over which the stack of the matrix is divided

    def gather(self, a: Tree) -> Tree:
        """Return arrays whole: on the device that has them of a stack, else on all."""
        return jax.tree.map(lambda x: constrained(x, WHOLE, self.mesh), a)

    def share(self, a: Tree) -> Tree:
        """Gather arrays of a stack that is divided; others stay as they are."""
        return a if self.axis is None else self.gather(a)


def map_matrices(
    fn: Callable[..., Any], a: Tree, *rest: Tree, mesh: AnyMesh | None, outputs: int = 1
) -> Any:
    """Map ``fn(place, leaf, *parts)`` over leaves, as `fngrad.tree.map_leaves` does.

    Args:
        fn: takes first the `Place` in which to compute.
        a: a tree of arrays and stacks.
        rest: trees that have the structure of ``a`` or subtrees in place of its leaves.
        mesh: on which the arrays are (`auto_mesh_of`); with None nothing is gathered or
            divided.
        outputs: how many values ``fn`` returns.
    """

    def of_stack(count: int) -> Callable[..., Any]:
        axis = _axis(count, mesh)
        mapped = functools.partial(fn, Place(mesh, axis))
        return jax.vmap(mapped, spmd_axis_name=axis)

    mapped = functools.partial(fn, Place(mesh, None))
    return tree.map_leaves(mapped, a, *rest, outputs=outputs, of_stack=of_stack)


def _axis(count: int, mesh: AnyMesh | None) -> str | None:
    """Return the mesh axis over which a stack is divided."""
    devices = 1 if mesh is None else batch_devices(mesh)
    return BATCH_AXIS if devices > 1 and count % devices == 0 else None

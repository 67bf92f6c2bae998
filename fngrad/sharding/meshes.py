"""Meshes: which devices there are, along which named axes.

The batch is split over the axis "data". Arrays say on which mesh they are, also while
they are traced; so a step finds it without an argument.
"""

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXIS = "data"  # of a mesh, over which the first axis of a batch is split

AnyMesh: TypeAlias = Mesh | AbstractMesh


def make_mesh(devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """Arrange devices along named axes.

    Args:
        devices: in this order; by default all that JAX finds, in the order in which
            neighbors along the mesh are neighbors on a TPU.
        axes: the size of each axis by name; one may be -1, which takes what is left.
            The batch is split over ``data``. Without any all devices are on ``data``.

    Returns:
        A mesh with Auto axes: XLA places what nothing constrains.

    Raises:
        TypeError: if a size is not an int, or the devices are not devices.
        ValueError: if a size is neither positive nor -1, more than one is -1, or their
            product is not the number of devices.

    Example:
        >>> import fngrad as fg
        >>> dict(fg.sharding.make_mesh(data=1).shape)
        {'data': 1}
    """
    found = _checked_devices(jax.devices() if devices is None else devices)
    axes = axes or {BATCH_AXIS: -1}
    sizes = [_size(name, size) for name, size in axes.items()]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1:
        raise ValueError(f"need at most one axis of size -1, got {axes}")
    sizes = [len(found) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(found):
        raise ValueError(
            f"need axes whose sizes multiply to the {len(found)} devices, got {axes}; "
            f"{_way_out(math.prod(sizes) or known, len(found))}"
        )
    if devices is None:
        grid = create_device_mesh(sizes, found, allow_split_physical_axes=True)
    else:
        grid = np.array(found).reshape(sizes)
    return Mesh(grid, tuple(axes))  # Auto with every version of JAX


def abstract_mesh(**axes: int) -> AbstractMesh:
    """Return a mesh without devices, on which shardings are planned.

    Args:
        axes: the size of each axis by name.

    Returns:
        A mesh with Auto axes, as `make_mesh` returns.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or there is no axis.

    Example:
        >>> import fngrad as fg
        >>> mesh = fg.sharding.abstract_mesh(data=4, model=2)
        >>> dict(mesh.shape), mesh.size
        ({'data': 4, 'model': 2}, 8)
    """
    sizes = [_size(name, size) for name, size in axes.items()]
    if not sizes or -1 in sizes:
        raise ValueError(f"need an axis, and sizes >= 1, got {axes}")
    kinds = (AxisType.Auto,) * len(sizes)  # newer versions of JAX have Explicit ones
    return AbstractMesh(tuple(sizes), tuple(axes), axis_types=kinds)


def _checked_devices(devices: Any) -> list[Any]:
    grid = np.asarray(devices, object)
    found = list(grid.flat)
    if not (grid.ndim and found and all(isinstance(d, jax.Device) for d in found)):
        raise TypeError(
            f"need a sequence of devices, such as jax.devices()[:4], got {devices!r}; "
            "sizes are given by name: make_mesh(data=8)"
        )
    return found


def _way_out(wanted: int, found: int) -> str:
    if 0 < wanted < found:
        return f"make_mesh(jax.devices()[:{wanted}], ...) takes some of the devices"
    flag = "--xla_force_host_platform_device_count"
    return f'on a CPU XLA_FLAGS="{flag}={max(wanted, 2)}" makes more'


def _size(name: str, size: Any) -> int:
    if not isinstance(size, int | np.integer) or isinstance(size, bool):
        raise TypeError(f"need an int as the size of axis {name!r}, got {size!r}")
    if size < 1 and size != -1:
        raise ValueError(f"need axis {name!r} of size >= 1 or -1, got {size}")
    return int(size)


def check_mesh(mesh: Any) -> None:
    """Raise unless XLA may place arrays along all axes of a mesh.

    Raises:
        TypeError: if it is not a mesh.
        ValueError: if an axis is Explicit or Manual.
    """
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"need a mesh, got {type(mesh).__name__}: fngrad.sharding.make_mesh(data=8)"
        )
    if not _is_auto(mesh):
        kinds = ", ".join(kind.name for kind in mesh.axis_types)
        raise ValueError(
            f"need a mesh with Auto axes, got {kinds} for {mesh.axis_names}; "
            "fngrad.sharding.make_mesh makes one"
        )


def check_devices(mesh: Any) -> None:
    """Raise unless arrays can be placed on a mesh.

    Raises:
        TypeError: if it is not a mesh, or an abstract one.
        ValueError: as `check_mesh`.
    """
    check_mesh(mesh)
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"need a mesh of devices, as fngrad.sharding.make_mesh makes, got {mesh}"
        )


def mesh_of(*trees: Any) -> AnyMesh | None:
    """Return the mesh that arrays are on, or else the one of `jax.set_mesh`, if any.

    Inside of `jax.shard_map` there is none, since a program is there one device's.

    Args:
        trees: of arrays; the first that is on a mesh decides.

    Raises:
        ValueError: if the mesh has Explicit axes.
    """
    mesh = _mesh_in(trees)
    if mesh is not None:
        check_mesh(mesh)
    return mesh


def auto_mesh_of(*trees: Any) -> AnyMesh | None:
    """Return `mesh_of`, but None for Explicit axes, along which JAX places itself."""
    mesh = _mesh_in(trees)
    return mesh if mesh is not None and _is_auto(mesh) else None


def check_not_split_explicitly(what: str, *trees: Any) -> None:
    """Raise if an array is split along an Explicit axis.

    Args:
        what: the part of fngrad that cannot split it further there.
        trees: of arrays.

    Raises:
        ValueError: if one is.
    """
    for leaf in jax.tree.leaves(trees):
        spec = jax.typeof(leaf).sharding.spec  # without Auto axes
        if any(spec):
            raise ValueError(
                f"need arrays on a mesh with Auto axes for {what}, got one of shape "
                f"{np.shape(leaf)} that is split along Explicit axes, {spec}; "
                "fngrad.sharding.make_mesh makes such a mesh"
            )


def explicit_context(*trees: Any) -> AbstractContextManager[Any]:
    """Return the context that programs of arrays along Explicit axes are evaluated in.

    Where nothing says on which mesh an equation's result is, as for zeros, JAX reads
    that of `jax.set_mesh`. The context sets it, unless one is set or all axes are Auto.
    """
    mesh = _mesh_in(trees)
    if not isinstance(mesh, Mesh) or _is_auto(mesh) or _is_any_set():
        return contextlib.nullcontext()
    return jax.set_mesh(mesh)


def context_of(mesh: Mesh) -> AbstractContextManager[Any]:
    """Return a context in which a mesh takes the place of that of `jax.set_mesh`.

    Where none is set, it does nothing.
    """
    return jax.set_mesh(mesh) if _is_any_set() else contextlib.nullcontext()


def no_context() -> AbstractContextManager[Any]:
    """Return a context in which no mesh is set."""
    empty = Mesh(np.empty((), object), ())
    return jax.set_mesh(empty) if _is_any_set() else contextlib.nullcontext()


def off_explicit_axes(mesh: Mesh, a: Any) -> Any:
    """Return a tree whose arrays along Explicit axes are copied onto another mesh."""
    whole = PartitionSpec()

    def moved(leaf: Any) -> Any:
        own = _mesh_of_leaf(leaf)
        if own is None or _is_auto(own):
            return leaf
        gathered = jax.device_put(leaf, NamedSharding(own, whole))  # for JAX 0.7
        return jax.device_put(gathered, NamedSharding(mesh, whole))

    return jax.tree.map(moved, a)


def batch_devices(mesh: AnyMesh) -> int:
    """Return into how many parts a mesh splits a batch."""
    return mesh.shape.get(BATCH_AXIS, 1)


def _mesh_in(trees: Any) -> AnyMesh | None:
    found = (_mesh_of_leaf(leaf) for leaf in jax.tree.leaves(trees))
    mesh = next((m for m in found if m is not None), jax.sharding.get_abstract_mesh())
    return None if mesh.empty or AxisType.Manual in mesh.axis_types else mesh


def _mesh_of_leaf(leaf: Any) -> AnyMesh | None:
    if isinstance(leaf, Tracer):
        mesh = jax.typeof(leaf).sharding.mesh
        return None if mesh.empty else mesh
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def _is_any_set() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def _is_auto(mesh: AnyMesh) -> bool:
    return all(kind == AxisType.Auto for kind in mesh.axis_types)

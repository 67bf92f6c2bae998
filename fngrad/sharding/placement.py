"""Where a state and a batch are: the state follows one rule for its parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.tree as tree
from fngrad.programs.text_tables import table
from fngrad.sharding.meshes import (
    BATCH_AXIS,
    AnyMesh,
    auto_mesh_of,
    batch_devices,
    check_devices,
    check_mesh,
)
from fngrad.sharding.rules import (
    Rule,
    axes_of,
    check_globs,
    check_rule,
    checked_spec,
    fitting_spec,
    misfit,
    replicated,
)
from fngrad.types import Batch, Path, Tree


def shardings(state: Tree, mesh: AnyMesh, rule: Rule = replicated) -> Tree:
    """Return the sharding of each leaf of a state.

    A leaf of the optimizer's state that belongs to one parameter, which is one whose
    path ends in the parameter's and which has its shape, is split as the parameter is.
    Other arrays, such as factors, statistics, codes and stacks, go by the rule with
    their own path, and are whole where what it says does not fit. Scalars and keys are
    whole.

    Args:
        state: a `fngrad.TrainState`, or parameters alone; its leaves may be abstract.
        mesh: from `make_mesh`, or abstract.
        rule: such as `replicated`, `fsdp` or `by_path`.

    Raises:
        TypeError: if the mesh or the rule is something else.
        ValueError: if the mesh has Explicit axes, a spec does not fit a parameter, or
            a glob of `by_path` selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.momentum(0.1)
        >>> state = fg.init_state({"w": jnp.ones((8, 8))}, optimizer, key=0)
        >>> mesh = fg.sharding.abstract_mesh(data=4)
        >>> where = fg.sharding.shardings(state, mesh, fg.sharding.fsdp(min_size=1))
        >>> tuple(where.params["w"].spec), tuple(where.step.spec)
        ((None, 'data'), ())
    """
    check_mesh(mesh)
    check_rule(rule)
    is_state = hasattr(state, "params") and hasattr(state, "opt_state")
    given: Any = getattr(state, "params", state) if is_state else state
    check_globs(rule, given, state)
    params = tree.leaf_paths(given)
    specs = {path: checked_spec(rule, path, x, mesh) for path, x in params.items()}

    def spec_of(path: Path, leaf: Any) -> PartitionSpec:
        if not is_state:
            return specs[path]
        if path == "params" or path.startswith("params/"):
            return specs[path.removeprefix("params").removeprefix("/")]
        if np.ndim(leaf) == 0 or tree.is_key(leaf):
            return PartitionSpec()
        owner = _owner(path, leaf, params)
        if owner is not None:
            return specs[owner]
        return fitting_spec(rule, path, leaf, mesh)

    return tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path, leaf)), state
    )


def _owner(path: Path, leaf: Any, params: dict[Path, Any]) -> Path | None:
    """Return the path of the parameter to which a leaf of the state belongs."""
    path = path.removesuffix("/leaves")  # of a stack, see `fngrad.layerwise`
    owners = [
        name
        for name, param in params.items()
        if np.shape(param) == np.shape(leaf)
        and (name == "" or path == name or path.endswith(f"/{name}"))
    ]
    return max(owners, key=len, default=None)


def shard_state(state: Tree, mesh: Mesh, rule: Rule = replicated) -> Tree:
    """Return a state on a mesh, placed as `shardings` says.

    Args:
        state: as for `shardings`; its arrays are copied. Of several processes each
            passes the same, and puts the parts of its own devices there.
        mesh: from `make_mesh`.
        rule: of the step too, see `fngrad.make_step`.

    Raises:
        TypeError: as `shardings`.
        ValueError: as `shardings`.
    """
    check_devices(mesh)
    return jax.tree.map(put, state, shardings(state, mesh, rule))


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Return an array in memory of its own, where a sharding says."""
    if not isinstance(x, jax.Array):
        x = np.array(x)  # JAX may share NumPy's memory even if told not to
    if tree.is_key(x):  # which jax.device_put does not copy
        data = put(jax.random.key_data(x), NamedSharding(sharding.mesh, sharding.spec))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if sharding.is_fully_addressable or not is_local(x):
        return jax.device_put(x, sharding, may_alias=False)
    # JAX would compare the values of all processes first.
    host = np.asarray(x)
    return put_parts(host.shape, sharding, lambda index: host[index])


def put_parts(
    shape: Sequence[int],
    sharding: Any,
    part: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """Return an array of which each process puts the parts of its own devices there.

    Args:
        shape: of the whole array.
        sharding: of it.
        part: returns what is at an index of the whole array; the device's memory is a
            copy of it.
    """
    indices = sharding.addressable_devices_indices_map(tuple(shape))
    parts = [
        jax.device_put(np.array(part(index)), device, may_alias=False)
        for device, index in indices.items()
    ]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, parts)


def fetched(x: jax.Array) -> np.ndarray:
    """Return the values of an array, or its key data, on the host.

    Of one that is split over several processes each fetches the parts of all, so that
    all must call this.
    """
    data = jax.random.key_data(x) if tree.is_key(x) else x
    if data.is_fully_addressable or data.is_fully_replicated:
        return np.asarray(data)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(data, tiled=True)


def spans_processes(mesh: Mesh) -> bool:
    """Return whether some devices of a mesh are of other processes."""
    return not NamedSharding(mesh, PartitionSpec()).is_fully_addressable


def rows_here(count: int, mesh: Mesh) -> np.ndarray:
    """Return which rows of a batch are on devices of this process, ascending."""
    rows = np.arange(count)
    sharding = NamedSharding(mesh, batch_spec(rows, mesh))
    indices = sharding.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([rows[index] for index in indices]))


def put_rows(x: np.ndarray, rows: np.ndarray, count: int, mesh: Mesh) -> jax.Array:
    """Return a batch split over the mesh, of which this process has its own rows.

    Args:
        x: the rows.
        rows: from `rows_here`.
        count: of the rows of the whole batch.
        mesh: of several processes.
    """
    x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    shape = (count, *x.shape[1:])
    where = NamedSharding(mesh, batch_spec(np.empty((count, 0)), mesh))

    def part(index: tuple[slice, ...]) -> np.ndarray:
        first, last, _ = index[0].indices(count)
        start = np.searchsorted(rows, first)
        return x[start : start + last - first]

    return put_parts(shape, where, part)


def is_local(x: Any) -> bool:
    """Return whether all of an array is on devices of this process, or on the host."""
    if isinstance(x, Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def init_sharded(make: Callable[[], Tree], mesh: Mesh, rule: Rule = replicated) -> Tree:
    """Make a state on a mesh, none of whose split leaves is ever whole on a device.

    Args:
        make: a pure function without arguments that returns the state; it is compiled.
        mesh: from `make_mesh`.
        rule: see `shardings`.

    Raises:
        TypeError: as `shardings`.
        ValueError: as `shardings`.

    Example:
        >>> import jax
        >>> import fngrad as fg
        >>> model, optimizer = fg.models.mlp([4, 8, 2]), fg.adam(1e-3)
        >>> mesh = fg.sharding.make_mesh(data=1)
        >>> state = fg.sharding.init_sharded(
        ...     lambda: fg.init_state(model.init(jax.random.key(0)), optimizer, key=0),
        ...     mesh,
        ...     fg.sharding.fsdp(),
        ... )
        >>> int(state.step)
        0
    """
    check_devices(mesh)
    where = shardings(jax.eval_shape(make), mesh, rule)
    return jax.jit(make, out_shardings=where)()


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Return a batch split over the mesh axis "data", along its first axis.

    Scalars, and everything on a mesh without this axis, are on every device. Of several
    processes each passes the whole batch, and puts the parts of its own devices there.

    Raises:
        TypeError: if the mesh is something else.
        ValueError: if the mesh has Explicit axes, or the number of devices does not
            divide the first axis of a leaf; its path is named.
    """
    check_devices(mesh)
    check_batch(batch, mesh)
    return jax.tree.map(
        lambda x: _moved(x, NamedSharding(mesh, batch_spec(x, mesh))), batch
    )


def _moved(x: Any, sharding: NamedSharding) -> jax.Array:
    """Return an array where a sharding says, which may share the memory of x."""
    if sharding.is_fully_addressable or not is_local(x):
        return jax.device_put(x, sharding)
    return put(x, sharding)


def beside(params: Tree, arrays: Tree) -> Tree:
    """Return arrays whole on every device of the mesh that parameters are on, if any.

    Those that are on this mesh stay, and so does all beside parameters of one device,
    or along Explicit axes.
    """
    mesh = auto_mesh_of(params)
    if not isinstance(mesh, Mesh):
        return arrays
    whole = NamedSharding(mesh, PartitionSpec())

    def place(x: Any) -> Any:
        return x if is_on(mesh, x) else _moved(x, whole)

    return jax.tree.map(place, arrays)


def is_on_a_mesh(x: Any) -> bool:
    """Return whether an array is placed on a mesh."""
    return isinstance(getattr(x, "sharding", None), NamedSharding)


def is_on(mesh: Mesh, x: Any) -> bool:
    """Return whether an array is placed on this mesh."""
    return is_on_a_mesh(x) and x.sharding.mesh == mesh


def batch_spec(x: Any, mesh: AnyMesh) -> PartitionSpec:
    """Return how an array of a batch is split: where it can be, else not at all."""
    spec = PartitionSpec(BATCH_AXIS)
    return PartitionSpec() if misfit(spec, np.shape(x), mesh) else spec


def check_batch(batch: Batch, mesh: AnyMesh) -> None:
    """Raise unless a mesh can split a batch into equal parts.

    Raises:
        ValueError: if its devices do not divide the first axis of a leaf.
    """
    count = batch_devices(mesh)
    for path, x in tree.leaf_paths(batch).items():
        if np.ndim(x) and np.shape(x)[0] % count:
            raise ValueError(
                f"need a batch whose first axis is a multiple of the {count} devices "
                f"of the mesh axis {BATCH_AXIS!r}, got shape {np.shape(x)} at {path!r}"
                "; choose another batch_size, and drop a smaller last batch"
            )


def describe(state: Any) -> str:
    """Return a table of a state's leaves: how each is split, its bytes per device.

    The column *split* has for each axis of a leaf the axis of the mesh that divides it,
    ``-`` if none does; *whole* is what every device holds in full, as for `fsdp` the
    leaves below its ``min_size`` and those whose axes the devices do not divide.

    Args:
        state: arrays, or abstract ones with a sharding.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> mesh = fg.sharding.make_mesh(data=1)
        >>> params = fg.sharding.shard_state({"w": jnp.ones((8, 8))}, mesh)
        >>> print(fg.sharding.describe(params))
        path   shape   split  bytes per device  bytes
        w      (8, 8)  whole               256    256
        total                              256    256
    """
    rows, sums = [], np.zeros(2, int)
    for path, leaf in tree.leaf_paths(state).items():
        sharding = getattr(leaf, "sharding", None)
        part = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        sizes = [math.prod(shape) * leaf.dtype.itemsize for shape in (part, leaf.shape)]
        split = _split_text(getattr(sharding, "spec", None))
        rows.append([path, str(leaf.shape), split, *map(str, sizes)])
        sums += sizes
    head = ["path", "shape", "split", "bytes per device", "bytes"]
    return table([head, *rows, ["total", "", "", *map(str, sums)]], left=3)


def _split_text(spec: PartitionSpec | None) -> str:
    """Return the mesh axes of each axis, such as ``-, data``."""
    if spec is None:
        return "one device"
    axes = ["*".join(axes_of(entry)) or "-" for entry in spec]
    return ", ".join(axes) if set(axes) - {"-"} else "whole"

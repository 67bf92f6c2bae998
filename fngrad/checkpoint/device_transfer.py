"""Trees of arrays, copied from devices to the host and back.

On the host a leaf is a NumPy array in memory of its own. NumPy can view a CPU array of
JAX without a copy, but then a step to which the array is donated copies it, which costs
more than copying it here.
"""

import re
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import fngrad.tree as tree
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.shards import ShardedLeaf, place_parts, shards_of
from fngrad.programs.printed import recorded
from fngrad.types import Path

_LONG = 1000  # characters of text per node; of longer texts the rest is a checksum
_BRACES = re.compile(r"\{([^{}]*)\}")


class Leaf(NamedTuple):
    """An array on the host."""

    data: np.ndarray  # C order, in memory of its own; the key data of typed keys
    dtype: str  # such as "bfloat16" or "key<fry>"
    shape: tuple[int, ...]  # of the leaf; key data have more axes
    key_impl: str | None = None  # of typed keys, such as "threefry2x32"
    sharding: str = ""  # on its devices, as text

    @property
    def data_dtype(self) -> np.dtype:
        """The dtype of the data; of typed keys, that of the key data."""
        return self.data.dtype

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of the data; key data have more axes than the leaf."""
        return self.data.shape


class HostTree(NamedTuple):
    """A tree on the host; of arrays that processes share, what this one holds."""

    leaves: dict[Path, Leaf | ShardedLeaf]
    static: dict[Path, str]  # the static values of nodes, as text


def take(a: Any) -> HostTree:
    """Copy a tree of arrays to the host.

    Of an array on devices of several processes each copies its own shards; all call
    this.

    Raises:
        CheckpointError: if a leaf is not an array, is traced or masked, was donated, or
            has a dtype that is not numeric; or if two leaves have the same path.
    """
    leaves = paths_of(a)
    for path, leaf in leaves.items():
        _check(path, leaf)
        if isinstance(leaf, jax.Array) and not _on_cpu(leaf):
            _begin_copy(leaf)
    return HostTree(
        {path: _take(leaf) for path, leaf in leaves.items()}, static_parts(a)
    )


def joined(parts: dict[str, HostTree]) -> HostTree:
    """Return the tree that `take` makes of a dict of the trees, which it shares.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.checkpoint.device_transfer import joined, take
        >>> a, b = {"w": jnp.ones(2)}, jnp.zeros(())
        >>> list(joined({"b": take(b), "a": take(a)}).leaves)
        ['a/w', 'b']
    """

    def below(part: str, path: Path) -> Path:
        return f"{part}/{path}" if path else part

    trees = sorted(parts.items())
    return HostTree(
        {below(part, path): x for part, a in trees for path, x in a.leaves.items()},
        {below(part, path): x for part, a in trees for path, x in a.static.items()},
    )


def paths_of(a: Any) -> dict[Path, Any]:
    """Return the leaves by path.

    Raises:
        CheckpointError: if two leaves have the same path; the message names it.
    """
    try:
        return tree.leaf_paths(a)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def describe(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Return the dtype (as text) and the shape of an array or ShapeDtypeStruct."""
    dtype = str(leaf.dtype) if tree.is_key(leaf) else np.dtype(leaf.dtype).name
    return dtype, tuple(leaf.shape)


def named_dtype(name: str) -> np.dtype:
    """Return a dtype of NumPy or JAX by its name."""
    return np.dtype(getattr(jnp, name, name))


def place(path: Path, leaf: Leaf | ShardedLeaf, like: Any) -> Any:
    """Copy a leaf to the devices of its counterpart in a tree.

    Args:
        path: names the leaf in an error.
        leaf: what was saved, of the dtype and shape of ``like``.
        like: the counterpart. NumPy stays NumPy; an array that is committed to devices,
            or a sharding, says where the leaf goes; else it goes to the default device.

    Raises:
        CheckpointError: if JAX would change the dtype, as float64 without x64.
    """
    if isinstance(like, np.ndarray | np.generic):
        return leaf.data.copy()
    if jax.dtypes.canonicalize_dtype(leaf.data_dtype) != leaf.data_dtype:
        raise CheckpointError(
            f"need jax_enable_x64 to restore leaf {path!r} of dtype {leaf.dtype}"
        )
    sharding = committed_to(like)
    if sharding is not None and not sharding.is_fully_addressable:
        return jnp.array(place_parts(leaf, sharding), copy=True)
    if leaf.key_impl is not None:
        keys = jax.random.wrap_key_data(jnp.array(leaf.data), impl=leaf.key_impl)
        return keys if sharding is None else jax.device_put(keys, sharding)
    if sharding is None:
        return jnp.array(leaf.data, copy=True)
    # On CPU the array may share the host's memory, which cannot be donated.
    return jnp.array(jax.device_put(leaf.data, sharding), copy=True)


def static_parts(a: Any) -> dict[Path, str]:
    """Return the static values of a tree's nodes by path, as text.

    Two trees whose leaves have the same shapes can differ in them: in the coding of an
    array, in the function of a module. Dicts, lists, tuples and None have none.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.numerics.low_bit_codes import Coding, encode
        >>> from fngrad.checkpoint.device_transfer import static_parts
        >>> coded = encode(jnp.ones(4), Coding(8, signed=True), 2)
        >>> print(static_parts([coded, jnp.ones(2)]))
        {'0': "((4,), dtype('float32'), Coding(bits=8, signed=True))"}
    """
    found: dict[Path, str] = {}
    _collect(a, (), found)
    return found


def _collect(node: Any, prefix: tuple[Any, ...], found: dict[Path, str]) -> None:
    def is_child(x: Any) -> bool:
        return x is not node

    children, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_child)
    data = structure.node_data()
    if data is None:
        return
    kind, aux = data
    if not _is_plain(kind) and aux is not None and aux != ():
        found[tree.path_string(prefix)] = _text_of(aux)
    for path, child in children:
        _collect(child, (*prefix, *path), found)


def _text_of(aux: Any) -> str:
    # The order of a set differs between processes.
    text = _BRACES.sub(_in_order, recorded(aux))
    if len(text) <= _LONG:
        return text
    return f"{text[:_LONG]}... ({len(text)} characters, {zlib.crc32(text.encode())})"


def _in_order(braces: re.Match[str]) -> str:
    return f"{{{', '.join(sorted(braces[1].split(', ')))}}}"


def _is_plain(kind: Any) -> bool:
    return kind is type(None) or issubclass(kind, dict | list | tuple)


def _check(path: Path, leaf: Any) -> None:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise CheckpointError(
            f"need arrays in a checkpoint, got {type(leaf).__name__} at {path!r}: "
            "jnp.asarray makes one of a number"
        )
    if isinstance(leaf, jax.Array):
        _check_is_there(path, leaf)
    elif isinstance(leaf, np.ma.MaskedArray) or not isinstance(
        leaf, np.ndarray | np.generic
    ):
        raise CheckpointError(
            f"need arrays in a checkpoint, got {type(leaf).__name__} at {path!r}"
        )
    if tree.is_key(leaf):
        return
    dtype = np.dtype(leaf.dtype)
    numeric = jnp.issubdtype(dtype, np.number) or dtype == np.bool_
    if not numeric or not dtype.isnative:
        raise CheckpointError(
            "need numbers in the machine's byte order, "
            f"got dtype {dtype.str} at {path!r}"
        )


def _check_is_there(path: Path, leaf: jax.Array) -> None:
    if isinstance(leaf, Tracer):
        raise CheckpointError(
            f"need numbers to save, got leaf {path!r} while it is traced: save outside "
            "of jit, grad, vmap and scan"
        )
    if leaf.is_deleted():
        raise CheckpointError(
            f"need a state that was not donated, got leaf {path!r} whose memory was "
            "donated to a step: save the state that the step returned"
        )


def _begin_copy(leaf: jax.Array) -> None:
    if leaf.is_fully_addressable:
        leaf.copy_to_host_async()
    elif not tree.is_key(leaf):
        for shard in leaf.addressable_shards:
            shard.data.copy_to_host_async()


def _on_cpu(leaf: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in leaf.devices())


def _take(leaf: Any) -> Leaf | ShardedLeaf:
    dtype, shape = describe(leaf)
    if not isinstance(leaf, jax.Array):
        return Leaf(np.array(leaf, order="C"), dtype, shape)
    sharding = str(leaf.sharding)
    if not leaf.is_fully_addressable:
        impl = str(jax.random.key_impl(leaf)) if tree.is_key(leaf) else None
        data = leaf if impl is None else jax.random.key_data(leaf)
        kind = np.dtype(data.dtype)
        return ShardedLeaf(
            shards_of(data), dtype, shape, kind, data.shape, impl, sharding
        )
    if tree.is_key(leaf):
        data = np.array(jax.random.key_data(leaf), order="C")
        return Leaf(data, dtype, shape, str(jax.random.key_impl(leaf)), sharding)
    host = np.asarray(leaf)
    if not host.flags.owndata or not host.flags.c_contiguous:
        host = np.array(host, order="C")
    return Leaf(host, dtype, shape, None, sharding)


def committed_to(like: Any) -> Any:
    """Return the sharding that an array is committed to; None if JAX may choose.

    Of what is not an array it is its ``sharding``, if there is one.
    """
    if isinstance(like, jax.Array):
        return like.sharding if like.committed else None
    return getattr(like, "sharding", None)

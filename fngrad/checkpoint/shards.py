"""Arrays of which a process holds only some shards, on the host.

An array on devices of several processes is cut into shards, one per device; equal ones
of several devices are *replicas*, numbered from 0. Each process copies those of its own
devices, and writes those of replica 0, so that each is written once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from fngrad.checkpoint.errors import CheckpointError
from fngrad.sharding.placement import put_parts
from fngrad.types import Path

SMALLEST, LARGEST = 1 << 16, 1 << 24  # bytes of a block of a larger shard


class Box(NamedTuple):
    """A range of indices along each axis of an array."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Its ranges, as an index of the array."""
        ends = zip(self.start, self.shape, strict=True)
        return tuple(slice(a, a + n) for a, n in ends)

    def within(self, other: "Box") -> tuple[slice, ...]:
        """Return its ranges as an index of the array that holds another box only."""
        moved = [a - b for a, b in zip(self.start, other.start, strict=True)]
        return Box(tuple(moved), self.shape).slices

    def meet(self, other: "Box") -> "Box | None":
        """Return what is in both; None if nothing is."""
        pairs = list(zip(self, other, strict=True))
        start = [max(a, b) for a, b in zip(*pairs[0], strict=True)]
        ends = [
            min(a + n, b + m) for a, b, n, m in zip(*pairs[0], *pairs[1], strict=True)
        ]
        shape = [end - a for a, end in zip(start, ends, strict=True)]
        return None if min(shape, default=1) <= 0 else Box(tuple(start), tuple(shape))


Boxes: TypeAlias = Sequence[Box]
# (path, shape of the leaf, shape of its data) -> boxes of the data
Needs: TypeAlias = Callable[[Path, tuple[int, ...], tuple[int, ...]], Boxes]


class Shard(NamedTuple):
    """A part of an array."""

    box: Box
    data: np.ndarray  # C order, in memory of its own
    is_own: bool = True  # whether this process writes it


class ShardedLeaf(NamedTuple):
    """An array of which this process holds some shards."""

    shards: tuple[Shard, ...]
    dtype: str  # such as "bfloat16" or "key<fry>"
    shape: tuple[int, ...]  # of the leaf
    data_dtype: np.dtype
    data_shape: tuple[int, ...]  # of the key data of typed keys, which have more axes
    key_impl: str | None = None
    sharding: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether this process holds all of it."""
        return [shard.box for shard in self.shards] == [whole(self.data_shape)]

    @property
    def data(self) -> np.ndarray:
        """The whole array.

        Raises:
            CheckpointError: if some of it is on devices of other processes.
        """
        if self.is_whole:
            return self.shards[0].data
        raise CheckpointError(
            f"need an array that this process holds whole, got {len(self.shards)} "
            f"shards of one of shape {self.shape}"
        )


def whole(shape: Iterable[int]) -> Box:
    """Return the box that is all of an array."""
    shape = tuple(shape)
    return Box((0,) * len(shape), shape)


def box_of(index: tuple[slice, ...], shape: Sequence[int]) -> Box:
    """Return the box of an index of slices; it may have fewer axes than the array."""
    slices = [*index, *[slice(None)] * (len(shape) - len(index))]
    ranges = [s.indices(n)[:2] for s, n in zip(slices, shape, strict=True)]
    return Box(tuple(a for a, _ in ranges), tuple(b - a for a, b in ranges))


def shards_of(data: jax.Array) -> tuple[Shard, ...]:
    """Copy the shards of this process's devices to the host, each once."""
    found: dict[Box, Shard] = {}
    for shard in data.addressable_shards:
        box = box_of(shard.index, data.shape)
        is_own = shard.replica_id == 0
        if box not in found:
            found[box] = Shard(box, np.array(shard.data, order="C"), is_own)
        elif is_own:
            found[box] = found[box]._replace(is_own=True)
    return tuple(found.values())


def boxes_here(sharding: Any, shape: Sequence[int]) -> Boxes:
    """Return the boxes that a sharding puts on devices of this process."""
    indices = sharding.addressable_devices_indices_map(tuple(shape)).values()
    return list(dict.fromkeys(box_of(index, shape) for index in indices))


def place_parts(leaf: Any, sharding: Any) -> jax.Array:
    """Put a leaf where a sharding says, of whose devices some are of other processes.

    Args:
        leaf: a `ShardedLeaf` with the shards of this process's devices, or a whole one.
        sharding: as of an array of the leaf's shape.
    """
    if isinstance(leaf, ShardedLeaf):
        known = {shard.box: shard.data for shard in leaf.shards}
        shape = leaf.data_shape
    else:
        known, shape = {}, leaf.data.shape

    def part(index: tuple[slice, ...]) -> np.ndarray:
        box = box_of(index, shape)
        return known[box] if known else leaf.data[box.slices]

    data = put_parts(shape, sharding, part)
    if leaf.key_impl is None:
        return data
    return jax.random.wrap_key_data(data, impl=leaf.key_impl)


def everything(
    path: Path, shape: tuple[int, ...], data_shape: tuple[int, ...]
) -> Boxes:
    """Say that a process needs every saved array whole."""
    return [whole(data_shape)]


def needed(wanted: dict[Path, Any], otherwise: bool) -> Needs:
    """Return which boxes of each saved array this process needs.

    Args:
        wanted: arrays or ShapeDtypeStructs by path: of one that is split over the
            devices of several processes, what is on those of this one is needed; any
            other is needed whole.
        otherwise: whether saved arrays without a counterpart are needed too.
    """

    def boxes(path: Path, shape: tuple[int, ...], data_shape: tuple[int, ...]) -> Boxes:
        like = wanted.get(path)
        if like is None:
            return [whole(data_shape)] if otherwise else []
        sharding = getattr(like, "sharding", None)
        if not is_split(sharding) or tuple(like.shape) != shape:
            return [whole(data_shape)]
        more = data_shape[len(shape) :]
        return [
            Box((*box.start, *[0] * len(more)), (*box.shape, *more))
            for box in boxes_here(sharding, shape)
        ]

    return boxes


def is_split(sharding: Any) -> bool:
    """Return whether a sharding divides an array among processes."""
    if sharding is None or sharding.is_fully_addressable:
        return False
    return not sharding.is_fully_replicated


def size_of(box: Box) -> int:
    """Return the number of a box's entries."""
    return math.prod(box.shape)


def pieces(box: Box, itemsize: int) -> Iterator[Box]:
    """Cut a box into blocks, along its longest axes first; an empty one into none.

    They are about a sixteenth of it, so that it can be read by more processes of which
    each needs a part, but not small, since each has a checksum of its own.
    """
    if not size_of(box):
        return
    limit = min(max(size_of(box) * itemsize // 16, SMALLEST), LARGEST)
    left = [box]
    while left:
        start, shape = each = left.pop()
        if size_of(each) * itemsize <= limit or size_of(each) == 1:
            yield each
            continue
        axis = int(np.argmax(shape))
        half = shape[axis] // 2
        rest = shape[axis] - half
        left.append(
            Box(_with(start, axis, start[axis] + half), _with(shape, axis, rest))
        )
        left.append(Box(start, _with(shape, axis, half)))


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])

"""The shards of several processes in a step's folder: one file per process.

A process writes its shards one after the other into ``arrays/00001``, cut into blocks
with a checksum each, and then an index of them, ``arrays/00001.json``. The first
process waits for all indices and puts them into the manifest, from which a reader takes
the blocks that it needs. A process that fails renames its file to
``arrays/00001.failed``, which needs no space on the disk; one that is killed loses the
kernel's lock on it.
"""

import contextlib
import itertools
import json
import os
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fngrad.checkpoint.manifest as manifest
from fngrad.checkpoint.agreement import cause
from fngrad.checkpoint.device_transfer import HostTree, Leaf
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.shards import (
    Box,
    Needs,
    Shard,
    ShardedLeaf,
    pieces,
    size_of,
    whole,
)
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.locks import held, is_in_use
from fngrad.types import Path as LeafPath

_SECONDS_BETWEEN_LOOKS = 0.05
_LOOKS_PER_CHECK = 10  # of the locks, since each is a file to open


def prepare(folder: Path, count: int) -> None:
    """Create an empty file for each process, so that opening one needs no space.

    Raises:
        OSError: if the file system refuses.
    """
    (folder / manifest.ARRAYS).mkdir()
    for rank in range(count):
        _file(folder, rank).touch(exist_ok=False)


@contextlib.contextmanager
def claimed(folder: Path, rank: int, seconds: float) -> Iterator[None]:
    """Hold the kernel's lock on the file of a process, which tells that it is alive.

    Args:
        folder: of the step.
        rank: of the process.
        seconds: how long to wait for the file, which another machine has created.

    Raises:
        OSError: if it cannot be written.
    """
    deadline = time.monotonic() + seconds
    path = _file(folder, rank)
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    with path.open("r+b") as file, held(file.fileno()):
        yield


def alive(folder: Path, ranks: Iterable[int]) -> set[int]:
    """Return which processes hold the lock of their file; none if there are none."""
    arrays = folder / manifest.ARRAYS
    return {rank for rank in ranks if is_in_use(arrays, name=f"{rank:05d}")}


def write(folder: Path, rank: int, host: HostTree) -> None:
    """Write the shards of a process, and the index that says that it has finished.

    Of arrays that every process holds whole, the first process writes them.

    Raises:
        OSError: if the file system refuses.
        CheckpointError: if the file is read with other bytes than were written.
    """
    path, offset = _file(folder, rank), 0
    index: dict[LeafPath, list[Any]] = {}
    with path.open("r+b") as file:
        for name, leaf in host.leaves.items():
            index[name] = []
            for box, data in _blocks_of(leaf, rank):
                _append(file, data)
                entry = [rank, offset, box.start, box.shape, zlib.crc32(data.data)]
                index[name].append(entry)
                offset += data.nbytes
        file.flush()
        os.fsync(file.fileno())
    dtypes = {name: leaf.data_dtype for name, leaf in host.leaves.items()}
    for _ in _read_blocks(folder, _wanted(index, dtypes)):
        pass  # what was written is read unchanged
    content = json.dumps({"size": offset, "leaves": index})
    write_atomically(_index(folder, rank), content)


def mark_failed(folder: Path, rank: int, error: BaseException) -> None:
    """Tell the first process why this one does not write its shards."""
    path = _file(folder, rank)
    with contextlib.suppress(OSError):
        os.truncate(path, 0)  # on a full disk this makes room for the text
        path.write_bytes(cause(error).encode(errors="backslashreplace"))
    with contextlib.suppress(OSError):
        path.rename(path.with_suffix(".failed"))


def wait_for_all(folder: Path, count: int, seen: set[int], seconds: float) -> None:
    """Return when all processes have written their shards.

    Args:
        folder: of the step.
        count: of the processes.
        seen: those that were `alive` at first.
        seconds: how long to wait.

    Raises:
        CheckpointError: if one failed, with its cause; if one has ended; or if some
            have not finished in time. They are named.
    """
    deadline = time.monotonic() + seconds
    for looks in itertools.count():
        late = _late(folder, count)
        if not late:
            return
        suspects = () if looks % _LOOKS_PER_CHECK else seen.intersection(late)
        gone = set(suspects) - alive(folder, suspects)
        gone &= set(_late(folder, count)) if gone else set()  # it may have finished
        if gone:
            raise CheckpointError(
                f"need all {count} processes, got {_named(gone)} ended before writing "
                "all shards"
            )
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"need the shards of all {count} processes within limit_seconds="
                f"{seconds:g}, got none yet of {_named(late)}"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _late(folder: Path, count: int) -> list[int]:
    """Return the processes that have not finished.

    Raises:
        CheckpointError: if one failed; it is named, with its cause.
    """
    names = set(os.listdir(folder / manifest.ARRAYS))
    failed = [r for r in range(count) if f"{r:05d}.failed" in names]
    if failed:
        causes = [f"process {r}: {_failure(folder, r)}" for r in failed]
        raise CheckpointError("; ".join(causes))
    return [r for r in range(count) if f"{r:05d}.json" not in names]


def collect(folder: Path, count: int, host: HostTree) -> manifest.Sharded:
    """Return the blocks and files of all processes, and remove their indices.

    Raises:
        CheckpointError: if the blocks of an array are not all of it.
        OSError: if the file system refuses.
    """
    blocks: dict[LeafPath, list[Any]] = {path: [] for path in host.leaves}
    files = {}
    for rank in range(count):
        index = json.loads(_index(folder, rank).read_bytes())
        files[f"{manifest.ARRAYS}/{rank:05d}"] = {"size": index["size"]}
        for path, found in index["leaves"].items():
            blocks.setdefault(path, []).extend(found)
    for path, found in blocks.items():
        leaf = host.leaves.get(path)
        entries = sum(size_of(Box(b[2], b[3])) for b in found)
        if leaf is None or entries != size_of(whole(leaf.data_shape)):
            raise CheckpointError(
                "need the same tree in all processes, whose shards are all of it, got "
                f"{entries} entries of leaf {path!r}"
            )
    for rank in range(count):
        _index(folder, rank).unlink()
    return manifest.Sharded(blocks, files)


def read(
    folder: Path, content: dict[str, Any], needs: Needs
) -> dict[LeafPath, Leaf | ShardedLeaf]:
    """Read what is needed of a step that several processes wrote.

    The files are read, not mapped: a block is checked, so all of it is read anyway, and
    a mapped file that is cut off meanwhile would end the process.

    Args:
        folder: of the step.
        content: of its manifest.
        needs: which boxes of each array to read.

    Raises:
        UnreadableError: if a file cannot be read now, or the installed JAX does not
            know a dtype.
        CheckpointError: if a block is damaged; its file and leaf are named.
    """
    manifest.check_sizes(folder, content)
    leaves: dict[LeafPath, Leaf | ShardedLeaf] = {}
    wanted: list[_Wanted] = []
    for entry in content["leaves"]:
        path, dtype = entry["path"], manifest.dtype_of(entry)
        shape, data_shape = tuple(entry["shape"]), tuple(entry["data_shape"])
        boxes = needs(path, shape, data_shape)
        shards = tuple(Shard(box, np.empty(box.shape, dtype)) for box in boxes)
        wanted += _wanted({path: entry["blocks"]}, {path: dtype}, shards)
        rest = entry["key_impl"], entry["sharding"]
        if list(boxes) == [whole(data_shape)]:
            leaves[path] = Leaf(shards[0].data, entry["dtype"], shape, *rest)
        else:
            leaves[path] = ShardedLeaf(
                shards, entry["dtype"], shape, dtype, data_shape, *rest
            )
    for each, raw in _read_blocks(folder, wanted):
        block = np.frombuffer(raw, np.uint8).view(each.dtype).reshape(each.box.shape)
        for shard in each.shards:
            both = each.box.meet(shard.box)
            if both is not None:
                shard.data[both.within(shard.box)] = block[both.within(each.box)]
    return leaves


def check(folder: Path, content: dict[str, Any]) -> None:
    """Raise unless the files hold what was written.

    Raises:
        UnreadableError: as `read`.
        CheckpointError: as `read`.
    """
    manifest.check_sizes(folder, content)
    for entry in content["leaves"]:
        path, dtype = entry["path"], manifest.dtype_of(entry)
        for _ in _read_blocks(folder, _wanted({path: entry["blocks"]}, {path: dtype})):
            pass


class _Wanted(NamedTuple):
    """A block to read."""

    rank: int  # of the process that wrote it
    offset: int  # in its file, in bytes
    box: Box
    checksum: int
    path: LeafPath
    dtype: np.dtype
    shards: tuple[Shard, ...]  # which it is copied into


def _wanted(
    blocks: dict[LeafPath, list[Any]],
    dtypes: dict[LeafPath, np.dtype],
    shards: tuple[Shard, ...] | None = None,
) -> list[_Wanted]:
    """Return the blocks that have a part in one of the shards; without any, all."""
    found = []
    for path, entries in blocks.items():
        for rank, offset, start, shape, checksum in entries:
            box = Box(tuple(start), tuple(shape))
            into = tuple(x for x in shards or () if box.meet(x.box))
            if into or shards is None:
                each = _Wanted(rank, offset, box, checksum, path, dtypes[path], into)
                found.append(each)
    return found


def _read_blocks(folder: Path, wanted: list[_Wanted]) -> Iterator[tuple[_Wanted, Any]]:
    """Yield blocks with their bytes, which are as they were written."""
    with contextlib.ExitStack() as stack:
        files = {}
        for each in sorted(wanted, key=lambda x: x[:2]):
            path = _file(folder, each.rank)
            raw = bytearray(size_of(each.box) * each.dtype.itemsize)
            try:
                if each.rank not in files:
                    file = stack.enter_context(path.open("rb", buffering=0))
                    files[each.rank] = file
                _fill(files[each.rank], each.offset, raw)
            except OSError as error:
                raise manifest.refusal("shards to read", error) from error
            if zlib.crc32(raw) != each.checksum:
                raise CheckpointError(
                    f"need an undamaged file, got other bytes in {path} at byte "
                    f"{each.offset}, leaf {each.path!r}"
                )
            yield each, raw


def _fill(file: Any, offset: int, raw: bytearray) -> None:
    """Read bytes from a place on; what the file lacks stays zero."""
    file.seek(offset)
    rest = memoryview(raw)
    while size := file.readinto(rest):
        rest = rest[size:]


def _append(file: Any, data: np.ndarray) -> None:
    file.write(data.data)


def _blocks_of(leaf: Leaf | ShardedLeaf, rank: int) -> Iterator[tuple[Box, np.ndarray]]:
    """Yield the blocks that a process writes, each with its bytes."""
    if isinstance(leaf, ShardedLeaf):
        shards = [shard for shard in leaf.shards if shard.is_own]
    else:
        shards = [Shard(whole(leaf.data.shape), leaf.data)] if rank == 0 else []
    for shard in shards:
        for box in pieces(shard.box, shard.data.dtype.itemsize):
            part = np.ascontiguousarray(shard.data[box.within(shard.box)])
            yield box, part.reshape(-1).view(np.uint8)


def _file(folder: Path, rank: int) -> Path:
    return folder / manifest.ARRAYS / f"{rank:05d}"


def _index(folder: Path, rank: int) -> Path:
    return _file(folder, rank).with_suffix(".json")


def _failure(folder: Path, rank: int) -> str:
    try:
        path = _file(folder, rank).with_suffix(".failed")
        return path.read_text(encoding="utf-8") or "it failed"
    except OSError:
        return "it failed"


def _named(ranks: Collection[int]) -> str:
    many = "es" if len(ranks) > 1 else ""
    return f"process{many} {', '.join(map(str, sorted(ranks)))}"

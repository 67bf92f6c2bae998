"""The manifest of a step: its leaves, files and checksums.

It lists every file with its size and CRC-32, every leaf with its dtype, its shape and
the CRC-32 of its bytes as they left the device, and a CRC-32 of itself. A step is
complete if its manifest is undamaged and all files have their sizes.

A step that several processes wrote has format 2: a leaf lists the blocks of its shards,
each with the process that wrote it, its place in that process's file, its indices'
start and lengths, and its CRC-32.
"""

import datetime
import errno
import functools
import importlib.metadata
import json
import math
import os
import platform
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fngrad.checkpoint.device_transfer import HostTree, Leaf, named_dtype
from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.checkpoint.shards import ShardedLeaf
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.json_values import from_json_number, to_json, write_json
from fngrad.types import Path as LeafPath

FORMAT, OF_PROCESSES = 1, 2  # written by one process, and by several
NAME = "manifest.json"
ARRAYS = "arrays"
_CHUNK = 1 << 18  # bytes read at a time; they fit into a core's cache
_OF_DAMAGE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EIO,  # a broken disk
    errno.ESTALE,  # deleted by another machine, on a network file system
}


class Sharded(NamedTuple):
    """What several processes have written."""

    blocks: dict[LeafPath, list[Any]]  # of each leaf, in JSON's types
    files: dict[str, dict[str, int]]  # their sizes


def arrays_of(host: HostTree) -> dict[str, np.ndarray]:
    """Return the nonempty leaves as unsigned integers, by name."""
    return {
        _name(place): _unsigned(leaf.data)
        for place, leaf in enumerate(host.leaves.values())
        if leaf.data.size
    }


def in_json(metrics: dict[str, Any] | None, notes: Any) -> tuple[dict[str, Any], Any]:
    """Return metrics and notes in JSON's types.

    Raises:
        TypeError: if a metric is not a number, or JSON cannot hold the notes.
    """
    values = to_json(metrics or {}, "metrics")
    for name, value in values.items():
        if not isinstance(from_json_number(value), int | float):
            raise TypeError(f"need a number, got {value!r} at 'metrics.{name}'")
    return values, to_json(notes, "notes")


def write(
    folder: Path,
    step: int,
    host: HostTree,
    metrics: dict[str, Any],
    notes: Any,
    best: tuple[str, str],
    sharded: Sharded | None = None,
) -> None:
    """Write the manifest of a step whose arrays are written.

    Args:
        folder: of the step.
        step: its number.
        host: the tree of the arrays.
        metrics: in JSON's types.
        notes: in JSON's types.
        best: the metric that ``restore(step="best")`` uses, and ``"min"`` or ``"max"``.
        sharded: what the processes have written, if they are several.

    Raises:
        OSError: if the file system refuses.
    """
    content = {
        "format": OF_PROCESSES if sharded else FORMAT,
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "leaves": _sharded_entries(host, sharded) if sharded else _entries(host),
        "static": host.static,
        "files": sharded.files if sharded else _files(folder),
        "metrics": metrics,
        "best": best,
        "notes": notes,
    }
    whole = {"crc32": _checksum(content), "content": content}
    if sharded:  # on one line, since there may be very many blocks
        write_atomically(folder / NAME, json.dumps(whole))
    else:
        write_json(folder / NAME, whole)


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a step, in JSON's types.

    Raises:
        UnreadableError: if it has a newer format, or cannot be read now.
        CheckpointError: if it is missing or damaged.
    """
    path = folder / NAME
    try:
        whole = json.loads(path.read_bytes())
        is_good = _checksum(whole["content"]) == whole["crc32"]
    except OSError as error:
        raise refusal("a manifest", error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"need an undamaged manifest, got {error} in {path}"
        ) from error
    if not is_good:
        raise CheckpointError(f"need an undamaged manifest, got changes in {path}")
    content = whole["content"]
    if content["format"] not in (FORMAT, OF_PROCESSES):
        raise UnreadableError(
            f"need a checkpoint of format {FORMAT} or {OF_PROCESSES}, got "
            f"{content['format']} in {path}: it is from fngrad "
            f"{content.get('versions', {}).get('fngrad')}; install that version or a "
            "newer one"
        )
    return content


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise unless the listed files exist and have their sizes.

    Other files are ignored: file managers and network file systems create some.

    Raises:
        UnreadableError: if the files cannot be listed now.
        CheckpointError: if a file is missing or has another size.
    """
    expected = manifest["files"]
    try:
        got = _sizes(folder)
    except OSError as error:
        raise refusal("all files of a step", error) from error
    for name in sorted(expected):
        path = folder / name
        if name not in got:
            raise CheckpointError(f"need all files of a step, got {path} missing")
        if got[name] != expected[name]["size"]:
            raise CheckpointError(
                f"need {expected[name]['size']} bytes, got {got[name]} in {path}"
            )


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise unless the files of a step of one process hold what was written.

    Raises:
        UnreadableError: if a file cannot be read now.
        CheckpointError: if a file is missing or has other bytes.
    """
    check_sizes(folder, manifest)
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            found = _checksum_of_file(path)
        except OSError as error:
            raise refusal("files to read", error) from error
        if found != entry["crc32"]:
            raise CheckpointError(f"need an undamaged file, got other bytes in {path}")


def leaf_of(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Leaf:
    """Return a leaf of the manifest with its data.

    Raises:
        UnreadableError: if the installed JAX does not know the dtype.
        CheckpointError: if the data are not what was saved; the leaf is named.
    """
    dtype, shape = dtype_of(entry), tuple(entry["data_shape"])
    name = entry["name"]
    data = np.zeros(0, np.uint8) if name is None else arrays[name]
    if data.nbytes != dtype.itemsize * int(np.prod(shape)) or (
        _checksum_of_array(data) != entry["crc32"]
    ):
        raise CheckpointError(f"need undamaged bytes, got others, leaf {entry['path']}")
    return Leaf(
        data.reshape(-1).view(dtype).reshape(shape),
        entry["dtype"],
        tuple(entry["shape"]),
        entry["key_impl"],
        entry["sharding"],
    )


def dtype_of(entry: dict[str, Any]) -> np.dtype:
    """Return the dtype of a leaf's data.

    Raises:
        UnreadableError: if the installed JAX does not know it.
    """
    try:
        return named_dtype(entry["data_dtype"])
    except TypeError as error:
        raise UnreadableError(
            f"need a dtype that this JAX knows, got {entry['data_dtype']!r}, leaf "
            f"{entry['path']}"
        ) from error


def metrics_of(manifest: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a step, as numbers."""
    return {name: from_json_number(x) for name, x in manifest["metrics"].items()}


def refusal(need: str, error: OSError) -> CheckpointError:
    """Return the error for a file that is damaged or cannot be read now."""
    kind = CheckpointError if error.errno in _OF_DAMAGE else UnreadableError
    return kind(f"need {need}, got {error}")


def _entries(host: HostTree) -> list[dict[str, Any]]:
    return [
        _described(path, leaf)
        | {
            "name": _name(place) if leaf.data.size else None,
            "crc32": _checksum_of_array(_unsigned(leaf.data)),
        }
        for place, (path, leaf) in enumerate(host.leaves.items())
    ]


def _sharded_entries(host: HostTree, sharded: Sharded) -> list[dict[str, Any]]:
    return [
        _described(path, leaf) | {"blocks": sharded.blocks[path]}
        for path, leaf in host.leaves.items()
    ]


def _described(path: LeafPath, leaf: Leaf | ShardedLeaf) -> dict[str, Any]:
    return {
        "path": path,
        "dtype": leaf.dtype,
        "shape": leaf.shape,
        "data_dtype": leaf.data_dtype.name,
        "data_shape": leaf.data_shape,
        "key_impl": leaf.key_impl,
        "sharding": leaf.sharding,
    }


def _name(place: int) -> str:
    return f"{place:06d}"


def _unsigned(data: np.ndarray) -> np.ndarray:
    """View a contiguous array as unsigned integers of its width, in its shape.

    A dtype wider than 8 bytes, such as complex128, adds an axis.
    """
    width = math.gcd(data.itemsize, 8)
    axis = () if data.itemsize == width else (data.itemsize // width,)
    return data.reshape(-1).view(f"u{width}").reshape(data.shape + axis)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        Path(root, name).relative_to(folder).as_posix(): os.path.getsize(
            Path(root, name)
        )
        for root, _, names in os.walk(folder / ARRAYS)
        for name in names
    }


def _files(folder: Path) -> dict[str, dict[str, int]]:
    return {
        name: {"size": size, "crc32": _checksum_of_file(folder / name)}
        for name, size in sorted(_sizes(folder).items())
    }


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum_of_array(data: np.ndarray) -> int:
    return zlib.crc32(data.data)


def _checksum_of_file(path: Path) -> int:
    checksum, buffer = 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            checksum = zlib.crc32(buffer[:size], checksum)
    return checksum


@functools.cache
def _versions() -> dict[str, str | None]:
    names = ("fngrad", "jax", "jaxlib", "numpy", "orbax-checkpoint")
    return {"python": platform.python_version(), **{n: _version(n) for n in names}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # not installed: it runs from its source

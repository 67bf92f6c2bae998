"""Weights in one file of the safetensors format, which other libraries read.

A checkpoint (`fngrad.checkpoint.save`) holds a whole training state; a safetensors file
holds named arrays, and is for exchange. The name of an array is its leaf's path.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fngrad.checkpoint.device_transfer import (
    HostTree,
    Leaf,
    named_dtype,
    static_parts,
    take,
)
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.reading import Saved
from fngrad.checkpoint.shards import ShardedLeaf
from fngrad.checkpoint.tree_matching import rebuild
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.local_paths import check_local
from fngrad.programs.optional_imports import import_extra
from fngrad.types import Path as LeafPath

_DTYPES = {  # the format's names and those of NumPy and JAX
    "BOOL": "bool",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_OWN = "fngrad."  # begins the names of metadata that are written here
_CHECKSUMS = "fngrad.crc32"  # by name, of an array's dtype, shape and bytes, as JSON


def save_safetensors(
    path: str | os.PathLike[str],
    params: Any,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write arrays to one safetensors file, by leaf path, atomically and bit for bit.

    The format has no checksums; one per array is written into the file's metadata,
    where other readers ignore it.

    Args:
        path: of the file, such as ``"model.safetensors"``; folders are made if needed,
            an older file is replaced.
        params: any tree of arrays. Static values of its nodes are not written.
        metadata: texts by name, for people and other programs.

    Returns:
        The path.

    Raises:
        CheckpointError: if a leaf is not an array of a dtype that the format has (the
            typed keys, 4-bit ints and complex128 of a whole state are for
            `fngrad.checkpoint.save`), or the file cannot be written.
        TypeError: if the metadata are not texts by name, or the path is not a path.
        ValueError: if a name of the metadata begins with ``fngrad.``, or the path is a
            URL.
        ImportError: if safetensors is missing.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"head": {"weight": jnp.ones((2, 3), jnp.bfloat16)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/model.safetensors"
        ...     path = fg.checkpoint.save_safetensors(file, params)
        ...     back = fg.checkpoint.load_safetensors(path, like=params)
        ...     print(list(fg.checkpoint.load_safetensors(path)))
        ['head/weight']
        >>> back["head"]["weight"].dtype
        dtype(bfloat16)
    """
    check_local("path", path)
    texts = _checked(metadata)
    library = import_extra("safetensors.numpy", "files")
    host = take(params)
    _check_leaves(host)
    sums = {name: _checksum(leaf) for name, leaf in host.leaves.items()}
    texts[_CHECKSUMS] = json.dumps(sums)
    arrays = {name: leaf.data for name, leaf in host.leaves.items()}
    content = library.save(arrays, metadata=texts)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"need a file that can be written, got {error}") from None
    return path


def load_safetensors(
    path: str | os.PathLike[str],
    like: Any = None,
    *,
    part: LeafPath | None = None,
    partial: bool = False,
) -> Any:
    """Read the arrays of a safetensors file, whoever wrote it.

    Args:
        path: of the file.
        like: a tree of arrays or ShapeDtypeStructs with the paths, shapes and dtypes of
            the file; its leaves give the devices of the result. ``None`` reads what is
            there: a file with other names is renamed as a dict, then put into a tree
            by `fngrad.tree.from_leaf_paths`.
        part: the path in the file below which ``like`` is, such as ``"params"``.
        partial: take the leaves that fit and keep the rest of ``like``, with a warning.

    Returns:
        A tree like ``like``, in memory of its own; without ``like`` a dict of NumPy
        arrays by name.

    Raises:
        CheckpointError: if the file is missing, damaged or cut off; if an array has a
            dtype that NumPy and JAX lack; if it holds another tree: the differences are
            named.
        TypeError: if ``path`` is not a path.
        ValueError: if it is a URL; if there is a part without ``like``.
        ImportError: if safetensors is missing.
    """
    if like is None and part is not None:
        raise ValueError(f"need like= for a part of the file, got {part=} alone")
    arrays, _ = _read(path)
    if like is None:
        return arrays
    leaves: dict[LeafPath, Leaf | ShardedLeaf] = {
        f"state/{name}" if name else "state": Leaf(x, x.dtype.name, x.shape)
        for name, x in arrays.items()
    }
    where = f"state/{part}" if part else "state"
    saved = Saved(0, leaves, static_parts({where: like}), {}, None, Path(path))
    return rebuild(saved, like, where, partial=partial)


def safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the texts that were written as a safetensors file's metadata.

    Args:
        path: of the file.

    Raises:
        CheckpointError: if the file is missing, damaged or cut off.
        TypeError: if ``path`` is not a path.
        ValueError: if it is a URL.
        ImportError: if safetensors is missing.
    """
    _, texts = _read(path)
    return {name: text for name, text in texts.items() if not name.startswith(_OWN)}


def _checked(metadata: Mapping[str, str] | None) -> dict[str, str]:
    texts = {} if metadata is None else dict(metadata)
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(
                f"need metadata as texts by name, got {text!r} at {name!r}: json.dumps "
                "makes a text of other values"
            )
        if name.startswith(_OWN):
            raise ValueError(
                f"need names of metadata that do not begin with {_OWN!r}, got {name!r}"
            )
    return texts


def _check_leaves(host: HostTree) -> None:
    for name, leaf in host.leaves.items():
        if isinstance(leaf, ShardedLeaf) and not leaf.is_whole:
            raise CheckpointError(
                f"need parameters that each process holds whole, got {name!r} split "
                "over several; fngrad.sharding.shard_state(params, mesh) gathers them"
            )
        if leaf.dtype not in _DTYPES.values():
            raise CheckpointError(
                f"need a dtype that safetensors has ({', '.join(_DTYPES.values())}), "
                f"got {leaf.dtype} at {name!r}; fngrad.checkpoint.save writes it"
            )


def _checksum(leaf: Leaf | ShardedLeaf) -> int:
    head = f"{leaf.dtype}{list(leaf.shape)}".encode()
    flat = leaf.data.reshape(-1).view(np.uint8)
    return zlib.crc32(flat.data, zlib.crc32(head))


def _read(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a file, checked against its checksums."""
    check_local("path", path)
    library = import_extra("safetensors", "files")
    try:
        content = Path(path).read_bytes()
        found = library.deserialize(content)
    except (OSError, library.SafetensorError) as error:
        raise CheckpointError(
            f"need a whole safetensors file, got {str(path)!r}: {error}"
        ) from None
    arrays = {name: _array(path, name, entry) for name, entry in found}
    size = int.from_bytes(content[:8], "little")
    texts = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    if _CHECKSUMS in texts:
        _check_sums(path, arrays, texts[_CHECKSUMS])
    return arrays, texts


def _array(path: Any, name: str, entry: dict[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"need a dtype that NumPy and JAX have, got {entry['dtype']} at {name!r} "
            f"in {str(path)!r}"
        )
    dtype = named_dtype(_DTYPES[entry["dtype"]])
    data = np.frombuffer(bytearray(entry["data"]), np.uint8)
    return data.view(dtype).reshape(entry["shape"])


def _check_sums(path: Any, arrays: dict[str, np.ndarray], text: str) -> None:
    try:
        sums = dict(json.loads(text))
    except (ValueError, TypeError):
        sums = {}
    found = {n: _checksum(Leaf(x, x.dtype.name, x.shape)) for n, x in arrays.items()}
    damaged = [n for n in {**sums, **found} if sums.get(n) != found.get(n)]
    if damaged:
        raise CheckpointError(
            f"need undamaged arrays in {str(path)!r}, got others at {damaged[:4]}"
        )

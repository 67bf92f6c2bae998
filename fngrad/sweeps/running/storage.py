"""The folder in which a sweep saves its lanes, so that a killed sweep can resume.

``sweep.json`` describes the sweep; a call that differs from it raises an error that
names the differences. Each chunk of lanes is a file
``lanes/<combination>-<first>-<end>-<crc>.npz``, written atomically, with the checksum
of its bytes in its name.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fngrad.tree as tree
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.json_values import to_json, write_json
from fngrad.programs.caller_warnings import warn
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.program import to_host

NAME, FORMAT = "sweep.json", 1
TRACED = ("outputs", "train_fn")  # of every combination, None if tracing it failed


class SavedLanes:
    """Chunks of lanes on disk, to be read.

    Args:
        path: the folder of a sweep.

    Raises:
        FileNotFoundError: if there is no sweep in it.
        ValueError: if its description is unreadable, or does not list the points and
            keys.
    """

    def __init__(self, path: str | Path):
        self.path: Path = Path(path).absolute()  # the process may change its directory
        self._lanes = self.path / "lanes"
        file = self.path / NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"need the folder of a sweep, with {NAME}, got {str(path)!r}"
            )
        self.content: dict[str, Any] = _read(file)
        if not self.content.get("lanes"):
            raise ValueError(
                f"need {file} to list the points and keys, which an earlier version of "
                "fngrad left out: the same call of fngrad.sweep adds them; a search "
                "has none"
            )

    def mode(self, combination: int) -> dict[str, Any] | None:
        """Return how a combination's lanes were trained, None if there are none."""
        return self.content["modes"].get(str(combination))

    def restore(self, combination: int, collected: LaneOutputs) -> None:
        """Read the saved lanes, with a warning about a damaged file."""
        for file, first, end, checksum in self._files(combination):
            data = file.read_bytes()
            if f"{zlib.crc32(data):08x}" != checksum:
                warn(f"{file} is damaged: its {end - first} lanes are trained again")
                self._drop(file)
                continue
            with np.load(io.BytesIO(data)) as parts:
                leaves = [
                    np.frombuffer(parts[f"leaf{number}"].tobytes(), leaf.dtype).reshape(
                        end - first, *leaf.shape[1:]
                    )
                    for number, leaf in enumerate(collected.leaves)
                ]
            collected.put(np.arange(first, end), leaves)
            collected.saved[first:end] = True

    def _drop(self, file: Path) -> None:
        """Leave a damaged file of another sweep where it is."""

    def _files(self, combination: int) -> Iterator[tuple[Path, int, int, str]]:
        for file in sorted(self._lanes.glob(f"{combination}-*-*-????????.npz")):
            _, first, end, checksum = file.stem.split("-")
            yield file, int(first), int(end), checksum


class Folder(SavedLanes):
    """Chunks of lanes on disk, read and written.

    Args:
        path: the folder, created if it does not exist. No other process may write
            there, see `fngrad.files.locks`.
        description: what determines the outputs of this sweep, name -> JSON value.
        lanes: the digests of points and keys, which a larger sweep looks up.

    Raises:
        ValueError: if the folder holds another sweep, an unreadable description, or
            lanes without a description.
        OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        description: Mapping[str, Any],
        lanes: Mapping[str, list[str]],
    ):
        self.path: Path = Path(path).absolute()  # the process may change its directory
        self._lanes = self.path / "lanes"
        self._lanes.mkdir(parents=True, exist_ok=True)
        for partial in self._lanes.glob(".*.tmp"):  # of a process that was killed
            partial.unlink()
        file = self.path / NAME
        new = {"format": FORMAT, **to_json(dict(description))}
        self.content: dict[str, Any] = new | {"modes": {}, "lanes": dict(lanes)}
        if not file.exists():
            self._check_empty(file)
            write_json(file, self.content)
            return
        old = _read(file)
        traced = {n: _filled(old[n], new[n]) for n in TRACED if n in old and n in new}
        self.content = {**self.content, **old, **traced}
        _check_same(new, self.content, file)
        if self.content != old:
            write_json(file, self.content)

    def _check_empty(self, file: Path) -> None:
        chunks = len(list(self._lanes.glob("*.npz")))
        if chunks:
            raise ValueError(
                f"need {file}, which describes the sweep of the {chunks} files in "
                f"{self._lanes}, got none: clear the folder, or use another"
            )

    def record_mode(self, combination: int, mode: Mapping[str, Any]) -> None:
        """Record how a combination's lanes are trained."""
        self.content["modes"][str(combination)] = to_json(dict(mode))
        write_json(self.path / NAME, self.content)

    def save(
        self, combination: int, first: int, end: int, collected: LaneOutputs
    ) -> None:
        """Write lanes ``first`` to ``end``, exclusive, as one file, atomically."""
        content = io.BytesIO()
        parts = {
            f"leaf{number}": np.frombuffer(leaf[first:end].tobytes(), np.uint8)
            for number, leaf in enumerate(collected.leaves)
        }
        np.savez(content, **parts)  # pyright: ignore[reportArgumentType]
        data = content.getvalue()
        name = f"{combination}-{first}-{end}-{zlib.crc32(data):08x}.npz"
        write_atomically(self._lanes / name, data)
        collected.saved[first:end] = True

    def _drop(self, file: Path) -> None:
        """Delete a damaged file."""
        file.unlink()


def digest(values: Any) -> str:
    """Return 16 hex digits of the leaves' paths, dtypes, shapes and bytes."""
    hashed = hashlib.blake2b(digest_size=8)
    for path, leaf in tree.leaf_paths(values).items():
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        hashed.update(f"{path} {array.dtype} {array.shape};".encode())
        (host,) = to_host(array)
        hashed.update(host.tobytes())
    return hashed.hexdigest()


def describe_shapes(outputs: Any) -> dict[str, str]:
    """Return the shape and dtype of every leaf, as text by path."""
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in tree.leaf_paths(outputs).items()
    }


def machine() -> dict[str, str]:
    """Return what affects the bits besides the program: version and hardware."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "backend": device.platform,
        "device kind": device.device_kind,
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"need the description of a sweep in {file}: {error}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"need a sweep of format {FORMAT} in {file}, got {str(content)[:60]}"
        )
    return content


def _filled(old: Any, new: Any) -> Any:
    """Return what is known of each combination; one that failed may be mended."""
    if len(old) != len(new):
        return old
    return [y if x is None else x for x, y in zip(old, new, strict=True)]


def _check_same(new: dict[str, Any], old: dict[str, Any], file: Path) -> None:
    names = [n for n in new if old.get(n) != new[n]]
    if names:
        shown = ", ".join(f"{n}: {old.get(n)!r} became {new[n]!r}" for n in names)
        raise ValueError(
            f"need the sweep that {file} describes, or another folder (with extend= "
            f"this sweep's lanes are taken over there): {shown}"
        )

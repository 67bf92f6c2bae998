"""The folder of a run: its config, manifest, metrics and learning curves."""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fngrad.logging.manifest as facts
import fngrad.logging.plots as plots
from fngrad.distributed import processes
from fngrad.files.json_values import to_json, write_json
from fngrad.files.local_paths import check_local
from fngrad.logging.differences import check_unchanged
from fngrad.logging.progress import print_to_stderr
from fngrad.programs.caller_warnings import warn


class RunFolder:
    """A run's folder: ``config.json``, ``manifest.json``, metrics and learning curves.

    The config holds the run's settings. The manifest holds what it ran on: versions,
    device, flags, git commit, command, start time, seed, data hash, installed packages.
    Opening a folder again with an equal config continues its run: the manifest keeps
    the time of the first start, and its ``resumed`` gains an entry with the time and
    the facts that have changed. Several processes of one program all open it; the first
    writes.

    Args:
        path: the folder; it is made, with its parents, and resolved once.
        config: a dataclass, NamedTuple or dict, which may be nested, of numbers,
            strings, paths and lists; None means an empty one.
        data: the data's fingerprint.
        extra: more entries for the manifest, such as ``{"seed": 0}``; without a seed
            there, the config's ``seed`` is recorded.
        age: how many seconds ago the run began, or went on.

    Raises:
        ValueError: if the folder holds a run with another config or other data; every
            differing key is named, with both values, and nothing is written.
        TypeError: if the config or ``extra`` holds what JSON cannot; the key is named.
        OSError: if the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> from fngrad.logging import RunFolder
        >>> with tempfile.TemporaryDirectory() as temporary:
        ...     folder = RunFolder(f"{temporary}/run", config={"rate": 0.1, "seed": 3})
        ...     folder.update_manifest(loop="scan")
        ...     folder.manifest["seed"], folder.manifest["loop"]
        (3, 'scan')
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: Any = None,
        data: str | None = None,
        extra: dict[str, Any] | None = None,
        age: float = 0.0,
    ):
        time = facts.now(age)
        check_local("a run folder", path)
        self.path: Path = Path(os.path.abspath(path))
        wanted = config_entries(config)
        more = _as_dict("extra", extra or {})
        known, old = check_continues(self.path, config=wanted, data=data)
        current = {"seed": wanted.get("seed"), "data": data, **facts.collect(), **more}
        _make_folder(self.path)
        _write(
            self._manifest_path,
            _started(current, time) if old is None else _resumed(old, current, time),
        )
        if known is None:
            _write(self._config_path, wanted)

    @property
    def metrics(self) -> Path:
        """The path of ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """The path of ``curves.png``."""
        return self.path / "curves.png"

    @property
    def config(self) -> dict[str, Any]:
        """The config, read back in JSON's types."""
        return _read(self._config_path) or {}

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, read back."""
        return read_manifest(self.path)

    def update_manifest(self, **fields: Any) -> None:
        """Set entries of the manifest, in one atomic step.

        Raises:
            TypeError: if a value is not one that JSON can hold; its key is named.
        """
        _write(self._manifest_path, {**self.manifest, **to_json(fields)})

    def record(self, **fields: Any) -> None:
        """Set entries of the manifest; a failure is a warning."""
        try:
            self.update_manifest(**fields)
        except Exception as error:
            _warn(self._manifest_path, error)

    def draw(self, name: str, make: Callable[[], Any], dpi: int = 120) -> None:
        """Write a picture ``<name>.png`` in one atomic step; a failure is a warning.

        Without matplotlib a line on stderr names the extra to install.

        Args:
            name: of the picture, without its suffix.
            make: returns a matplotlib figure.
            dpi: pixels per inch.
        """
        path = self.path / f"{name}.png"
        if not processes().is_first:
            return None
        if importlib.util.find_spec("matplotlib") is None:
            return print_to_stderr(f'no {path.name}: pip install "fngrad[plot]"')
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # matplotlib's, about what to draw
                plots.write(make(), path, dpi)
        except Exception as error:
            _warn(path, error)

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def _manifest_path(self) -> Path:
        return self.path / "manifest.json"


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a run folder; empty if there is none.

    Raises:
        ValueError: if it is not a JSON object.
    """
    return _read(Path(path) / "manifest.json") or {}


def check_continues(
    path: Path, *, config: dict[str, Any], data: str | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Raise unless a folder is new, or holds a run with this config and these data.

    Nothing is written.

    Args:
        path: as for `RunFolder`.
        config: from `config_entries`.
        data: as for `RunFolder`.

    Returns:
        The config and the manifest that are there; None where there is none.

    Raises:
        ValueError: as `RunFolder`.
    """
    known, old = _read(path / "config.json"), _read(path / "manifest.json")
    if known is not None:
        check_unchanged(f"config in {str(path)!r}", known, config)
    if old is not None and None not in (old.get("data"), data):
        was, wanted_data = {"data": old["data"]}, {"data": data}
        check_unchanged(f"data in {str(path)!r}", was, wanted_data)
    return known, old


def config_entries(config: Any) -> dict[str, Any]:
    """Return what ``config.json`` holds.

    Raises:
        TypeError: if the config is of another type, or holds what JSON cannot.
    """
    return _as_dict("config", {} if config is None else config)


def _as_dict(name: str, value: Any) -> dict[str, Any]:
    plain = to_json(value, name)
    if not isinstance(plain, dict):
        raise TypeError(
            f"need a dataclass, NamedTuple or dict as {name}, got {value!r}"
        )
    return plain


def _make_folder(path: Path) -> None:
    if not processes().is_first:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"need a run folder that can be made, got {error}") from error


def _write(path: Path, value: dict[str, Any]) -> None:
    if not processes().is_first:
        return
    try:
        write_json(path, value)
    except OSError as error:
        raise OSError(f"need a run folder that can be written, got {error}") from error


def _warn(path: Path, error: Exception) -> None:
    warn(f"{str(path)!r} is not written: {type(error).__name__}: {error}")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"need JSON in {path}, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"need a JSON object in {path}, got {str(content)[:60]}")
    return content


def _started(current: dict[str, Any], time: str) -> dict[str, Any]:
    return {"started": time, "resumed": [], **current}


def _resumed(old: dict[str, Any], current: dict[str, Any], time: str) -> dict[str, Any]:
    changed = {key: value for key, value in current.items() if old.get(key) != value}
    resumed = [*old.get("resumed", []), {"time": time, **changed}]
    return {**old, "resumed": resumed}

"""Reading steps: which are complete, which are undamaged, and what they hold."""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.shard_files as shard_files
import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint.agreement import cause, decided
from fngrad.checkpoint.device_transfer import Leaf
from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.checkpoint.shards import Needs, ShardedLeaf, everything
from fngrad.checkpoint.step_folders import StepFolder
from fngrad.distributed import Processes, processes
from fngrad.programs.caller_warnings import warn
from fngrad.types import Path as LeafPath

_ATTEMPTS = 10  # to read from a folder in which a writer deletes steps


class Complete(NamedTuple):
    """A complete step whose arrays are not read yet."""

    folder: StepFolder
    manifest: dict[str, Any]


class Saved(NamedTuple):
    """A step that was read and is undamaged."""

    step: int
    leaves: dict[LeafPath, Leaf | ShardedLeaf]  # of the whole tree, on the host
    static: dict[LeafPath, str]  # the static values of nodes, as text
    metrics: dict[str, float]
    notes: Any  # in JSON's types
    path: Path

    def under(self, part: LeafPath) -> dict[LeafPath, np.ndarray]:
        """Return the arrays below a path, by their paths relative to it."""
        start = f"{part}/"
        return {
            path.removeprefix(start): leaf.data
            for path, leaf in self.leaves.items()
            if path.startswith(start)
        }


def completed(folder: Path) -> list[Complete]:
    """Return the complete steps, oldest first, each with its manifest.

    Raises:
        UnreadableError: if a step may be complete, but cannot be read here or now.
    """
    found = []
    for each in step_folders.listing(folder):
        try:
            content = manifest.read(each.path)
            manifest.check_sizes(each.path, content)
        except UnreadableError:
            raise
        except CheckpointError:
            continue
        found.append(Complete(each, content))
    return found


def steps(folder: str | Path) -> list[int]:
    """Return the steps with a complete checkpoint, ascending.

    Complete means that the manifest is undamaged and all files have their sizes; the
    contents of the files are checked when a step is restored. With several processes
    all call this, and the first one looks.

    Raises:
        CheckpointError: if a step may be complete, but cannot be read here or now.
    """
    return decided(
        processes(),
        lambda: sorted({each.folder.step for each in completed(Path(folder))}),
    )


def latest_step(folder: str | Path) -> int | None:
    """Return the newest step with a complete checkpoint, or None; see `steps`.

    Raises:
        CheckpointError: if a step may be complete, but cannot be read here or now.
    """
    found = steps(folder)
    return found[-1] if found else None


def rank(found: list[Complete], best: tuple[str, str]) -> list[Complete]:
    """Return the steps that have a metric, best first; of equals, the oldest first.

    Args:
        found: oldest first.
        best: the metric, and ``"min"`` or ``"max"``.
    """
    name, mode = best
    sign = 1 if mode == "min" else -1
    values = [manifest.metrics_of(each.manifest).get(name, math.nan) for each in found]
    scored = [
        (sign * value, each)
        for value, each in zip(values, found, strict=True)
        if not math.isnan(value)
    ]
    return [each for _, each in sorted(scored, key=lambda pair: pair[0])]


def load(path: Path, needs: Needs = everything) -> Saved:
    """Read a step and check it: first its files, then each leaf.

    Args:
        path: of the step.
        needs: which boxes of each array to read, where several processes wrote it; what
            one process wrote is read whole.

    Raises:
        UnreadableError: if it cannot be read here or now.
        CheckpointError: if it is damaged; the file or the leaf is named.
        ImportError: if one process wrote it, and orbax-checkpoint is missing.
    """
    content = manifest.read(path)
    if content["format"] == manifest.OF_PROCESSES:
        leaves = shard_files.read(path, content, needs)
    else:
        leaves = _leaves_of_one_process(path, content)
    return Saved(
        content["step"],
        leaves,
        content["static"],
        manifest.metrics_of(content),
        content["notes"],
        path,
    )


def _leaves_of_one_process(
    path: Path, content: dict[str, Any]
) -> dict[LeafPath, Leaf | ShardedLeaf]:
    manifest.check_files(path, content)
    entries = content["leaves"]
    names = [entry["name"] for entry in entries if entry["name"] is not None]
    try:
        arrays = array_files.read(path / manifest.ARRAYS, names)
    except ImportError:
        raise
    except Exception as error:  # not damage: the files are as they were written
        raise UnreadableError(
            f"need arrays that can be read in {path}, whose files are undamaged, got "
            f"{type(error).__name__}: {error}"
        ) from error
    return {entry["path"]: manifest.leaf_of(entry, arrays) for entry in entries}


def check(path: Path) -> None:
    """Raise unless the files of a step hold what was written.

    Raises:
        UnreadableError: if it cannot be read here or now.
        CheckpointError: if it is damaged; the file is named.
    """
    content = manifest.read(path)
    if content["format"] == manifest.OF_PROCESSES:
        shard_files.check(path, content)
    else:
        manifest.check_files(path, content)


_Kind = Literal["good", "damaged", "gone", "unreadable", "other"]


class _Tried(NamedTuple):
    """How reading a step ended, in the process where it ended worst."""

    kind: _Kind
    saved: Saved | None
    error: Exception | None


def _try(mine: Processes, path: Path, needs: Needs) -> _Tried:
    """Read a step; all processes call this, and get the worst of their outcomes."""
    saved, error, kind = None, None, "good"
    try:
        saved = load(path, needs)
    except Exception as raised:
        error, kind = raised, _kind_of(path, raised)
    if mine.count == 1:
        return _Tried(kind, saved, error)
    told = [
        json.loads(text)
        for text in mine.texts(json.dumps([kind, cause(error) if error else ""]))
    ]
    order: tuple[_Kind, ...] = get_args(_Kind)
    rank = max(range(mine.count), key=lambda r: order.index(told[r][0]))
    worst, text = told[rank]
    if worst != kind:
        is_damage = worst in ("damaged", "gone")
        refuse = CheckpointError if is_damage else UnreadableError
        error = refuse(f"process {rank}: {text}")
    return _Tried(worst, saved, error)


def _kind_of(path: Path, error: Exception) -> _Kind:
    if not isinstance(error, CheckpointError):
        return "other"
    if not os.path.lexists(path):
        return "gone"
    return "unreadable" if isinstance(error, UnreadableError) else "damaged"


def load_together(mine: Processes, path: Path, needs: Needs) -> Saved:
    """Read a step as `load` does, by several processes; if one raises, all do."""
    _, saved, error = _try(mine, path, needs)
    if error is not None:
        raise error
    assert saved is not None
    return saved


def first_good(
    folder: Path,
    candidates: Callable[[Path], Iterable[Path]],
    damaged: dict[Path, str] | None = None,
    needs: Needs = everything,
) -> Saved | None:
    """Return the first undamaged step, with a warning for each damaged one.

    Several processes, which all call this, read the same step, each what it needs; it
    counts as damaged for all if it is for one.

    Args:
        folder: of the steps.
        candidates: lists steps of the folder, the preferred first. It is called again
            if a step was deleted while it was read.
        damaged: steps to skip, with reasons; the damaged ones found are added.
        needs: see `load`.

    Raises:
        CheckpointError: if a step may be good, but cannot be read here or now; or if
            steps were deleted at every attempt.
        ImportError: if one process wrote it, and orbax-checkpoint is missing.
    """
    mine = processes()
    skipped = {} if damaged is None else damaged
    for _ in range(_ATTEMPTS):
        names = decided(
            mine, lambda: [x.name for x in candidates(folder) if x not in skipped]
        )
        for path in map(folder.joinpath, names):
            kind, saved, error = _try(mine, path, needs)
            if kind == "good":
                return saved
            if kind == "gone":
                break
            if kind != "damaged":
                assert error is not None
                raise error
            skipped[path] = str(error)
            if mine.is_first:
                warn(f"the checkpoint {path} is damaged and is not used: {error}")
        else:
            return None
    raise CheckpointError(
        "need steps that are not deleted while they are read, got one deleted at each "
        f"of {_ATTEMPTS} attempts"
    )


def listed(folder: Path, candidates: Callable[[Path], Iterable[Path]]) -> list[Path]:
    """Return what the first process lists; all call this."""
    names = decided(processes(), lambda: [x.name for x in candidates(folder)])
    return [folder / name for name in names]


def newest_paths(folder: Path) -> list[Path]:
    """Return all steps, damaged or not, newest first."""
    return [each.path for each in reversed(step_folders.listing(folder))]


def best_paths(folder: Path, best: tuple[str, str]) -> list[Path]:
    """Return the complete steps that have a metric, best first."""
    return [each.folder.path for each in rank(completed(folder), best)]


def recorded_best_paths(folder: Path) -> list[Path]:
    """Return the same, by the metric that the newest step records."""
    found = completed(folder)
    best = found[-1].manifest["best"] if found else ("", "min")
    return [each.folder.path for each in rank(found, best)]


def paths_at(folder: Path, step: int) -> list[Path]:
    """Return what was saved at a step, newest first."""
    return [
        each.path
        for each in reversed(step_folders.listing(folder))
        if each.step == step
    ]

"""`save` and `restore`: a state to disk and back."""

from functools import partial as bound
from pathlib import Path
from typing import Any

import numpy as np

import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.reading as reading
import fngrad.numerics as numerics
from fngrad.checkpoint.device_transfer import paths_of, take
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.joint_writing import SECONDS, write_together
from fngrad.checkpoint.reading import Saved
from fngrad.checkpoint.shards import Needs, needed
from fngrad.checkpoint.tree_matching import rebuild
from fngrad.checkpoint.writing import DEFAULT_BEST, write_step
from fngrad.distributed import check_connected, processes
from fngrad.files.local_paths import check_local
from fngrad.training import TrainState
from fngrad.types import Path as LeafPath
from fngrad.types import Tree


def save(
    folder: str | Path,
    state: Any,
    *,
    step: int | None = None,
    metrics: dict[str, float] | None = None,
    notes: Any = None,
    limit_seconds: float = SECONDS,
) -> Path:
    """Write a state to disk atomically.

    Step 100 is written to ``folder/00000100``: the arrays, written by orbax, and a
    manifest with checksums. Nothing is deleted: the same step saved again is written
    beside the first, as ``00000100-1``, and the newest one is read.

    However small the state is, a save takes about 0.1 s: orbax writes eight files in a
    format for many arrays and processes (60 % of the time), every file and folder is
    flushed to disk (30 %), and the arrays are read back. A large one takes about twice
    as long as `numpy.savez`: ``experiments/benchmarks/checkpoints.py`` has the parts.

    Args:
        folder: created if needed.
        state: a TrainState or any pytree of arrays.
        step: its number, >= 0; by default ``state.step``.
        metrics: numbers by name, for ``restore(step="best")``.
        notes: anything that JSON can hold.
        limit_seconds: how long the first of several processes waits for the others'
            shards when it has written its own, > 0.

    Returns:
        The folder of the step.

    Raises:
        ValueError: if ``step`` is missing or not an int >= 0, or ``limit_seconds`` is
            not > 0.
        CheckpointError: if the folder cannot be written, or the tree cannot be saved;
            in all processes, if one fails or does not finish in time.
        TypeError: if a metric is not a number, or JSON cannot hold the notes.
        ImportError: if orbax-checkpoint is missing.
        RuntimeError: if `fngrad.distributed.initialize` did not connect the processes.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from fngrad.checkpoint import restore, save
        >>> params = {"w": jnp.arange(3.0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(folder, params, step=100)
        ...     print(path.name, restore(folder, like=params)["w"])
        00000100 [0. 1. 2.]
    """
    if step is not None:
        step = numerics.check_count("step", step)
    elif not isinstance(state, TrainState):
        raise ValueError(f"need step= for a {type(state).__name__}, got None")
    check_local("folder", folder)
    numerics.check_positive("limit_seconds", limit_seconds)
    plain = manifest.in_json(metrics, notes)
    host = take({"state": state})
    at = _step_of(state) if step is None else step
    check_connected()
    mine = processes()
    if mine.count == 1:
        return write_step(Path(folder), at, host, *plain)
    return write_together(
        mine, Path(folder), at, host, *plain, DEFAULT_BEST, limit_seconds
    )


def restore(
    folder: str | Path,
    like: Tree,
    *,
    step: int | str = "latest",
    part: LeafPath | None = None,
    partial: bool = False,
) -> Tree:
    """Read a state from disk, bit for bit.

    Args:
        folder: where `save` or `fngrad.fit` wrote it.
        like: a tree of arrays or ShapeDtypeStructs with the structure, shapes and
            dtypes that were saved. Its leaves give the devices of the result; their
            number may have changed, and that of the processes: each reads the shards
            that its devices need, and all get the same step.
        step: a step, ``"latest"``, or ``"best"`` by the metric that the run kept its
            best step by. The last two skip damaged steps, with a warning.
        part: the path of the part to read, such as ``"params"``; ``like`` is a tree
            like that part.
        partial: take the leaves that fit and keep the rest of ``like``, with a warning.
            In a whole state the step fits too, so `fngrad.fit` would find nothing left
            to do; to fine-tune, read only the parameters.

    Returns:
        A tree like ``like``, in memory of its own: it can be donated.

    Raises:
        CheckpointError: if there is no checkpoint; if it is damaged; if it may be good,
            but cannot be read here or now, such as one of a newer format; or if it
            holds another tree: the differences are named.
        ValueError: if ``step`` is something else.
        ImportError: if orbax-checkpoint is missing.

    Example:
        A model with a new head takes its other parameters from a checkpoint, and
        trains from step 0.

        >>> import tempfile
        >>> import warnings
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sgd(0.1)
        >>> old = {"body": jnp.ones(2), "head": jnp.ones(3)}
        >>> new = {"body": jnp.zeros(2), "head": jnp.zeros(5)}
        >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        ...     _ = fg.checkpoint.save(folder, fg.init_state(old, optimizer, key=0))
        ...     warnings.simplefilter("ignore")  # the warning that the head is kept
        ...     params = fg.checkpoint.restore(
        ...         folder, like=new, part="params", partial=True
        ...     )
        >>> state = fg.init_state(params, optimizer, key=0)
        >>> print(params["body"], params["head"], state.step)
        [1. 1.] [0. 0. 0. 0. 0.] 0
    """
    check_local("folder", folder)
    path = f"state/{part}" if part else "state"
    needs = needed(paths_of({path: like}), otherwise=False)
    return rebuild(_find(Path(folder), step, needs), like, path, partial=partial)


def _step_of(state: TrainState) -> int:
    step = np.asarray(state.step)
    if step.shape != ():
        raise ValueError(
            f"need step= for a state of several runs, got steps of shape {step.shape}"
        )
    return int(step)


def _find(folder: Path, step: int | str, needs: Needs) -> Saved:
    if step == "latest":
        saved = reading.first_good(folder, reading.newest_paths, needs=needs)
    elif step == "best":
        saved = reading.first_good(folder, reading.recorded_best_paths, needs=needs)
    elif isinstance(step, str):
        raise ValueError(f'need a step, "latest" or "best", got {step=}')
    else:
        step = numerics.check_count("step", step)
        paths = reading.listed(folder, bound(reading.paths_at, step=step))
        if not paths:
            raise CheckpointError(
                f"need a step that is in {str(folder)!r}, got {step=}: it has "
                f"{reading.steps(folder)}{_way_out(folder)}"
            )
        return reading.load_together(processes(), paths[0], needs)
    if saved is None:
        measured = " with the metric that keep_best names" if step == "best" else ""
        raise CheckpointError(
            f"need a good checkpoint{measured} in {str(folder)!r}, got none: it has "
            f"the steps {reading.steps(folder)}{_way_out(folder)}"
        )
    return saved


def _way_out(folder: Path) -> str:
    """Name the folder nearby that has checkpoints, if there is one."""
    inner = folder / "checkpoints"
    if reading.newest_paths(inner):
        return f"; the run in that folder has its checkpoints in {str(inner)!r}"
    whole = folder.absolute()
    if whole in reading.newest_paths(whole.parent):
        return f"; it is itself a checkpoint, one of those in {str(folder.parent)!r}"
    if folder.exists():
        return ""
    return (
        "; the folder does not exist (fit writes checkpoints into checkpoint_dir, or "
        "into run_dir with save_every)"
    )

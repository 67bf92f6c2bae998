"""The checkpoints of a run: written in the background, the newest and best kept.

Orbax's AsyncCheckpointer is not used. It reads CPU arrays in place, so a step to which
they are donated copies them first, and a program that ends without waiting for it loses
the checkpoint.
"""

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.reading as reading
import fngrad.numerics as numerics
from fngrad.checkpoint.agreement import raise_together
from fngrad.checkpoint.device_transfer import HostTree, paths_of, take
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.joint_writing import SECONDS, Begun, begin, finish
from fngrad.checkpoint.reading import Saved
from fngrad.checkpoint.retention import Retention, retain
from fngrad.checkpoint.shards import needed
from fngrad.checkpoint.writing import DEFAULT_BEST, write_step
from fngrad.distributed import processes
from fngrad.files.local_paths import check_local
from fngrad.programs.caller_warnings import warn


class Checkpoints:
    """The checkpoints of a run, in a folder.

    `save` copies the tree to the host and returns; a thread writes it. At most one
    write runs at a time. If it fails, the next call of `save`, `wait` or `close` raises
    its error. At its end the program waits for a running write.

    Several processes all make the same calls, and get the same results and errors. Each
    writes its own shards; the first locks, publishes and deletes.

    Args:
        folder: created by the first save.
        keep: number of newest checkpoints to keep, >= 1; damaged ones do not count.
        best: a metric and ``"min"`` or ``"max"``; the best by it is kept too.
        limit_seconds: see `fngrad.checkpoint.save`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from fngrad.checkpoint import Checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, keep=1) as checkpoints:
        ...         for step in range(3):
        ...             checkpoints.save(step, {"w": jnp.full(2, step)})
        ...     print(checkpoints.newest().under("w"), checkpoints.steps())
        {} [2]
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        best: tuple[str, str] | None = None,
        limit_seconds: float = SECONDS,
    ):
        keep = numerics.check_count("keep", keep, 1)
        if best is not None and best[1] not in ("min", "max"):
            raise ValueError(f'need best as a name and "min" or "max", got {best=}')
        numerics.check_positive("limit_seconds", limit_seconds)
        check_local("a folder of checkpoints", folder)
        self.folder: Path = Path(folder).absolute()  # the working folder may change
        self._rule = Retention(keep, best)
        self._mine = processes()
        self._limit = limit_seconds
        self._damaged: dict[Path, str] = {}
        self._writing: Future[None] | None = None

    def save(
        self,
        step: int,
        a: Any,
        *,
        metrics: dict[str, float] | None = None,
        notes: Any = None,
    ) -> None:
        """Copy a tree to the host, and write it in the background.

        Args:
            step: its number, >= 0.
            a: a tree of arrays, which may be donated as soon as this returns. A tree
                from `fngrad.checkpoint.device_transfer.take` is not copied again.
            metrics: numbers by name, with the metric of ``best``.
            notes: anything that JSON can hold.

        Raises:
            CheckpointError: if the previous write failed, the tree cannot be saved, or
                no thread can be started.
            ValueError: if ``step`` is not an int >= 0.
            TypeError: if a metric is not a number, or JSON cannot hold the notes.
            ImportError: if orbax-checkpoint was missing in the previous write.
        """
        step = numerics.check_count("step", step)
        self.wait()
        host = a if isinstance(a, HostTree) else take(a)
        arguments = step, host, *manifest.in_json(metrics, notes)
        is_alone = self._mine.count == 1
        begun = None if is_alone else begin(self._mine, self.folder, step)
        executor = ThreadPoolExecutor(1, "fngrad checkpoint")
        _PENDING.add(self)
        try:
            self._writing = executor.submit(self._write, begun, *arguments)
        except RuntimeError as error:
            with contextlib.nullcontext() if begun is None else begun.held:
                raise CheckpointError(
                    f"need a thread to write the checkpoint of step {step}, got {error}"
                ) from error
        executor.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until the running write is on disk.

        Raises:
            CheckpointError: if the write failed, in one process or more.
            ImportError: if orbax-checkpoint is missing.
        """
        written = self._ended()
        if written is None:
            return
        if self._mine.count == 1:
            written.result()
        else:
            raise_together(self._mine, written.exception())

    def close(self) -> None:
        """Wait, as `wait` does. No write runs afterwards, even if this raises.

        Raises:
            CheckpointError, ImportError: as `wait` does.
        """
        self.wait()

    @property
    def is_writing(self) -> bool:
        """Whether a write is running in this process."""
        return self._writing is not None and not self._writing.done()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._join()

    @property
    def damaged(self) -> dict[Path, str]:
        """The folders that were found damaged, and how."""
        return dict(self._damaged)

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, ascending."""
        self._join()
        return reading.steps(self.folder)

    def newest(self, like: Any = None) -> Saved | None:
        """Return the newest undamaged step, with a warning for each damaged one.

        Args:
            like: a tree like the saved one, or a part of it such as ``{"state":
                state}``. Of its arrays that are split over processes this one reads
                only what is on its devices; it reads all others whole.
        """
        return self._first(reading.newest_paths, like)

    def best(self, like: Any = None) -> Saved | None:
        """Return the best undamaged step by the metric of ``best``.

        Args:
            like: see `newest`.

        Raises:
            ValueError: if ``best`` is None.
        """
        best = self._rule.best
        if best is None:
            raise ValueError("need best=(metric, mode), got None")
        return self._first(partial(reading.best_paths, best=best), like)

    def at(self, step: int, like: Any = None) -> Saved | None:
        """Return what was saved at a step; None if there is nothing undamaged.

        Args:
            step: its number.
            like: see `newest`.
        """
        return self._first(partial(reading.paths_at, step=step), like)

    def _first(
        self, candidates: Callable[[Path], Iterable[Path]], like: Any
    ) -> Saved | None:
        self._join()
        needs = needed({} if like is None else paths_of(like), otherwise=True)
        return reading.first_good(self.folder, candidates, self._damaged, needs)

    def _ended(self) -> Future[None] | None:
        """Wait for the running write; return it, once."""
        self._join()
        _PENDING.discard(self)
        written, self._writing = self._writing, None
        return written

    def _join(self) -> None:
        if self._writing is not None:
            concurrent.futures.wait([self._writing])

    def _write(
        self, begun: Begun | None, step: int, host: HostTree, metrics: Any, notes: Any
    ) -> None:
        best = self._rule.best or DEFAULT_BEST
        if begun is None:
            written = write_step(self.folder, step, host, metrics, notes, best)
        else:
            written = finish(begun, step, host, metrics, notes, best, self._limit)
        self._damaged.pop(written, None)
        if self._mine.is_first:
            retain(self.folder, written, self._rule, self._damaged)


_PENDING: set[Checkpoints] = set()  # with a running write, or an error not raised yet


def _finish_writes() -> None:
    """Wait for all writes, without the other processes: one may end by an error."""
    for checkpoints in list(_PENDING):
        written = checkpoints._ended()
        error = written.exception() if written else None
        if error is not None:
            warn(f"a checkpoint was not written: {error}")


# At exit Python first makes every executor refuse work, also those that orbax writes
# with, then joins threads, then runs `atexit`. Only this hook comes earlier: hooks run
# in reverse order, and the import of ThreadPoolExecutor registered the refusal.
threading._register_atexit(_finish_writes)  # pyright: ignore

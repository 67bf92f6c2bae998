"""The checkpoints of a run: written in the background, the newest and best kept.

Orbax's AsyncCheckpointer is not used. It reads CPU arrays in place, so a step to which
they are donated copies them first, and a program that ends without waiting for it loses
the checkpoint.
"""

import concurrent.futures
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.reading as reading
import fngrad.numerics as numerics
from fngrad.checkpoint.device_transfer import HostTree, take
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.reading import Saved
from fngrad.checkpoint.retention import Retention, retain
from fngrad.checkpoint.writing import DEFAULT_BEST, write_step
from fngrad.files.local_paths import check_local
from fngrad.programs.caller_warnings import warn


class Checkpoints:
    """The checkpoints of a run, in a folder.

    `save` copies the tree to the host and returns; a thread writes it. At most one
    write runs at a time. If it fails, the next call of `save`, `wait` or `close` raises
    its error. At its end the program waits for a running write.

    Args:
        folder: created by the first save.
        keep: number of newest checkpoints to keep, >= 1; damaged ones do not count.
        best: a metric and ``"min"`` or ``"max"``; the best by it is kept too.

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
    ):
        keep = numerics.check_count("keep", keep, 1)
        if best is not None and best[1] not in ("min", "max"):
            raise ValueError(f'need best as a name and "min" or "max", got {best=}')
        check_local("a folder of checkpoints", folder)
        self.folder: Path = Path(folder).absolute()  # the working folder may change
        self._rule = Retention(keep, best)
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
        executor = ThreadPoolExecutor(1, "fngrad checkpoint")
        _PENDING.add(self)
        try:
            self._writing = executor.submit(self._write, *arguments)
        except RuntimeError as error:
            raise CheckpointError(
                f"need a thread to write the checkpoint of step {step}, got {error}"
            ) from error
        executor.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until the running write is on disk.

        Raises:
            CheckpointError: if the write failed.
            ImportError: if orbax-checkpoint is missing.
        """
        self._join()
        _PENDING.discard(self)
        written, self._writing = self._writing, None
        if written is not None:
            written.result()

    def close(self) -> None:
        """Wait, as `wait` does. No write runs afterwards, even if this raises.

        Raises:
            CheckpointError, ImportError: as `wait` does.
        """
        self.wait()

    @property
    def is_writing(self) -> bool:
        """Whether a write is running."""
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

    def newest(self) -> Saved | None:
        """Return the newest undamaged step, with a warning for each damaged one."""
        self._join()
        return reading.first_good(
            lambda: reading.newest_paths(self.folder), self._damaged
        )

    def best(self) -> Saved | None:
        """Return the best undamaged step by the metric of ``best``.

        Raises:
            ValueError: if ``best`` is None.
        """
        best = self._rule.best
        if best is None:
            raise ValueError("need best=(metric, mode), got None")
        self._join()
        return reading.first_good(
            lambda: reading.best_paths(self.folder, best), self._damaged
        )

    def at(self, step: int) -> Saved | None:
        """Return what was saved at a step; None if there is nothing undamaged."""
        self._join()
        return reading.first_good(
            lambda: reading.paths_at(self.folder, step), self._damaged
        )

    def _join(self) -> None:
        if self._writing is not None:
            concurrent.futures.wait([self._writing])

    def _write(self, step: int, host: HostTree, metrics: Any, notes: Any) -> None:
        best = self._rule.best or DEFAULT_BEST
        written = write_step(self.folder, step, host, metrics, notes, best)
        self._damaged.pop(written, None)
        retain(self.folder, written, self._rule, self._damaged)


_PENDING: set[Checkpoints] = set()  # with a running write, or an error not raised yet


def _finish_writes() -> None:
    for checkpoints in list(_PENDING):
        try:
            checkpoints.wait()
        except (CheckpointError, ImportError) as error:
            warn(f"a checkpoint was not written: {error}")


# At exit Python first makes every executor refuse work, also those that orbax writes
# with, then joins threads, then runs `atexit`. Only this hook comes earlier: hooks run
# in reverse order, and the import of ThreadPoolExecutor registered the refusal.
threading._register_atexit(_finish_writes)  # pyright: ignore

"""Checkpoints of a run: written in the background, a few of them kept."""

import concurrent.futures
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.reading as reading
import fngrad.numerics as numerics
from fngrad.checkpoint.device_transfer import HostTree, take
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.reading import Saved
from fngrad.checkpoint.writing import DEFAULT_BEST, Retention, retain, write_step
from fngrad.files.local_paths import check_local


class Checkpoints:
    """The checkpoints of a run, in a folder.

    `save` copies the tree to the host and returns; a thread writes it. At most one
    write is under way. A failed write is raised by what is called next: `save`,
    `wait` or `close`. The end of the program waits for a write.

    Args:
        folder: made with the first save.
        keep: how many of the newest stay, >= 1; damaged ones do not count.
        best: a metric and ``"min"`` or ``"max"``; the best by it stays too.

    Raises:
        ValueError: an argument out of range.

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
        self.folder = Path(folder).absolute()  # wherever the process goes
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
        """Copy a tree to the host, and let it be written in the background.

        Args:
            step: what it is called, >= 0.
            a: a tree of arrays; they may be donated as soon as this returns. One that
                `fngrad.checkpoint.device_transfer.take` made is not copied again.
            metrics: numbers by name, among them what ``best`` asks for.
            notes: what JSON can hold.

        Raises:
            CheckpointError: the previous write failed; or the tree cannot be saved; or
                no thread can be started.
            ValueError: ``step`` is no int >= 0.
            TypeError: a metric that is no number, or notes that JSON cannot hold.
            ImportError: orbax-checkpoint was missing for the previous write.
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
        """Return when all is on disk.

        Raises:
            CheckpointError: the write failed.
            ImportError: orbax-checkpoint is missing.
        """
        self._join()
        _PENDING.discard(self)
        written, self._writing = self._writing, None
        if written is not None:
            written.result()

    def close(self) -> None:
        """Wait; then nothing is under way, whatever was raised.

        Raises:
            CheckpointError, ImportError: as `wait`.
        """
        self.wait()

    @property
    def is_writing(self) -> bool:
        """Whether a write is under way."""
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
        """The steps that were read and found damaged, and in what way."""
        return dict(self._damaged)

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, ascending."""
        self._join()
        return reading.steps(self.folder)

    def newest(self) -> Saved | None:
        """Return the newest step that is undamaged, with a warning for damaged ones."""
        self._join()
        return reading.first_good(
            lambda: reading.newest_paths(self.folder), self._damaged
        )

    def best(self) -> Saved | None:
        """Return the best undamaged step by the metric.

        Raises:
            ValueError: the checkpoints have no metric to be best by.
        """
        best = self._rule.best
        if best is None:
            raise ValueError("need best=(metric, mode), got None")
        self._join()
        return reading.first_good(
            lambda: reading.best_paths(self.folder, best), self._damaged
        )

    def at(self, step: int) -> Saved | None:
        """Return what was saved at a step, if it is there and undamaged."""
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


_PENDING: set[Checkpoints] = set()  # a write under way, or a failure not yet raised


def _finish_writes() -> None:
    for checkpoints in list(_PENDING):
        try:
            checkpoints.wait()
        except (CheckpointError, ImportError) as error:
            warnings.warn(f"a checkpoint was not written: {error}", stacklevel=1)


# At exit the interpreter first refuses new work for every executor, orbax's among them,
# then joins threads, then runs `atexit`. Only this hook comes earlier: hooks run last
# registered first, and the import of ThreadPoolExecutor registered the refusal.
threading._register_atexit(_finish_writes)  # pyright: ignore

"""Where and how often a run is saved, and how it goes on from there."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import fngrad.numerics as numerics
from fngrad.files.local_paths import check_local
from fngrad.fitting.checks import check_option
from fngrad.metrics.directions import Directed, directed
from fngrad.programs.optional_imports import import_extra

USUAL_BEST: Directed = ("val/loss", "min")
USUAL_MINUTES = 10.0


class SaveRules(NamedTuple):
    """The arguments of `fngrad.fit` that tell of checkpoints."""

    folder: Path | None  # None: nothing is saved
    resume: Literal["auto", "never", "must"]
    every: int | None  # steps
    minutes: float | None
    keep: int  # the newest so many stay
    best: Any  # and the best by this: as given; in a run (metric, mode) or None
    on_error: Literal["raise", "warn"]

    def check(self, *, evaluates: bool) -> None:
        """Raise where an argument is out of range, or needs another.

        Args:
            evaluates: whether there will be evaluations to choose the best from.

        Raises:
            ValueError: it is.
            ImportError: something is to be saved, and orbax-checkpoint is missing.
        """
        check_option("resume", self.resume, ("auto", "never", "must"))
        check_option("on_save_error", self.on_error, ("raise", "warn"))
        if self.every is not None:
            numerics.check_count("save_every", self.every, 1)
        numerics.check_count("keep", self.keep, 1)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"need save_minutes > 0, got {self.minutes!r}")
        best = self.best
        if not (best is None or isinstance(best, str)):
            directed(best, "keep_best")
        if best not in (None, USUAL_BEST) and not evaluates:
            raise ValueError(f"need metric_fn and eval_data for keep_best={best!r}")
        is_asked = self.every is not None or self.minutes is not None
        if self.folder is None and (is_asked or self.resume == "must"):
            raise ValueError(
                "need checkpoint_dir, or run_dir with save_every or save_minutes, got "
                f"save_every={self.every} save_minutes={self.minutes} "
                f"resume={self.resume!r}"
            )
        if self.folder is not None:
            # Not with the first save: its modules add settings to newer JAX, for each
            # of which all that was compiled before is compiled again.
            import_extra("orbax.checkpoint", "checkpoint", "orbax-checkpoint")

    def check_best(self) -> None:
        """Raise if `keep_best` is not the default and nothing is saved.

        Raises:
            ValueError: if no folder is given.
        """
        if self.best not in (None, USUAL_BEST) and self.folder is None:
            raise ValueError(
                f"need checkpoints for keep_best={self.best!r}, got none: give "
                "checkpoint_dir, or run_dir with save_every or save_minutes"
            )

    @property
    def seconds(self) -> float | None:
        """After how many seconds to save, if the clock is to decide."""
        if self.minutes is None and self.every is None:
            return 60 * USUAL_MINUTES
        return None if self.minutes is None else 60 * self.minutes


def checkpoint_folder(
    checkpoint_dir: Any, run_dir: Any, save_every: Any, save_minutes: Any
) -> Path | None:
    """Return the folder that these arguments of `fngrad.fit` mean, if any.

    Raises:
        ValueError: one of them is a URL.
    """
    check_local("run_dir", run_dir)
    check_local("checkpoint_dir", checkpoint_dir)
    if checkpoint_dir is not None:
        return Path(checkpoint_dir).absolute()
    is_asked = save_every is not None or save_minutes is not None
    return (
        Path(run_dir).absolute() / "checkpoints"
        if run_dir is not None and is_asked
        else None
    )

"""A trace of some steps of a run, and a table of where their time went."""

from pathlib import Path

import jax

import fngrad.numerics as numerics
import fngrad.programs.text_tables as text_tables
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.local_paths import check_local, not_writable
from fngrad.fitting.hooks import Hook, RunView
from fngrad.fitting.loops import Advance, Carry
from fngrad.programs.caller_warnings import warn

TABLE = "time.txt"
_ROWS = {  # parts of `fngrad.logging.time_spent` by row
    "input": ("data",),
    "compile": ("tracing", "compiling"),
    "evaluation": ("evaluating",),
    "saving": ("saving",),
    "other": ("other",),
}


def profile(first: int, last: int, folder: str | Path | None = None) -> Hook:
    """Write a trace of the steps after ``first`` up to ``last``, and a table of time.

    The trace is for XProf (``tensorboard --logdir FOLDER`` with its plugin, or
    ``xprof FOLDER``) and for Perfetto (``perfetto_trace.json.gz``). Each step is
    annotated with its number. These steps run one by one and are waited for; their bits
    are those of any other run.

    The table, printed to stderr and written to ``time.txt``, has one row per part:
    ``host`` is the time until a step was dispatched, ``device`` the time until its
    result was there, ``input`` waiting for batches that come from the host, ``compile``
    tracing and compiling. A device that computes inside the dispatch, as a CPU may with
    small programs, counts as ``host``.

    Args:
        first: how many steps are made before the trace begins, >= 0. The steps that
            compile are best left out.
        last: the step after which it ends, > first.
        folder: for both; by default ``profile`` in the run folder.

    Returns:
        A callback of `fngrad.fit`. A run that resumes after ``first`` traces from
        there. A run that ends before a step was traced ends with a warning. Of several
        processes the first one traces itself.

    Raises:
        ValueError: if the steps are out of range or the folder is a URL; when the run
            begins, if there is neither a folder nor a ``run_dir``.
        OSError: when the run begins, if the folder cannot be made.

    Example:
        >>> import fngrad as fg
        >>> fg.callbacks.profile(100, 110)
        profile(100, 110)
    """
    first = numerics.check_count("first", first)
    last = numerics.check_count("last", last, first + 1)
    if folder is not None:
        check_local("folder", folder)
    trace = _Trace(first, last, None if folder is None else Path(folder).absolute())
    return Hook.of(f"profile({first}, {last})", trace)


class _Trace:
    def __init__(self, first: int, last: int, folder: Path | None):
        self._first, self._last, self._given = first, last, folder
        self._folder = Path()
        self._run: RunView | None = None
        self._now = 0
        self._began_at: int | None = None  # while it is written: the step
        self._has_traced = False  # or an earlier call has
        self._parts: dict[str, float] = {}  # seconds when it began
        self._host = self._device = 0.0
        self._made = 0  # steps since then

    def check(self, run: RunView) -> None:
        if self._given is None and run.folder is None:
            raise ValueError(
                f"need run_dir for profile({self._first}, {self._last}), or a folder: "
                f"profile({self._first}, {self._last}, folder)"
            )
        error = not_writable(self._where(run))
        if error is not None:
            raise error

    def _where(self, run: RunView) -> Path:
        return self._given or Path(run.folder or "", "profile")

    def begin(self, run: RunView) -> None:
        self._run = run
        if run.is_first:
            self._folder = self._where(run)
            self._folder.mkdir(parents=True, exist_ok=True)
        self._now, self._has_traced = run.first, run.first >= self._last

    def before(self, now: int) -> int | None:
        self._now = now
        if now < self._first:
            return self._first
        if now >= self._last:
            return None
        if self._began_at is None and self._run is not None:
            if self._run.is_first:
                jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._began_at, self._has_traced = now, True
            self._parts = self._run.spent.seconds()
            self._host = self._device = 0.0
            self._made = 0
        return now + 1

    def around(self, advance: Advance) -> Advance:
        def annotated(carry: Carry, length: int) -> tuple[Carry, int]:
            if self._began_at is None or self._run is None:
                return advance(carry, length)
            before = self._run.spent.seconds()
            with jax.profiler.StepTraceAnnotation("train", step_num=self._now):
                made = advance(carry, length)
                dispatched = self._run.spent.seconds()
                jax.block_until_ready(made[0])
            self._made += made[1]
            self._host += dispatched["stepping"] - before["stepping"]
            done = self._run.spent.seconds()
            self._device += done["stepping"] - dispatched["stepping"]
            return made

        return annotated

    def after(self, now: int) -> None:
        self._now = now
        if self._began_at is not None and now >= self._last:
            self.stop()

    def end(self) -> None:
        self.stop()
        if self._run is not None and not self._has_traced:
            warn(
                f"profile({self._first}, {self._last}) traced nothing: it begins after "
                f"step {self._first}, and the run ended at step {self._now}"
            )

    def stop(self) -> None:
        if self._began_at is None or self._run is None:
            return
        parts = self._run.spent.seconds()
        self._began_at = None
        if not self._run.is_first:
            return
        jax.profiler.stop_trace()
        text = self._table(max(self._made, 1), parts)
        write_atomically(self._folder / TABLE, f"{text}\n")
        self._run.print(f"fit: the trace is in {self._folder}\n{text}")

    def _table(self, steps: int, parts: dict[str, float]) -> str:
        spent = {name: parts[name] - self._parts[name] for name in parts}
        seconds = {"device": self._device, "host": self._host}
        for row, names in _ROWS.items():
            seconds[row] = sum(spent[name] for name in names)
        seconds["host"] += spent["stepping"] - self._host - self._device
        whole = sum(seconds.values()) or 1.0
        rows = [["part", "ms per step", "share"]]
        rows += [
            [name, f"{x / steps * 1e3:.3f}", f"{100 * x / whole:.1f} %"]
            for name, x in seconds.items()
        ]
        total = [f"all, {steps} steps", f"{whole / steps * 1e3:.3f}", "100.0 %"]
        return text_tables.table([*rows, total], left=1)

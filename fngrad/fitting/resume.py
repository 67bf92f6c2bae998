"""Where a call begins, and which checkpoints it refuses to resume from.

A call begins from the caller's state, or resumes from the newest checkpoint of an
earlier call. The run's *identity* (config, data, batch, key) must be that of the
checkpoint.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax

import fngrad.tree as tree
from fngrad.checkpoint import CheckpointError, Checkpoints, Saved, rebuild
from fngrad.files.json_values import from_json_number, to_json
from fngrad.fitting.best import PART, read_best
from fngrad.fitting.early_stopping import Patience, Values
from fngrad.fitting.inputs import Feed
from fngrad.fitting.intervals import ENDLESS, Stops
from fngrad.fitting.program_changes import TRAINS_ANEW
from fngrad.fitting.program_changes import check as check_programs
from fngrad.fitting.validation import Evaluation
from fngrad.logging.differences import check_unchanged
from fngrad.logging.history import History
from fngrad.logging.progress import print_to_stderr
from fngrad.programs.caller_warnings import warn
from fngrad.training import TrainState, snapshot

Resume: TypeAlias = Literal["auto", "never", "must", "overwrite"]

_WAYS_ON = (
    'resume="overwrite" moves the old run aside and starts a new one; what '
    "fngrad.checkpoint.restore reads is for a run in another folder, and with "
    "partial=True it takes what fits of another optimizer or model"
)


class PendingReport(NamedTuple):
    """How far the host has come at a step: it evaluates, logs, then calls back.

    An exception may end the run in between. The checkpoint that is written then holds
    this, so that the next call does the rest and repeats nothing.
    """

    evaluates: bool
    values: Values | None = None  # what loggers and callbacks get; None: not measured
    is_logged: bool = False
    called: int = 0  # how many callbacks have returned

    @classmethod
    def of(cls, notes: dict[str, Any] | None) -> "PendingReport | None":
        """Return the report in a checkpoint's notes; None if nothing is left to do."""
        if notes is None:
            return None
        report = cls(**notes)
        if report.values is None:
            return report
        values = {name: from_json_number(x) for name, x in report.values.items()}
        return report._replace(values=values)


class Start(NamedTuple):
    """Where a call begins: the caller's state, or what an earlier call saved."""

    state: TrainState  # a copy
    history: History
    identity: dict[str, Any]  # what must be unchanged to resume the run
    notes: dict[str, Any]  # of the checkpoint; empty without one
    programs: dict[str, Any] | None = None  # see `fngrad.fitting.program_changes`

    @property
    def step(self) -> int:
        """How many steps have been made."""
        return int(self.state.step)

    @property
    def report(self) -> PendingReport | None:
        """What is left to do at the step where the call begins."""
        return PendingReport.of(self.notes.get("look"))

    @property
    def logged(self) -> int:
        """The last step whose records are kept; later ones will be logged again."""
        is_unlogged = self.report and not self.report.is_logged
        return self.step - 1 if is_unlogged else self.step

    def logging_at(
        self, stops: Stops, log_every: int | None, has_listeners: bool
    ) -> Stops:
        """Return when to log: as given, as the checkpoint has it, or by default.

        Callbacks may change the state, so a resumed run calls them at the same steps.
        A run that is extended has another default.

        Args:
            stops: with the default.
            log_every: of `fngrad.fit`.
            has_listeners: whether there are loggers or callbacks.
        """
        if log_every is not None:
            return stops
        saved = self.notes.get("log_every", ENDLESS)
        until = self.notes.get("log_until")
        if saved != ENDLESS and (until is None or stops.last <= until):
            return stops._replace(log_every=saved, log_until=until)
        if has_listeners:
            return stops._replace(log_until=stops.last)
        return stops._replace(log_every=ENDLESS)


def identity(config: Any, feed: Feed, state: TrainState) -> dict[str, Any]:
    """Return what must be unchanged to resume a run, in JSON's types.

    Args:
        config: the caller's; ``None`` means an empty one.
        feed: the data.
        state: the caller's.

    Raises:
        TypeError: if the config holds what JSON cannot.
    """
    batch = tree.leaf_paths(feed.abstract_batch(state.step))
    return {
        "config": to_json({} if config is None else config, "config"),
        "data": {
            "fingerprint": feed.fingerprint,
            "batch_size": getattr(feed.data, "batch_size", None),
            "batch": {path: f"{x.dtype}{list(x.shape)}" for path, x in batch.items()},
        },
        "key": jax.random.key_data(state.key).tolist(),
    }


def begin_or_resume(
    checkpoints: Checkpoints | None,
    resume: Resume,
    state: TrainState,
    feed: Feed,
    config: Any,
    programs: dict[str, Any],
) -> Start:
    """Return where the call begins.

    Args:
        checkpoints: the folder, open; None if the run is not saved.
        resume: see `fngrad.fit`.
        state: the caller's; a checkpoint must have its structure.
        feed: the data.
        config: the caller's.
        programs: of the run.

    Raises:
        FileNotFoundError: if ``resume="must"`` and there is no checkpoint.
        CheckpointError: if all checkpoints are damaged.
        ValueError: if ``resume="never"`` and there is a checkpoint, if a checkpoint is
            of another run, or if the state is of a later step; or as `check_programs`.
    """
    if checkpoints is None:
        return Start(snapshot(state), History(), {}, {})
    if feed.forgets and resume == "must":
        raise ValueError(
            'need a dataset or a function of the step for resume="must", got an '
            "iterable: its batches cannot be asked for again"
        )
    if resume == "never":
        _refuse_any(checkpoints)
    wanted = identity(config, feed, state)
    saved = checkpoints.newest({"state": state, PART: state})
    if saved is not None:
        start = _resumed(checkpoints, saved, state, feed, wanted)
        where, known = f"{str(checkpoints.folder)!r}", saved.notes.get("programs")
        may_change = resume != "must"
        check_programs(where, known, programs, start.state, may_change=may_change)
        return start._replace(programs=programs)
    _refuse_damaged(checkpoints)
    if resume == "must":
        raise FileNotFoundError(
            f'need a checkpoint in {str(checkpoints.folder)!r} for resume="must", got '
            'none: check the path, or begin a new run with resume="auto"'
        )
    return Start(snapshot(state), History(), wanted, {}, programs)


def _resumed(
    checkpoints: Checkpoints,
    saved: Saved,
    state: TrainState,
    feed: Feed,
    wanted: dict[str, Any],
) -> Start:
    where = f"{str(checkpoints.folder)!r}"
    if not saved.notes or "identity" not in saved.notes:
        raise ValueError(
            f"need a folder that fit wrote its checkpoints to, got {where}, written by "
            "fngrad.checkpoint.save; restore that one and use another folder"
        )
    check_unchanged(f"run in {where}", saved.notes["identity"], wanted)
    if int(state.step) > saved.step:
        raise ValueError(
            f"need a state that is not beyond the checkpoint of step {saved.step} in "
            f"{where}, or another folder, got the state of step {int(state.step)}"
        )
    if not feed.resume(saved.notes.get("iterator")):
        warn(
            f"the run continues at step {saved.step}, but the iterable's batches are "
            "taken from its beginning"
        )
    notes = saved.notes["history"]
    resumed = [*notes.get("resumed", []), saved.step]
    history = History.from_leaf_paths(
        saved.under("history"), {**notes, "resumed": resumed}
    )
    rebuilt = rebuild(saved, state, "state", way_out=_WAYS_ON)
    history.best = read_best(saved, checkpoints, state)
    return Start(rebuilt, history, wanted, saved.notes)


def _refuse_any(checkpoints: Checkpoints) -> None:
    steps = checkpoints.steps()
    if steps:
        raise ValueError(
            f'need a folder without checkpoints for resume="never", got '
            f"{str(checkpoints.folder)!r} with one of step {steps[-1]}: "
            'fngrad.logging.new_run("runs") names a fresh run folder, '
            'resume="overwrite" moves the old run aside, resume="auto" continues it'
        )


def _refuse_damaged(checkpoints: Checkpoints) -> None:
    """Raise where a new run would overwrite damaged checkpoints.

    Their content may still be recovered.
    """
    damaged = checkpoints.damaged
    if damaged:
        newest, reason = next(iter(damaged.items()))
        raise CheckpointError(
            f"need an undamaged checkpoint in {str(checkpoints.folder)!r} to resume "
            f"from, got {len(damaged)} damaged, the newest {newest.name!r}: {reason}; "
            'resume="overwrite" moves them aside and starts a new run; nothing was '
            "changed"
        )


def stopped_before(
    start: Start, stops: Stops, evaluation: Evaluation | None
) -> str | None:
    """Return why the call has nothing to do, if so, and print it to stderr."""
    if start.report and stops.first <= stops.last:
        return None
    anew = f"; {TRAINS_ANEW}" if start.notes else ""
    if stops.first >= stops.last:
        print_to_stderr(
            f"fit: nothing to do, the state is at step {stops.first} and the run "
            f"ends at step {stops.last}: num_steps and num_epochs count from step 0; "
            'raise them to train on; to fine-tune, restore only part="params"' + anew
        )
        return "completed"
    rule = evaluation.early_stopping if evaluation else None
    patience = Patience(rule, start.notes.get("patience"))
    if patience.is_over:
        print_to_stderr(
            f"fit: nothing to do, early stopping ends the run at step {stops.first}: "
            f"{patience.state}; more patience trains on{anew}"
        )
        return "early_stopping"
    return None


def print_resumed(start: Start, stops: Stops, folder: Any) -> None:
    """Print to stderr that a run resumes, at which step and from where."""
    if start.notes:
        total = "" if stops.last == ENDLESS else f" of {stops.last}"
        print_to_stderr(f"fit: resumes at step {start.step}{total} from {folder}")

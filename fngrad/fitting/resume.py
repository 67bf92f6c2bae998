"""Where a call begins: anew, or where an earlier call left its last checkpoint."""

import warnings
from typing import Any, NamedTuple

import jax

import fngrad.tree as tree
from fngrad.checkpoint import CheckpointError, Checkpoints, Saved, rebuild
from fngrad.files.json_values import to_json
from fngrad.fitting.agenda import ENDLESS, Agenda
from fngrad.fitting.failures import Look
from fngrad.fitting.feeds import Feed
from fngrad.fitting.save_rules import SaveRules
from fngrad.logging.differences import check_unchanged
from fngrad.logging.history import History
from fngrad.logging.progress import say
from fngrad.training import TrainState, snapshot


class Past(NamedTuple):
    """What an earlier call left; without one, the caller's state and nothing else."""

    state: TrainState  # in memory of its own
    history: History
    identity: dict[str, Any]  # what must be unchanged for the run to go on
    notes: dict[str, Any]  # of the checkpoint; empty without one

    @property
    def step(self) -> int:
        """How many steps have been made."""
        return int(self.state.step)

    @property
    def best(self) -> dict[str, Any] | None:
        """What ``keep_best`` has seen."""
        return self.notes.get("best")

    @property
    def patience(self) -> dict[str, Any] | None:
        """How far early stopping had waited."""
        return self.notes.get("patience")

    @property
    def look(self) -> Look | None:
        """What is left to do at the step where the call begins."""
        return Look.of(self.notes.get("look"))

    @property
    def logged(self) -> int:
        """The step up to which what was logged stands."""
        return self.step - 1 if self.look and not self.look.is_logged else self.step

    def log_every(self, asked: int | None, is_heard: bool) -> int | None:
        """Return after how many steps to log; what was in force goes on.

        Callbacks may change the state, so a run that is resumed must call them at the
        same steps.

        Args:
            asked: what the caller asks for, if anything.
            is_heard: whether there are loggers or callbacks.
        """
        if asked is not None:
            return asked
        in_force = self.notes.get("log_every", ENDLESS)
        if in_force != ENDLESS:
            return in_force
        return None if is_heard else ENDLESS


def identity(config: Any, feed: Feed, state: TrainState) -> dict[str, Any]:
    """Return what must be unchanged for a run to go on, in JSON's types.

    Args:
        config: the caller's; ``None`` is the empty one.
        feed: the data.
        state: the caller's.

    Raises:
        TypeError: the config holds what JSON cannot.
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
    rules: SaveRules,
    checkpoints: Checkpoints | None,
    state: TrainState,
    feed: Feed,
    config: Any,
) -> Past:
    """Return where the call begins.

    Args:
        rules: how the run is saved.
        checkpoints: what is in the folder; None if the run is not saved.
        state: the caller's; it gives the structure that a checkpoint must have.
        feed: the data.
        config: the caller's.

    Raises:
        FileNotFoundError: ``resume="must"`` and no checkpoint.
        CheckpointError: checkpoints, all of them damaged.
        ValueError: ``resume="never"`` and a checkpoint; a checkpoint of another run;
            a state that has come further.
    """
    if checkpoints is None:
        return Past(snapshot(state), History(), {}, {})
    if feed.is_iterable and rules.resume == "must":
        raise ValueError(
            'need a dataset or a function of the step for resume="must", got an '
            "iterable: its batches cannot be asked for again"
        )
    if rules.resume == "never":
        _refuse_any(rules, checkpoints)
    wanted = identity(config, feed, state)
    saved = checkpoints.newest()
    if saved is None:
        _refuse_damaged(rules, checkpoints)
        if rules.resume == "must":
            raise FileNotFoundError(
                f'need a checkpoint in {str(rules.folder)!r} for resume="must", got '
                'none: check the path, or begin a new run with resume="auto"'
            )
        return Past(snapshot(state), History(), wanted, {})
    return _past(rules, saved, state, feed, wanted)


def _past(
    rules: SaveRules,
    saved: Saved,
    state: TrainState,
    feed: Feed,
    wanted: dict[str, Any],
) -> Past:
    where = f"{str(rules.folder)!r}"
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
    if feed.is_iterable:
        warnings.warn(
            f"the run goes on at step {saved.step}, but the iterable's batches are "
            "taken from its beginning",
            stacklevel=4,
        )
    notes = saved.notes["history"]
    resumed = [*notes.get("resumed", []), saved.step]
    history = History.from_leaf_paths(
        saved.under("history"), {**notes, "resumed": resumed}
    )
    return Past(rebuild(saved, state, "state"), history, wanted, saved.notes)


def _refuse_any(rules: SaveRules, checkpoints: Checkpoints) -> None:
    steps = checkpoints.steps()
    if steps:
        raise ValueError(
            f'need a folder without checkpoints for resume="never", got '
            f"{str(rules.folder)!r} with one of step {steps[-1]}: take another folder, "
            'remove this one, or go on with resume="auto"'
        )


def _refuse_damaged(rules: SaveRules, checkpoints: Checkpoints) -> None:
    """Raise where beginning anew would put an end to what may still be rescued."""
    damaged = checkpoints.damaged
    if damaged:
        newest, reason = next(iter(damaged.items()))
        raise CheckpointError(
            f"need a whole checkpoint in {str(rules.folder)!r} to go on from, got "
            f"{len(damaged)} that are damaged, the newest {newest.name!r}: {reason}; "
            "to start anew, move that folder away or take another; nothing in it was "
            "changed"
        )


def say_resumed(past: Past, agenda: Agenda, rules: SaveRules) -> None:
    """Tell on stderr that a run goes on, and from where."""
    if not past.notes:
        return
    total = "" if agenda.last == ENDLESS else f" of {agenda.last}"
    say(f"fit: resumes at step {past.step}{total} from {rules.folder}")

"""What a run does about numbers that are not finite."""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.tree as tree
from fngrad.fitting.checks import check_hashable, check_option
from fngrad.fitting.feeds import Feed
from fngrad.fitting.interrupts import Interruption
from fngrad.logging.history import History
from fngrad.logging.progress import say
from fngrad.training import Step, TrainState
from fngrad.transforms.tunable_hyperparameters import (
    hyperparameters,
    map_hyperparameters,
)
from fngrad.types import Path

if TYPE_CHECKING:  # imported when there is something to examine
    from fngrad.postmortem import Autopsy

Policy = Literal["raise", "skip", "rollback", "ignore"]
MAX_SKIPS = 10  # in a row
MAX_ROLLBACKS = 10  # without coming further than before
MAX_REPLAY = 1000  # steps that are made again to find out why
MAX_SECONDS = 300  # for finding out why
_CAUSES = (
    "Causes: NaN in the data, labels out of range, a learning rate too high; "
    'on_nonfinite="ignore" records it and goes on, "skip" leaves the batch behind, '
    '"rollback" goes back and lowers the learning rate'
)


class NonFiniteError(FloatingPointError):
    """The loss or the gradient of a step is not finite."""

    def __init__(
        self,
        message: str,
        step: int,
        history: History,
        autopsy: "Autopsy | None" = None,
    ):
        super().__init__(message)
        self.step = step  # counts from 1
        self.history = history  # to the end of the chunk with that step
        self.autopsy = autopsy  # what went bad, where that could be found out
        self.state: TrainState | None = None  # at the end of the chunk, from `fit`


class Guard(NamedTuple):
    """What a run does about numbers that are not finite, and what it needs for it."""

    policy: Policy
    factor: float  # of the learning rate, at a rollback
    step: Step
    state: TrainState  # the caller's, where nothing nearer is known
    feed: Feed

    def first_bad(self, history: History, steps: np.ndarray) -> int | None:
        """Return the first step, counted from 1, that the run cannot go on from.

        Args:
            history: with the records of these steps, and of those before.
            steps: the new ones, counted from 1.
        """
        if self.policy == "ignore":
            return None
        if self.policy == "skip":
            skipped = history["skipped"][-len(steps) - MAX_SKIPS :]
            last = _end_of_run(skipped, MAX_SKIPS + 1)
            return None if last is None else int(steps[-1]) + 1 - len(skipped) + last
        bad = np.flatnonzero(~_is_finite(history, len(steps)))
        return int(steps[bad[0]]) if bad.size else None


def check_policy(
    policy: Policy, factor: float, state: TrainState, feed: Feed, is_saved: bool
) -> None:
    """Raise unless the policy is one, and has what it needs.

    Raises:
        ValueError: it has not.
    """
    check_option("on_nonfinite", policy, ("raise", "skip", "rollback", "ignore"))
    if not 0 < factor < 1:
        raise ValueError(f"need 0 < rollback_factor < 1, got {factor!r}")
    if policy != "rollback":
        return
    if not is_saved:
        raise ValueError(
            "need checkpoint_dir, or run_dir with save_every, for "
            'on_nonfinite="rollback": a checkpoint is what it goes back to'
        )
    if feed.is_iterable:
        raise ValueError(
            'need a dataset or a function of the step for on_nonfinite="rollback", got '
            "an iterable: its batches cannot be asked for again"
        )
    if not learning_rates(state):
        raise ValueError(
            'need a learning rate in the state for on_nonfinite="rollback", as '
            "fngrad.tunable(fngrad.adam, learning_rate=1e-3) keeps it, got an "
            f"optimizer with the leaves {list(tree.leaf_paths(state.opt_state))}"
        )


def skipping(step: Step) -> Step:
    """Return `skip_bad_steps` of a step: the same one each time, compiled once.

    Raises:
        TypeError: the step cannot be hashed.
    """
    check_hashable(step)
    return _skipping(step)


@functools.lru_cache(maxsize=8)
def _skipping(step: Step) -> Step:
    from fngrad.steps import skip_bad_steps

    return skip_bad_steps(step)


def _is_finite(history: History, count: int) -> np.ndarray:
    if "is_finite" in history:
        return history["is_finite"][-count:].astype(bool)
    if "loss" in history:  # a step that is not from make_step
        return np.isfinite(history["loss"][-count:])
    return np.ones(count, bool)


def _end_of_run(skipped: np.ndarray, length: int) -> int | None:
    """Return the index at which so many in a row were skipped, if there is one."""
    count = 0
    for index, was_skipped in enumerate(skipped):
        count = count + 1 if was_skipped else 0
        if count == length:
            return index
    return None


def bad_leaf(state: TrainState, first: TrainState) -> Path | None:
    """Return the path of a leaf that no checkpoint may hold, if there is one.

    Parameters must be finite. What else is in a state may be infinite, such as the
    best loss so far, but not NaN. Entries that were not finite in the first state, such
    as those of a mask among the parameters, may stay so.
    """
    doubtful = [path for path, sound in _sound_leaves(state).items() if not sound]
    now, before = tree.leaf_paths(state), tree.leaf_paths(first)
    for path in doubtful:
        was_finite = np.isfinite(np.asarray(before[path]))
        if np.any(~np.asarray(_sound_entries(path, now[path])) & was_finite):
            return path
    return None


@jax.jit
def _sound_leaves(state: TrainState) -> dict[Path, jax.Array]:
    return {
        path: jnp.all(_sound_entries(path, leaf))
        for path, leaf in tree.leaf_paths(state).items()
        if tree.is_float(leaf)
    }


def _sound_entries(path: Path, x: jax.Array) -> jax.Array:
    is_param = path.partition("/")[0] == "params"
    return jnp.isfinite(x) if is_param else ~jnp.isnan(x)


def learning_rates(state: TrainState) -> dict[Path, float]:
    """Return the learning rates that `fngrad.tunable` keeps in a state, by path."""
    kept = hyperparameters(state)
    return {path: float(x) for path, name, x in kept if name == "learning_rate"}


def lower_learning_rates(state: TrainState, factor: float) -> TrainState:
    """Return the state with its learning rates times a factor."""

    def lower(name: str, x: jax.Array) -> jax.Array:
        return (x * factor).astype(x.dtype) if name == "learning_rate" else x

    return map_hyperparameters(lower, state)


def has_come_no_further(rollbacks: list[dict[str, Any]], step: int) -> bool:
    """Say whether a rollback from a bad step is one too many.

    Args:
        rollbacks: those before, as the history notes them.
        step: the step that is bad now, counted from 1.
    """
    furthest = 0
    waited = 0
    for bad in [*(r["step"] for r in rollbacks), step]:
        waited = 0 if bad > furthest else waited + 1
        furthest = max(furthest, bad)
    return waited >= MAX_ROLLBACKS


def error_of(
    step: int,
    history: History,
    guard: Guard,
    nearest: Callable[[], TrainState],
    interrupted: Interruption,
    reason: str = "",
) -> NonFiniteError:
    """Return the error that ends a run, with its autopsy.

    Args:
        step: the bad one, counted from 1.
        history: of the run, which holds that step.
        guard: of the run.
        nearest: gives the state that the autopsy begins with.
        interrupted: ends the autopsy once it is set.
        reason: why the run goes no further, where its policy would.
    """
    at = {name: _record(history, name, step) for name in history}
    shown = ", ".join(f"{name}={x:.6g}" for name, x in at.items() if x is not None)
    found, words = _examine(step, guard, nearest, interrupted)
    message = (
        f"need a finite loss and gradient, got step {step} with {shown}. {reason}"
        f"{_CAUSES}\n{words}"
    )
    return NonFiniteError(message, step, history, found)


def _record(history: History, name: str, step: int) -> float | None:
    rows = np.flatnonzero(history.steps(name) == step)
    values = history[name]
    return float(values[rows[0]]) if rows.size and values.ndim == 1 else None


def _examine(
    step: int,
    guard: Guard,
    nearest: Callable[[], TrainState],
    interrupted: Interruption,
) -> "tuple[Autopsy | None, str]":
    """Return the autopsy, or why there is none."""
    import fngrad.postmortem as postmortem

    advice = (
        "fngrad.autopsy(step, state, data) says what went bad, from a state of before"
    )
    if guard.feed.is_iterable:
        return None, f"{advice}, with data that can be asked for again"
    # Whatever fails here must not hide the error that is reported.
    try:
        state = nearest()
        if step - int(state.step) > MAX_REPLAY:
            return None, f"{advice}; the nearest one here is of step {int(state.step)}"
        say(f"fit: not finite at step {step}, looks for the cause")
        check = _limit(interrupted)
        if guard.policy == "skip":
            first = step - MAX_SKIPS  # an earlier one that was skipped did no harm
            state = _advance(guard, state, first - 1, check)
            plain = guard.step.__wrapped__  # type: ignore[attr-defined]
            found = postmortem.autopsy(
                plain, state, guard.feed.data, at=first, check=check
            )
        else:
            found = postmortem.autopsy(
                guard.step, state, guard.feed.data, at=step, check=check
            )
        return found, str(found)
    except Exception as error:
        return None, f"{advice}; here it found nothing: {error}"


def _limit(interrupted: Interruption) -> Callable[[], None]:
    """Return what raises when the search for a cause takes too long."""
    end = time.monotonic() + MAX_SECONDS

    def check() -> None:
        if interrupted.is_set():
            raise TimeoutError("interrupted")
        if time.monotonic() > end:
            raise TimeoutError(f"it takes more than {MAX_SECONDS} s")

    return check


def _advance(
    guard: Guard, state: TrainState, goal: int, check: Callable[[], None]
) -> TrainState:
    from fngrad.postmortem.replay import reader

    advance, batch_at = jax.jit(guard.step), reader(guard.feed.data)
    while int(state.step) < goal:
        check()
        state, _ = advance(state, batch_at(state.step))
    return state

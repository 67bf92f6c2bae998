"""What a run does about a NaN or an infinity: ``on_nonfinite``, autopsy, rollback."""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.tree as tree
from fngrad.fitting.coordination import Coordination, Status
from fngrad.fitting.inputs import Feed, check_hashable, check_option
from fngrad.fitting.interrupts import Interruption
from fngrad.logging.history import History
from fngrad.logging.progress import print_to_stderr
from fngrad.sharding.placement import fetched
from fngrad.training import Step, TrainState
from fngrad.training.divergence import bad_steps
from fngrad.transforms.tunable_hyperparameters import (
    hyperparameters,
    map_hyperparameters,
)
from fngrad.types import Path

if TYPE_CHECKING:  # imported when there is a step to examine
    from fngrad.postmortem import Autopsy

Policy = Literal["raise", "skip", "rollback", "ignore"]
MAX_SKIPS = 10  # in a row
MAX_ROLLBACKS = 10  # in a row without passing the furthest bad step
MAX_REPLAY = 1000  # steps that an autopsy makes again
MAX_SECONDS = 300  # for an autopsy
_CAUSES = (
    "Common causes are NaN in the data, labels out of range and a learning rate that "
    'is too high. on_nonfinite="ignore" records such steps and continues, "skip" drops '
    'their batches, "rollback" returns to a checkpoint with a lower learning rate'
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
        self.autopsy = autopsy  # of the step; None if the cause was not found
        self.state: TrainState | None = None  # at the end of the chunk, from `fit`


class Guard(NamedTuple):
    """The arguments of `fngrad.fit` about steps that are not finite, and the run's."""

    policy: Policy
    factor: float  # of the learning rate, at a rollback
    step: Step  # the run's, with `skip_bad_steps` if the policy is to skip
    state: TrainState  # the caller's; an autopsy without checkpoints begins there
    feed: Feed

    @classmethod
    def of(
        cls, policy: Policy, factor: float, step: Step, state: TrainState, feed: Feed
    ) -> "Guard":
        """Return the guard of a run, with the step that the policy needs.

        Raises:
            ValueError: if the policy is unknown or the factor is outside (0, 1).
            TypeError: if a step that is to be skipped cannot be hashed.
        """
        check_option("on_nonfinite", policy, ("raise", "skip", "rollback", "ignore"))
        if not 0 < factor < 1:
            raise ValueError(f"need 0 < rollback_factor < 1, got {factor!r}")
        if policy == "skip":
            check_hashable(step)
            step = _skipping(step)
        return cls(policy, factor, step, state, feed)

    def check_rollback(self, *, is_saved: bool) -> None:
        """Raise if the policy is to roll back and the run cannot.

        Args:
            is_saved: whether checkpoints are written.

        Raises:
            ValueError: if there are no checkpoints, no batches to ask for again, or no
                learning rate in the state.
        """
        if self.policy != "rollback":
            return
        if not is_saved:
            raise ValueError(
                "need checkpoint_dir, or run_dir with save_every or save_minutes, for "
                'on_nonfinite="rollback": it returns to a checkpoint'
            )
        if self.feed.forgets:
            raise ValueError(
                'need a dataset or a function of the step for on_nonfinite="rollback", '
                "got an iterable: its batches cannot be asked for again"
            )
        if not learning_rates(self.state):
            raise ValueError(
                'need a learning rate in the state for on_nonfinite="rollback", as '
                "fngrad.tunable(fngrad.adam, learning_rate=1e-3) keeps it, got an "
                "optimizer with the leaves "
                f"{list(tree.leaf_paths(self.state.opt_state))}"
            )

    def first_bad(self, history: History, steps: np.ndarray) -> int | None:
        """Return the first step, counted from 1, that the policy does not accept.

        Args:
            history: the records of these steps and of those before.
            steps: the new ones, counted from 1.
        """
        if self.policy == "ignore":
            return None
        if self.policy == "skip":
            skipped = history["skipped"][-len(steps) - MAX_SKIPS :]
            last = _end_of_streak(skipped, MAX_SKIPS + 1)
            return None if last is None else int(steps[-1]) + 1 - len(skipped) + last
        bad = np.flatnonzero(bad_steps(history, len(steps)))
        return int(steps[bad[0]]) if bad.size else None


@functools.lru_cache(maxsize=8)
def _skipping(step: Step) -> Step:
    """Return `skip_bad_steps` of a step; cached, so that it compiles once."""
    from fngrad.steps import skip_bad_steps

    return skip_bad_steps(step)


def _end_of_streak(skipped: np.ndarray, length: int) -> int | None:
    """Return the index at which ``length`` steps in a row were skipped, if any."""
    count = 0
    for index, was_skipped in enumerate(skipped):
        count = count + 1 if was_skipped else 0
        if count == length:
            return index
    return None


def bad_leaf(state: TrainState, first: TrainState) -> Path | None:
    """Return the path of a leaf that no checkpoint may hold, if there is one.

    Parameters must be finite. Other leaves, such as the best loss so far, may be
    infinite but not NaN. Entries that are not finite in the first state, such as those
    of a mask among the parameters, are allowed.

    Args:
        state: the one to save.
        first: the caller's.
    """
    suspects = [path for path, is_valid in _valid_leaves(state).items() if not is_valid]
    now, before = tree.leaf_paths(state), tree.leaf_paths(first)
    for path in suspects:
        was_finite = fetched(jnp.isfinite(before[path]))
        if np.any(~fetched(_valid_entries(path, now[path])) & was_finite):
            return path
    return None


@jax.jit
def _valid_leaves(state: TrainState) -> dict[Path, jax.Array]:
    return {
        path: jnp.all(_valid_entries(path, leaf))
        for path, leaf in tree.leaf_paths(state).items()
        if tree.is_float(leaf)
    }


def _valid_entries(path: Path, x: jax.Array) -> jax.Array:
    is_param = path.partition("/")[0] == "params"
    return jnp.isfinite(x) if is_param else ~jnp.isnan(x)


def learning_rates(state: TrainState) -> dict[Path, float]:
    """Return the learning rates that `fngrad.tunable` keeps in a state, by path."""
    kept = hyperparameters(state)
    return {path: float(x) for path, name, x in kept if name == "learning_rate"}


def lower_learning_rates(state: TrainState, factor: float) -> TrainState:
    """Return the state with each learning rate multiplied by a factor."""

    def lower(name: str, x: jax.Array) -> jax.Array:
        return (x * factor).astype(x.dtype) if name == "learning_rate" else x

    return map_hyperparameters(lower, state)


def told_of_rollback(
    bad: int, restored: int, old: TrainState, new: TrainState
) -> tuple[str, dict[str, Any]]:
    """Return what is printed of a rollback, and what the history notes of it.

    Args:
        bad: the step that is not finite, counted from 1.
        restored: that of the checkpoint.
        old: the state in it.
        new: the same with lower learning rates.
    """
    rates, lowered = (list(learning_rates(state).values()) for state in (old, new))
    text = (
        f"fit: loss, gradient or state not finite at step {bad}, rolling back to step "
        f"{restored} and lowering the learning rate from {_listed(rates)} to "
        f"{_listed(lowered)}"
    )
    note = {"step": bad, "restored": restored}
    return text, {**note, "learning_rate": rates, "lowered_to": lowered}


def _listed(rates: list[float]) -> str:
    return ", ".join(f"{rate:.6g}" for rate in rates)


def makes_no_progress(rollbacks: list[dict[str, Any]], step: int) -> bool:
    """Return whether `MAX_ROLLBACKS` rollbacks in a row did not get past a bad step.

    Args:
        rollbacks: those before, as the history notes them.
        step: the step that is bad now, counted from 1.
    """
    furthest = stuck = 0
    for bad in [*(r["step"] for r in rollbacks), step]:
        stuck = 0 if bad > furthest else stuck + 1
        furthest = max(furthest, bad)
    return stuck >= MAX_ROLLBACKS


def nonfinite_error(
    step: int,
    history: History,
    guard: Guard,
    last_good: Callable[[], TrainState],
    interrupted: Interruption,
    peers: Coordination,
    reason: str = "",
) -> NonFiniteError:
    """Return the error that ends a run, with its autopsy.

    With several processes the first one's error has it.

    Args:
        step: the bad one, counted from 1.
        history: of the run, with that step.
        guard: of the run.
        last_good: returns the state that the autopsy begins with.
        interrupted: ends the autopsy once it is set.
        peers: the other processes.
        reason: why the run ends although its policy is to continue.
    """
    at = {name: _record(history, name, step) for name in history}
    shown = ", ".join(f"{name}={x:.6g}" for name, x in at.items() if x is not None)
    found, text = _autopsy(step, guard, last_good, interrupted, peers)
    message = (
        f"need a finite loss and gradient, got step {step} with {shown}. {reason}"
        f"{_CAUSES}\n{text}"
    )
    return NonFiniteError(message, step, history, found)


def _record(history: History, name: str, step: int) -> float | None:
    rows = np.flatnonzero(history.steps(name) == step)
    values = history[name]
    return float(values[rows[0]]) if rows.size and values.ndim == 1 else None


def _autopsy(
    step: int,
    guard: Guard,
    last_good: Callable[[], TrainState],
    interrupted: Interruption,
    peers: Coordination,
) -> "tuple[Autopsy | None, str]":
    """Return the autopsy, if it could be made, and what the error says of it."""
    import fngrad.postmortem as postmortem

    advice = (
        "fngrad.autopsy(step, state, data) finds the cause, from a state before step "
        f"{step}"
    )
    if guard.feed.is_iterable:
        return None, f"{advice} and with data that return any step's batch again"
    # A failure here must not hide the error that is reported.
    try:
        state = last_good()
        if step - int(state.step) > MAX_REPLAY:
            return None, f"{advice}; the nearest saved one is of step {int(state.step)}"
        print_to_stderr(
            f"fit: loss, gradient or state not finite at step {step}, searching for "
            "the cause"
        )
        check = _time_limit(interrupted, peers)
        if guard.policy == "skip":
            first = max(step - MAX_SKIPS, int(state.step) + 1)  # of the last streak
            state = _advance(guard, state, first - 1, check)
            plain = guard.step.__wrapped__  # type: ignore[attr-defined]
        else:
            first, plain = step, guard.step
        data = guard.feed.data
        if peers.is_alone:
            found = postmortem.autopsy(plain, state, data, at=first, check=check)
            return found, str(found)
        bad, state, data = _replayed_here(plain, state, data, first, check)
        if not peers.processes.is_first:
            return None, "the error of process 0 tells the cause"
        check = _time_limit(interrupted, peers, asks=False)
        found = postmortem.autopsy(plain, state, data, at=bad, check=check)
        return found, str(found)
    except Exception as error:
        return None, f"{advice}; the search ended without one: {error}"


def _replayed_here(
    step: Step, state: TrainState, data: Any, at: int, check: Callable[[], None]
) -> tuple[int, TrainState, Any]:
    """Repeat a run of several processes up to a bad step; return that step alone.

    Returns:
        The step, counted from 1, the state before it, and data that give its batch, on
        the default device of this process.
    """
    from fngrad.postmortem.replay import replay

    found = replay(step, state, data, at, check)
    made = found.state.step
    indices = np.asarray(data.indices(made)) if hasattr(data, "indices") else None
    state, batch = jax.tree.map(_here, (found.state, found.batch))
    return int(made) + 1, state, _OneBatch(batch, indices)


def _here(x: jax.Array) -> jax.Array:
    """Return an array whole on the default device of this process."""
    data = jnp.asarray(fetched(x))
    if not tree.is_key(x):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))


class _OneBatch:
    """Data with one batch, as an autopsy reads them."""

    def __init__(self, batch: Any, indices: np.ndarray | None):
        self._batch = batch
        if indices is not None:
            self.indices: Callable[[Any], np.ndarray] = lambda step: indices

    def __call__(self, step: Any) -> Any:
        return self._batch


def _time_limit(
    interrupted: Interruption, peers: Coordination, *, asks: bool = True
) -> Callable[[], None]:
    """Return a check that raises once an autopsy takes too long or is interrupted.

    Args:
        interrupted: whether this process is.
        peers: the others; the clock of the first process decides.
        asks: whether all processes call the check.
    """
    end = time.monotonic() + MAX_SECONDS

    def check() -> None:
        now = Status(is_late=time.monotonic() > end, interrupted=interrupted.is_set())
        heard = peers.meet(now) if asks else now
        if heard.interrupted:
            raise TimeoutError("interrupted")
        if heard.is_late:
            raise TimeoutError(f"it took more than {MAX_SECONDS} s")

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

"""When the host acts: the steps at which a run logs, evaluates, saves and ends.

Epochs become steps here; a dataset says how many steps an epoch has.
"""

import bisect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import fngrad.numerics as numerics
from fngrad.fitting.inputs import Feed
from fngrad.fitting.loops import ROWS
from fngrad.numerics import MAX_STEP
from fngrad.programs.caller_warnings import warn

CHUNK_SECONDS = 0.25  # between two times that the host looks for an interrupt
ENDLESS = MAX_STEP  # the last step of a run over an iterable without num_steps
_REPEATING = (
    "an iterable that repeats, such as `while True: yield from loader`, if the loader "
    "can be iterated again"
)


class Stops(NamedTuple):
    """The steps at which one call hands control from the loop back to the host.

    Steps count from the beginning of the training, not of the call.
    """

    first: int  # where the call begins
    last: int
    log_every: int
    next_evaluation: Callable[[int], int] | None  # the first one after a step
    save_every: int | None
    log_until: int | None = None  # the end for which log_every was chosen by default
    evaluations_until: Callable[[int], int] | None = None  # how many up to a step

    def next_after(self, now: int) -> int:
        """Return the next step after ``now`` at which the host acts."""
        steps = [self.last, _next_multiple(now, self.log_every)]
        if self.next_evaluation:
            steps.append(self.next_evaluation(now))
        if self.save_every:
            steps.append(_next_multiple(now, self.save_every))
        return min(steps)

    def reports_at(self, now: int) -> bool:
        """Return whether loggers and callbacks are called at a step.

        Saving does not call them: where a run saves must not change what
        callbacks see.
        """
        is_due = now >= self.last or now % self.log_every == 0
        return is_due or self.evaluates_at(now)

    def saves_at(self, now: int) -> bool:
        """Return whether ``save_every`` asks for a checkpoint at a step."""
        return self.save_every is not None and now % self.save_every == 0

    def evaluates_at(self, now: int) -> bool:
        """Return whether an evaluation is due at a step."""
        if self.next_evaluation is None:
            return False
        return now == self.last or self.next_evaluation(now - 1) == now

    def evaluations(self) -> int:
        """Return how many evaluations are due after the first step."""
        if self.evaluations_until is None or self.first >= self.last:
            return 0
        before_last = self.evaluations_until(self.last - 1)
        return before_last + 1 - self.evaluations_until(self.first)


class Intervals(NamedTuple):
    """The arguments of `fngrad.fit` that say when the host acts and the run ends."""

    num_steps: int | None
    num_epochs: int | None
    log_every: int | None
    eval_every: Literal["epoch"] | int | None  # None: never
    save_every: int | None

    def stops(self, feed: Feed, first: int) -> Stops:
        """Return the stops of a call that begins at step ``first``.

        Raises:
            ValueError: if neither or both of ``num_steps`` and ``num_epochs`` are
                given, if a number is out of range, or if the data have no epochs to
                count by.
        """
        last = _last_step(feed, self.num_steps, self.num_epochs)
        log_every = self.log_every
        if log_every is None:
            log_every = _log_every(last, last - first)
        return Stops(
            first,
            last,
            log_every=numerics.check_count("log_every", log_every, 1),
            next_evaluation=_next_evaluation(feed, self.eval_every),
            evaluations_until=_evaluations_until(feed, self.eval_every),
            save_every=None if self.save_every is None else int(self.save_every),
        )


def warn_if_short(stops: Stops, now: int) -> None:
    """Warn if the data ended at a step before the last that was asked for."""
    if now < stops.last != ENDLESS:
        warn(
            f"the run ended at step {now} of num_steps={stops.last}, since the data "
            f"ended there: to go on, pass {_REPEATING}"
        )


def next_chunk(chunk: int, length: int, seconds: float) -> int:
    """Return how many steps to make in the next chunk, to take near CHUNK_SECONDS.

    Args:
        chunk: how many were allowed last time; the result is at most fourfold.
        length: how many were made.
        seconds: how long they took.
    """
    in_time = int(CHUNK_SECONDS * length / max(seconds, 1e-9))
    return max(1, min(4 * chunk, in_time, ROWS))


def _log_every(last: int, count: int) -> int:
    """Return after how many steps to log by default.

    A run of unknown length may be short.
    """
    if last == ENDLESS:
        return 100
    hundredth = min(max(100, count // 100), 1000)
    return max(1, min(hundredth, count // 20))


def _next_multiple(now: int, every: int) -> int:
    return (now // every + 1) * every


def _last_step(feed: Feed, num_steps: int | None, num_epochs: int | None) -> int:
    if num_steps is None and num_epochs is None and feed.is_iterable:
        return ENDLESS
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(
            f"need one of num_steps and num_epochs, got {num_steps=} {num_epochs=}"
        )
    if num_epochs is None:
        return numerics.check_count("num_steps", _whole(num_steps), 0, MAX_STEP)
    num_epochs = numerics.check_count("num_epochs", _whole(num_epochs))
    _require_epochs(feed, "num_epochs", _in_steps(feed, num_epochs))
    steps = feed.data.steps(num_epochs)
    if steps > MAX_STEP:
        raise ValueError(
            f"need num_epochs with at most {MAX_STEP} steps in all, since the state "
            f"counts them in int32, got {num_epochs=} with {steps} steps"
        )
    return steps


def _whole(number: Any) -> Any:
    """Return an integral float such as 1e6 as an int, and anything else unchanged."""
    is_whole = isinstance(number, float) and number.is_integer()
    return int(number) if is_whole else number


def _next_evaluation(feed: Feed, every: Any) -> Callable[[int], int] | None:
    if every is None:
        return None
    if every == "epoch":
        remedy = "eval_every=20 evaluates every 20 steps"
        _require_epochs(feed, 'eval_every="epoch", the default', remedy)
        return lambda now: _next_epoch_end(feed.data, now)
    number = numerics.as_int(every)
    if number is None or number < 1:
        raise ValueError(f'need eval_every="epoch" or an int >= 1, got {every!r}')
    return lambda now: _next_multiple(now, number)


def _evaluations_until(feed: Feed, every: Any) -> Callable[[int], int] | None:
    if every is None:
        return None
    if every == "epoch":
        return lambda now: _epochs_until(feed.data, now)
    return lambda now: now // numerics.check_count("eval_every", every, 1)


def _epochs_until(data: Any, now: int) -> int:
    """Return how many epochs have ended at a step; each has a step or more."""
    return bisect.bisect_right(range(now + 2), now, key=data.steps) - 1


def _next_epoch_end(data: Any, now: int) -> int:
    epoch = now // data.steps_per_epoch
    while data.steps(epoch) <= now:
        epoch += 1
    return data.steps(epoch)


def _require_epochs(feed: Feed, what: str, remedy: str) -> None:
    if not hasattr(feed.data, "steps_per_epoch"):
        got = type(feed.data).__name__
        raise ValueError(f"need a dataset for {what}, got {got}: {remedy}")


def _in_steps(feed: Feed, num_epochs: int) -> str:
    """Return how to make some passes over data that have no epochs."""
    if not feed.is_iterable:
        return "num_steps= counts the batches of a function of the step"
    try:
        count = len(feed.data)
    except TypeError:  # of unknown length
        return f"num_steps= counts the batches of {_REPEATING}"
    passes = f"num_steps={num_epochs} * {count} makes {num_epochs} passes"
    return f"{passes} over its {count} batches, with {_REPEATING}"

"""When the host must look: the steps at which a run logs, evaluates, saves, ends."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import fngrad.numerics as numerics
from fngrad.fitting.feeds import Feed
from fngrad.numerics import MAX_STEP

ENDLESS = MAX_STEP  # steps; what a run over an iterable counts towards


class Agenda(NamedTuple):
    """Steps count from the beginning of the training, not of this call."""

    first: int  # of this call
    last: int
    log_every: int
    next_evaluation: Callable[[int], int] | None  # the first one after a step
    save_every: int | None

    def next_stop(self, now: int) -> int:
        """Return the next step after ``now`` at which the host looks or saves."""
        stops = [self.last, _next_multiple(now, self.log_every)]
        if self.next_evaluation:
            stops.append(self.next_evaluation(now))
        if self.save_every:
            stops.append(_next_multiple(now, self.save_every))
        return min(stops)

    def looks_at(self, now: int) -> bool:
        """Say whether loggers and callbacks are called.

        Saving is no reason: where a run saves must not change what callbacks see.
        """
        is_due = now >= self.last or now % self.log_every == 0
        return is_due or self.evaluates_at(now)

    def saves_at(self, now: int) -> bool:
        """Say whether a checkpoint is due by the number of steps."""
        return self.save_every is not None and now % self.save_every == 0

    def evaluates_at(self, now: int) -> bool:
        """Say whether an evaluation is due."""
        if self.next_evaluation is None:
            return False
        return now == self.last or self.next_evaluation(now - 1) == now


def make_agenda(
    feed: Feed,
    first: int,
    num_steps: int | None,
    num_epochs: int | None,
    log_every: int | None,
    eval_every: Literal["epoch"] | int | None,
    save_every: int | None,
) -> Agenda:
    """Work out the agenda of a call to `fngrad.fit`; no ``eval_every`` means never.

    Args:
        feed: the run's data.
        first: the step where the call begins.
        num_steps, num_epochs, log_every, eval_every, save_every: see `fngrad.fit`.

    Raises:
        ValueError: neither or both of ``num_steps`` and ``num_epochs``, a number out of
            range, or epochs asked of data that has none.
    """
    last = _last_step(feed, num_steps, num_epochs)
    if log_every is None:
        log_every = min(max(100, (last - first) // 100), 1000)
    log_every = numerics.check_count("log_every", log_every, 1)
    save_every = None if save_every is None else int(save_every)
    evaluations = None if eval_every is None else _next_evaluation(feed, eval_every)
    return Agenda(first, last, log_every, evaluations, save_every)


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
    _require_epochs(feed, "num_epochs")
    steps = feed.data.steps(num_epochs)
    if steps > MAX_STEP:
        raise ValueError(
            f"need num_epochs with at most {MAX_STEP} steps in all, as a state counts "
            f"them in int32, got {num_epochs=} with {steps} steps"
        )
    return steps


def _whole(number: Any) -> Any:
    """Return a float without a fraction, such as 1e6, as an int; else what it is."""
    is_whole = isinstance(number, float) and number.is_integer()
    return int(number) if is_whole else number


def _next_evaluation(feed: Feed, every: Any) -> Callable[[int], int]:
    if every == "epoch":
        _require_epochs(feed, 'eval_every="epoch"')
        return lambda now: _next_epoch_end(feed.data, now)
    number = numerics.as_int(every)
    if number is None or number < 1:
        raise ValueError(f'need eval_every="epoch" or an int >= 1, got {every!r}')
    return lambda now: _next_multiple(now, number)


def _next_epoch_end(data: Any, now: int) -> int:
    epoch = now // data.steps_per_epoch
    while data.steps(epoch) <= now:
        epoch += 1
    return data.steps(epoch)


def _require_epochs(feed: Feed, what: str) -> None:
    if not hasattr(feed.data, "steps_per_epoch"):
        raise ValueError(f"need a dataset for {what}, got {type(feed.data).__name__}")

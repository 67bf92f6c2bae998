"""The loop people call: train, watch, evaluate, stop, hand back what was reached.

`fit` is the impure shell around a pure step. It cuts the run at the steps where the
host must look (`fngrad.fitting.agenda`) and hands the stretches between them to a
loop (`fngrad.fitting.loops`), in chunks of about a quarter of a second. After each
chunk it reads the metrics, moves the progress bar and sees an interrupt.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from fngrad.fitting.agenda import ENDLESS, Agenda, make_agenda
from fngrad.fitting.checks import check_backend, check_option, check_step
from fngrad.fitting.feeds import Feed
from fngrad.fitting.interrupts import interrupts
from fngrad.fitting.loops import Choice, begin, choose, make_loop
from fngrad.fitting.outputs import Outputs
from fngrad.fitting.session import Callback, EarlyStopping, Evaluation, Session
from fngrad.history import History
from fngrad.logging import Logger
from fngrad.training import Step, TrainState, snapshot


class FitResult(NamedTuple):
    """What `fit` reached."""

    state: TrainState  # the caller's own
    history: History
    stopped: str  # completed, early_stopping, callback, interrupted or exhausted


def fit(
    step: Step,
    state: TrainState,
    data: Any,
    *,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    metric_fn: Callable[..., Any] | None = None,
    eval_data: Any = None,
    eval_every: Literal["epoch"] | int = "epoch",
    run_dir: Any = None,
    config: Any = None,
    early_stopping: EarlyStopping | None = None,
    log_every: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    on_nonfinite: Literal["raise", "ignore"] = "raise",
    require: str | None = None,
    loop: Literal["auto", "python", "scan"] = "auto",
    progress: bool = True,
) -> FitResult:
    """Train until a step or an epoch is reached.

    The caller's state is copied once and stays valid. Ctrl-C ends the run between two
    steps and returns what was reached; a second Ctrl-C stops at once.

    Args:
        step: from `fngrad.make_step`, or any ``(state, batch) -> (state, metrics)``
            whose metrics are scalars.
        state: where to start; ``state.step`` counts.
        data: a dataset, a pure function ``step -> batch``, or an iterable of batches
            (with a warning: such a run cannot be resumed exactly).
        num_steps: the step to reach; starting there does nothing, and says so. For an
            iterable ``None`` means until it ends.
        num_epochs: the same in passes over a dataset.
        metric_fn: see `fngrad.evaluate`; its metrics appear under ``val/``.
        eval_data: what is evaluated, arrays or a dataset.
        eval_every: after how many steps to evaluate; at the end of a run that
            completes or runs out of data too.
        run_dir: folder for config.json, manifest.json, metrics.jsonl, curves.png. A
            folder with records takes only a state that has come as far: no step is
            written twice.
        config: what config.json holds: a dataclass, a NamedTuple or a dict.
        early_stopping: when to give up.
        log_every: after how many steps loggers and callbacks are called; they are at
            evaluations and at the end too. ``None`` means about a hundred times a
            run, 100 to 1000 steps apart.
        loggers: called as ``logger(step, values)`` with floats by name; one that has
            ``close`` is closed at the end of a run that began.
        callbacks: called as ``callback(step, state, values)``; may return a new state
            or ``fngrad.STOP``. The state is valid during the call; keep a
            ``fngrad.snapshot`` of it.
        on_nonfinite: what a loss or gradient norm that is not finite does. ``raise``
            ends the run within one chunk; ``ignore`` records ``is_finite`` and goes on.
        require: the backend that must be there: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        loop: ``python`` dispatches each step; ``scan`` runs the steps between the
            points where the host looks inside one program that compiles once;
            ``auto`` times both on copies of the state and takes the faster.
            ``history.notes`` and the run's manifest say which and why; a later call
            with the same ``run_dir`` takes the same.
        progress: whether to show a progress bar (tqdm; without it, none).

    Returns:
        The last state, the history of all metrics, and why the run ended.

    Raises:
        ValueError: an argument out of range or at odds with another; a step that
            gives back a state unlike the one it was given (the leaf is named).
        TypeError: data of an unknown kind, a state with a leaf that is no array.
        NonFiniteError: see ``on_nonfinite``.
        RuntimeError: another backend than required; a state that was donated.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):
        ...     return jnp.mean((batch["x"] * w - batch["y"]) ** 2)
        >>> arrays = {"x": jnp.arange(8.0), "y": 3.0 * jnp.arange(8.0)}
        >>> data = fg.data.from_arrays(arrays, batch_size=4)
        >>> optimizer = fg.sgd(0.01)
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> state = fg.init_state(jnp.array(0.0), optimizer, key=0)
        >>> result = fg.fit(step, state, data, num_epochs=20, progress=False)
        >>> print(f"{result.state.params:.3f}", result.stopped)
        3.000 completed
    """
    check_backend(require)
    check_option("on_nonfinite", on_nonfinite, ("raise", "ignore"))
    check_option("loop", loop, ("auto", "python", "scan"))
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(interrupts())
        feed = Feed(data)
        evaluation = Evaluation.of(metric_fn, eval_data, early_stopping)
        metrics = check_step(step, state, feed)
        if log_every is None and not (loggers or callbacks or run_dir):
            log_every = ENDLESS  # nobody listens
        looks = log_every, eval_every if evaluation else None
        agenda = make_agenda(feed, int(state.step), num_steps, num_epochs, *looks)
        if agenda.first >= agenda.last:
            _say_done(agenda)
            return FitResult(snapshot(state), History(), "completed")
        outputs = stack.enter_context(
            Outputs(run_dir, config, feed, loggers, agenda, state.key)
        )
        if progress:
            outputs.open_bar()
        carry = begin(snapshot(state), metrics)
        choice = _recorded(loop, outputs, feed) or choose(
            step, feed, carry, agenda.last - agenda.first, interrupted
        )
        outputs.begin(choice.loop, choice.reason)
        session = Session(
            carry=carry,
            advance=make_loop(choice.loop, step, feed),
            metrics=metrics,
            agenda=agenda,
            history=History(choice._asdict()),
            outputs=outputs,
            evaluation=evaluation,
            callbacks=callbacks,
            raises=on_nonfinite == "raise",
        )
        stopped = session.run(interrupted)
        result = FitResult(session.carry.state, session.history, stopped)
        outputs.finish(result.history, stopped, int(result.state.step))
        return result


def _say_done(agenda: Agenda) -> None:
    print(
        f"fit: nothing to do, the state is at step {agenda.first} and the run ends at "
        f"step {agenda.last}",
        file=sys.stderr,
    )


def _recorded(loop: Any, outputs: Outputs, feed: Feed) -> Choice | None:
    """Return the loop that was asked for, or that ran here before, if any."""
    if feed.is_iterable and loop == "scan":
        raise ValueError('need a dataset or a function of the step for loop="scan"')
    if loop != "auto":
        return Choice(loop, "asked for")
    recorded = outputs.recorded_loop()
    return Choice(recorded, "recorded in the run folder") if recorded else None

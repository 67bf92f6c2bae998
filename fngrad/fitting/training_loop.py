"""The loop people call: train, watch, evaluate, stop, hand back what was reached.

`fit` is the impure shell around a pure step. It cuts the run at the steps where the
host must look (`fngrad.fitting.agenda`) and hands the stretches between them to a
loop (`fngrad.fitting.loops`), in chunks of about a quarter of a second. After each
chunk it reads the metrics, moves the progress bar and sees an interrupt.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from fngrad.checkpoint import Checkpoints
from fngrad.checkpoint.array_files import check_folder
from fngrad.files.json_values import to_json
from fngrad.files.locks import Lock
from fngrad.fitting.agenda import Agenda, make_agenda
from fngrad.fitting.checks import (
    check_backend,
    check_functions,
    check_loop,
    check_not_donated,
    check_step,
)
from fngrad.fitting.failures import attach
from fngrad.fitting.feeds import Feed
from fngrad.fitting.interrupts import (
    USUAL_EXITS,
    Interruption,
    SignalName,
    exit_numbers,
    interrupts,
    say_terminated,
)
from fngrad.fitting.loops import (
    Choice,
    begin,
    begin_compilations,
    choose,
    make_loop,
    placement_of,
)
from fngrad.fitting.measured import settle_best
from fngrad.fitting.nonfinite import Guard, Policy, check_policy, skipping
from fngrad.fitting.outputs import Outputs
from fngrad.fitting.resume import Past, begin_or_resume, say_resumed
from fngrad.fitting.save_rules import USUAL_BEST, SaveRules, checkpoint_folder
from fngrad.fitting.saving import Saving
from fngrad.fitting.session import Callback, Plan, Session
from fngrad.fitting.validation import EarlyStopping, Evaluation, Patience
from fngrad.logging import Logger
from fngrad.logging.history import History
from fngrad.logging.progress import say
from fngrad.metrics.directions import Metric
from fngrad.training import Step, TrainState, check_order
from fngrad.training.evaluation import check_examples


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
    checkpoint_dir: Any = None,
    resume: Literal["auto", "never", "must"] = "auto",
    save_every: int | None = None,
    save_minutes: float | None = None,
    keep: int = 2,
    keep_best: Metric | None = USUAL_BEST,
    on_save_error: Literal["raise", "warn"] = "raise",
    early_stopping: EarlyStopping | None = None,
    log_every: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    exit_signals: Sequence[SignalName] = USUAL_EXITS,
    on_nonfinite: Policy = "raise",
    rollback_factor: float = 0.5,
    require: str | None = None,
    loop: Literal["auto", "python", "scan"] = "auto",
    progress: bool = True,
) -> FitResult:
    """Train until a step or an epoch is reached.

    The caller's state is copied once and stays valid. A ``jax.transfer_guard`` of the
    caller does not hold during the call, which moves batches and metrics itself.
    Ctrl-C ends the run between two steps and returns what was reached; a second
    Ctrl-C stops at once.

    With checkpoints a run survives: the same call, made again after whatever ended
    the last one, goes on at the newest whole checkpoint, says so on stderr, and ends
    with the bits of an undisturbed run, in state, history and evaluations. Damaged
    checkpoints are passed over with a warning; where no other is left, the call is
    refused and the folder stays as it is. Checkpoints are written with
    ``checkpoint_dir``, or with ``run_dir`` and one of ``save_every`` and
    ``save_minutes``: when those say so (without either, every 10 minutes), at each
    evaluation that is the best so far, when the run is interrupted, and at its end.
    Writing goes on in the background; `fit` waits for it before it ends. SIGTERM, as
    clusters send it, and the other ``exit_signals`` end the step in flight, save, and
    raise `SystemExit` with status 75 (``fngrad.fitting.interrupts.PREEMPTED``). While
    it runs, another process is kept out of the folders; reading them is always
    allowed. Relative folders are those of the working directory at the call.

    An exception that ends the run, whoever raised it, carries ``error.state`` and
    ``error.history`` as far as the run had come, and a note that says so; the state is
    None where an exception inside the compiled step used it up. With checkpoints that
    state is saved, and the next call first does what was left to do at its step:
    evaluation, loggers, callbacks. Not saved is a state that is not finite; nor any
    after a `SaveError` or a second Ctrl-C.

    A signal that is ignored stays ignored, as SIGINT in a background job. A handler
    that was there before is called too, and what it raises is raised when the run has
    ended. In another thread than the main one no signal is handled.

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
            written twice. A run that goes on from a checkpoint cuts what it will
            write again.
        config: what config.json holds: a dataclass, a NamedTuple or a dict. A run
            does not go on with another.
        checkpoint_dir: folder for checkpoints; see above.
        resume: what becomes of checkpoints that are there. ``auto`` goes on from
            them, ``must`` and from nothing else, ``never`` refuses a folder that has
            some. The state gives the structure then, not the values. Config, data,
            batch size and key must be those of the checkpoint. The batches of an
            iterable are taken from its beginning, with a warning; ``must`` refuses
            one.
        save_every: after how many steps to save.
        save_minutes: after how many minutes to save.
        keep: how many of the newest checkpoints stay.
        keep_best: the best evaluation's checkpoint stays too: best by a metric whose
            name tells which way is better (see `fngrad.metrics.directions`), or by a
            pair ``(metric, "min" or "max")``. ``None`` keeps none; the default is
            ignored where it is not measured.
        on_save_error: what a full disk or another failure to write does. ``raise``
            ends the run, with the state in the error; ``warn`` goes on. The last good
            checkpoint stands. It holds for loggers and metrics.jsonl too. A picture or
            a manifest that cannot be written is a warning in any case.
        early_stopping: when to give up.
        log_every: after how many steps loggers and callbacks are called; they are at
            evaluations and at the end too. ``None`` means about a hundred times a
            run, 100 to 1000 steps apart.
        loggers: called as ``logger(step, values)`` with floats by name; one that has
            ``close`` is closed at the end of a run that began. One that has ``cut``,
            as those of `fngrad.logging` have, is called as ``logger.cut(step)`` where
            the run goes on from a checkpoint: later steps will be logged again.
        callbacks: called as ``callback(step, state, values)``; may return a new state,
            of no earlier step, or ``fngrad.STOP``. The state is valid during the call;
            keep a ``fngrad.snapshot`` of it.
        exit_signals: which signals mean "save and exit", by name or number, such as
            ``("SIGTERM", "SIGUSR1")``. Without checkpoints none does.
        on_nonfinite: what a loss or gradient norm that is not finite does. ``raise``
            ends the run within one chunk; the error carries the `fngrad.autopsy` of
            the step, if that is found within 300 seconds. ``skip`` keeps the state of
            before the step and goes on with the next batch, see
            `fngrad.steps.skip_bad_steps`; more than 10 steps in a row raise.
            ``rollback`` goes back to the newest checkpoint, lowers the learning rate
            that `fngrad.tunable` keeps and goes on; ``history.notes["rollbacks"]``
            tells of it; 10 that come no further raise. ``ignore`` records
            ``is_finite`` and goes on. But for ``ignore``, no state that is not finite
            is ever saved.
        rollback_factor: what a rollback multiplies the learning rate by, in (0, 1).
        require: the backend that must be there: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        loop: ``python`` dispatches each step; ``scan`` runs the steps between the
            points where the host looks inside one program that compiles once;
            ``auto`` times both on copies of the state and takes the faster.
            ``history.notes`` and the run's manifest say which and why; a later call
            with the same ``run_dir`` or checkpoints takes the same.
        progress: whether to show a progress bar (tqdm; without it, none).

    Returns:
        The last state, the history of all metrics, and why the run ended.

    Raises:
        ValueError: an argument out of range or at odds with another; a folder that is
            a URL; a metric to watch that is not measured, or whose direction is not
            known; a name of a metric that is taken; a step that
            gives back a state unlike the one it was given (the leaf is named); a
            checkpoint of another run (the differences are named) or of an earlier
            step than the state; checkpoints where ``resume="never"``.
        FileNotFoundError: ``resume="must"`` and no checkpoint.
        TypeError: data of an unknown kind, a state with a leaf that is not an array, a
            loss in the place of the step, callbacks or loggers that take other
            arguments, a function that Python cannot run on traced arrays,
            ``exit_signals`` that are not a sequence of names and numbers.
        NonFiniteError: see ``on_nonfinite``.
        SaveError: see ``on_save_error``.
        RuntimeError: another backend than required; an argument that was donated; a
            folder in use by another process (`fngrad.files.locks.LockError`).
        ImportError: checkpoints are to be written and orbax-checkpoint is missing.
        SystemExit: one of ``exit_signals`` came, and checkpoints are written.
        Exception: what a callback, a logger or the data raise, with what was reached.

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
    _check_options(require, loggers, callbacks, state, config)
    rules = SaveRules(
        checkpoint_folder(checkpoint_dir, run_dir, save_every, save_minutes),
        *(resume, save_every, save_minutes, keep, keep_best, on_save_error),
    )
    run_dir = None if run_dir is None else Path(run_dir).absolute()
    rules.check(evaluates=metric_fn is not None)
    exits = exit_numbers(exit_signals, is_saved=bool(rules.folder))
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))  # what fit moves, it means to
        interrupted = stack.enter_context(interrupts(exits=exits))
        feed = _feed(step, data, eval_data, loop)
        evaluation = Evaluation.of(metric_fn, eval_data, early_stopping)
        check_policy(on_nonfinite, rollback_factor, state, feed, bool(rules.folder))
        step = skipping(step) if on_nonfinite == "skip" else step
        metrics = check_step(step, state, feed)
        rules = rules._replace(best=settle_best(evaluation, keep_best, metrics, state))
        rules.check_best()
        ends, every = (num_steps, num_epochs), eval_every if evaluation else None
        make_agenda(feed, 0, *ends, log_every, every, save_every)  # may refuse
        checkpoints = _open(stack, run_dir, rules)
        past = begin_or_resume(rules, checkpoints, state, feed, config)
        log_every = past.log_every(log_every, bool(loggers or callbacks or run_dir))
        agenda = make_agenda(feed, past.step, *ends, log_every, every, save_every)
        patience = Patience(early_stopping, past.patience)
        if ended := _ended(agenda, patience, past):
            return FitResult(past.state, past.history, ended)
        say_resumed(past, agenda, rules)
        outputs = stack.enter_context(
            Outputs(run_dir, config, feed, loggers, agenda, state.key, rules, past)
        )
        outputs.open_bar(progress)
        saving = Saving(rules, checkpoints, agenda, past) if checkpoints else None
        guard = Guard(on_nonfinite, rollback_factor, step, state, feed)
        plan = Plan(metrics, agenda, outputs, evaluation, callbacks, saving, guard)
        return _train(plan, past, patience, step, feed, loop, interrupted)


def _open(
    stack: contextlib.ExitStack, run_dir: Any, rules: SaveRules
) -> Checkpoints | None:
    """Keep other processes out of the folders, and open the one of checkpoints."""
    given = [folder for folder in (run_dir, rules.folder) if folder is not None]
    for folder in {Path(folder).resolve(): folder for folder in given}.values():
        stack.enter_context(Lock(folder))
    if rules.folder is None:
        return None
    check_folder(rules.folder)
    return stack.enter_context(
        Checkpoints(rules.folder, keep=rules.keep, best=rules.best)
    )


def _feed(step: Any, data: Any, eval_data: Any, loop: Any) -> Feed:
    """Return what feeds the run, once all data are of a kind that can be read."""
    check_order(step, data)
    feed = Feed(data)
    check_loop(loop, feed)
    check_not_donated("data", feed.argument)
    check_examples(eval_data)
    check_not_donated("eval_data", eval_data)
    return feed


def _check_options(
    require: Any, loggers: Any, callbacks: Any, state: TrainState, config: Any
) -> None:
    check_backend(require)
    check_functions("loggers", loggers, 0, {})
    check_functions("callbacks", callbacks, 0, state, {})
    to_json({} if config is None else config, "config")


def _ended(agenda: Agenda, patience: Patience, past: Past) -> str | None:
    """Say why there is nothing to do, if so, on stderr too."""
    if past.look and agenda.first <= agenda.last:
        return None
    if agenda.first >= agenda.last:
        say(
            f"fit: nothing to do, the state is at step {agenda.first} and the run "
            f"ends at step {agenda.last}: num_steps and num_epochs count from step 0; "
            'raise them to train on; to fine-tune, restore part="params" alone',
        )
        return "completed"
    if patience.is_over:
        say(f"fit: nothing to do, early stopping ended the run at step {agenda.first}")
        return "early_stopping"
    return None


def _train(
    plan: Plan,
    past: Past,
    patience: Patience,
    step: Step,
    feed: Feed,
    loop: Any,
    interrupted: Interruption,
) -> FitResult:
    carry = begin(past.state, plan.metrics, feed.arrays)
    remaining = plan.agenda.last - plan.agenda.first
    placement = placement_of(carry)
    compilations = begin_compilations(step, feed, placement)
    choice = _recorded(loop, past, plan.outputs, feed) or choose(
        step, feed, carry, remaining, interrupted
    )
    if not interrupted.is_set():  # else the choice may have been cut short
        plan.outputs.begin(choice.loop, choice.reason)
    notes = past.history.notes
    notes.update(choice._asdict(), **compilations.notes())
    advance = make_loop(choice.loop, step, feed, placement)
    session = Session(plan, carry, advance, past.history, patience, past.look)
    try:
        stopped = session.run(interrupted)
        notes.update(compilations.notes())
        result = FitResult(session.carry.state, session.history, stopped)
        plan.outputs.finish(result.history, stopped, int(result.state.step))
        plan.outputs.close()
    except BaseException as error:
        notes.update(compilations.notes())
        session.rescue(error)
        raise
    if interrupted.raised is not None:
        attach(interrupted.raised, result.state, result.history)
    elif interrupted.terminated is not None:
        step_reached = int(result.state.step)
        is_saved = plan.saving is not None and plan.saving.has(step_reached)
        say_terminated(interrupted.terminated, step_reached, is_saved)
    return result


def _recorded(loop: Any, past: Past, outputs: Outputs, feed: Feed) -> Choice | None:
    """Return the loop that was asked for, or that ran before, if any."""
    if loop != "auto":
        return Choice(loop, "asked for")
    if past.notes:
        notes = past.history.notes
        return Choice(**{field: notes[field] for field in Choice._fields})
    recorded = outputs.recorded_loop()
    return Choice(recorded, "recorded in the run folder") if recorded else None

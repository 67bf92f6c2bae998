"""`fit`, the training loop that users call.

`fit` is the impure shell around a pure step. It divides the run at the steps where the
host must act (`fngrad.fitting.intervals`) and passes the stretches between them to a
loop (`fngrad.fitting.loops`), in chunks of about a quarter of a second. After each
chunk it reads the metrics, moves the progress bar and looks for an interrupt
(`fngrad.fitting.session`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from fngrad.fitting.arguments import Arguments, Run
from fngrad.fitting.checkpointing import DEFAULT_BEST, Saver, opened
from fngrad.fitting.coordination import Coordination
from fngrad.fitting.early_stopping import EarlyStopping
from fngrad.fitting.hooks import Callback
from fngrad.fitting.interrupts import (
    DEFAULT_EXIT_SIGNALS,
    Interruption,
    SignalName,
    attach,
    handled_signals,
    print_interrupted,
)
from fngrad.fitting.intervals import Stops
from fngrad.fitting.loops import (
    begin,
    begin_compilations,
    choose,
    make_loop,
    placement_of,
)
from fngrad.fitting.nonfinite import Policy
from fngrad.fitting.outputs import Outputs, decided_loop
from fngrad.fitting.plan import Plan
from fngrad.fitting.result import FitResult, finished
from fngrad.fitting.resume import (
    Resume,
    Start,
    begin_or_resume,
    print_resumed,
    stopped_before,
)
from fngrad.fitting.session import Session
from fngrad.logging import Logger
from fngrad.logging.time_spent import TimeSpent
from fngrad.metrics.directions import Metric
from fngrad.programs.keywords_elsewhere import OF_FIT, explains_keywords
from fngrad.training import Step, TrainState


@explains_keywords(OF_FIT)
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
    run_dir: str | PathLike[str] | None = None,
    config: Any = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    resume: Resume = "auto",
    save_every: int | None = None,
    save_minutes: float | None = None,
    keep: int = 2,
    keep_best: Metric | None = DEFAULT_BEST,
    on_save_error: Literal["raise", "warn"] = "raise",
    early_stopping: EarlyStopping | None = None,
    restore_best: bool = False,
    eval_first: bool = False,
    log_every: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    exit_signals: Sequence[SignalName] = DEFAULT_EXIT_SIGNALS,
    on_nonfinite: Policy = "raise",
    rollback_factor: float = 0.5,
    require: str | None = None,
    loop: Literal["auto", "python", "scan"] = "auto",
    mesh: Mesh | None = None,
    progress: bool = True,
) -> FitResult:
    """Train until a number of steps or epochs is reached; return state and history.

    The caller's state is copied once and stays valid. Ctrl-C ends the run after the
    step in flight, prints what is saved and returns what was reached; a second Ctrl-C
    raises KeyboardInterrupt at once. A ``jax.transfer_guard`` of the caller is
    suspended during the call, since `fit` itself moves batches and metrics.
    `fngrad.dry_run` takes the same arguments and measures what the run would take.

    *Checkpoints.* They are written if ``checkpoint_dir`` is given, or ``run_dir`` with
    ``save_every`` or ``save_minutes``: at these intervals (every 10 minutes if neither
    is given), at each evaluation that is the best so far, at an interrupt, and at the
    end of the run. A background thread writes them; `fit` waits for it before it
    returns. After a crash, a kill or a preemption, make the same call again: it resumes
    from the newest undamaged checkpoint, says so on stderr, and ends with the same bits
    as an uninterrupted run, in the state, the history and the evaluations. Damaged
    checkpoints are skipped with a warning; if all are damaged, the call raises and
    leaves the folder as it is. While `fit` runs, other processes can read its folders
    but not write to them. Relative folders are resolved at the call.

    *Signals.* With checkpoints, SIGTERM, which clusters send, and the other
    ``exit_signals`` end the run after the step in flight, save it, and raise
    `SystemExit` with status 75 (``fngrad.fitting.interrupts.PREEMPTED``). A signal that
    is ignored, as SIGINT in a background job, stays ignored. An earlier handler is
    called too; what it raises is raised when the run has ended. Outside the main thread
    `fit` handles no signals.

    *Exceptions.* An exception that ends the run, whatever raised it, carries
    ``error.state``, ``error.history`` and a note of the step reached. The state is None
    if the exception came from inside the compiled step, which had been given its
    memory. With checkpoints the state is saved too, and the next call first completes
    that step: evaluation, loggers, callbacks. A state that is not finite is not saved,
    nor is any state after a `SaveError` or a second Ctrl-C.

    *Several processes.* After `fngrad.distributed.initialize` all make the same call,
    with a ``mesh`` of all devices, and return the same history. The first one owns the
    run folder, prints, calls the loggers, and decides by its clock. Callbacks are
    called in all, since they may compute, and must return the same. A signal, an
    exception or ``fngrad.STOP`` in one ends the run in all, after the same step and
    with a checkpoint; after an exception the others raise
    `fngrad.distributed.PeerError`, which tells it. After a kill the others raise from
    the computation that they share with it; with checkpoints, a note names it. One of
    ``exit_signals`` that `fit` handles in one, up to its return, ends all with status
    75. The next call may have another number of processes. The arguments are compared
    before anything is read or written. All must see the same folders, which are those
    that the first one names.

    Args:
        step: from `fngrad.make_step`, or any ``(state, batch) -> (state, metrics)``
            whose metrics are scalars.
        state: where to start; ``state.step`` counts the steps already made.
        data: a dataset, a source (`fngrad.data.from_source`), a pure function
            ``step -> batch``, or an iterable of batches. If its iterator has
            ``get_state`` and ``set_state``, as grain's have, checkpoints hold its
            state; else a warning says that such a run cannot be resumed exactly.
        num_steps: the step at which the run ends, counted from step 0, not from the
            call; a state that is there already is returned, with a message on stderr.
            ``None`` with an iterable means until it ends; one that ends before
            ``num_steps`` ends the run, with a warning.
        num_epochs: the same in epochs, which are passes over a dataset.
        metric_fn: see `fngrad.evaluate`; its metrics are recorded under ``val/``. It
            computes in the parameters' dtypes, also where the step has a ``precision``;
            `fngrad.mixed_precision` gives it another.
        eval_data: what to evaluate: arrays, which are read from disk once, with a
            warning; a dataset or a source.
        eval_every: the number of steps between evaluations, or ``"epoch"``. There is
            also one at the end of a run that completes or exhausts its data.
        run_dir: folder for config.json, manifest.json, metrics.jsonl and curves.png,
            such as a fresh one from `fngrad.logging.new_run`; see ``fngrad runs``.
            If it has records of steps that this run would make again, the call is
            refused; a run that resumes from a checkpoint removes them instead.
        config: what config.json holds: a dataclass, a NamedTuple or a dict. A run is
            not resumed with a different one.
        checkpoint_dir: folder for checkpoints, see above.
        resume: ``auto`` resumes from a checkpoint if there is one; ``must`` raises if
            there is none; ``never`` raises if there is one; ``overwrite`` moves the old
            run folder and checkpoint folder aside, to ``<name>.1`` or the next free
            number, says so on stderr, and begins anew. On resuming, the values of
            ``state`` are ignored and only its structure is used; config, data, batch
            size and key must be those of the checkpoint. The batches of an iterable
            without a state are taken from its beginning, with a warning; ``must``
            refuses one. A warning says which of loss, optimizer, ``metric_fn`` and
            ``eval_data`` have changed; ``must`` refuses that too
            (`fngrad.fitting.program_changes`).
        save_every: the number of steps between checkpoints. A thread writes them, for
            about 0.1 s each however small the state is, see `fngrad.checkpoint.save`.
        save_minutes: the number of minutes between checkpoints.
        keep: how many of the newest checkpoints to keep.
        keep_best: keep the best evaluation: its checkpoint, if any are written, and in
            ``history.best`` its step, its metrics and a copy of its state on the host.
            It is the best by a metric whose name implies its direction (see
            `fngrad.metrics.directions`), or by a pair ``(metric, "min" or "max")``. The
            default is ignored if that metric is not measured. With the default or
            ``None``, ``history.best`` is the best by the metric of early stopping; with
            ``None`` and without early stopping none is kept.
        on_save_error: what happens if a checkpoint cannot be written, as on a full
            disk. ``raise`` ends the run with the state in the error; ``warn``
            continues; either way the last good checkpoint remains. The same holds for
            metrics.jsonl, whose records ``warn`` keeps until they can be written. A
            failure to write a picture or a manifest is always a warning.
        early_stopping: when to end a run that no longer improves.
        restore_best: whether to return the state of ``history.best`` instead of the
            last one, which checkpoints keep.
        eval_first: whether to evaluate the state of step 0 too. Loggers and callbacks
            then get the evaluation's metrics alone at step 0.
        log_every: the number of steps between calls of loggers and callbacks, which
            are also called at evaluations and at the end. ``None`` means about a
            hundred times per run, 100 to 1000 steps apart, or oftener if a run would
            have fewer than 20 records; without a known last step, every 100 steps.
        loggers: called as ``logger(step, values)`` with floats by name. The other
            methods of `fngrad.logging.Logger` are called too, where a logger has them.
            One that raises is left out from then on, with one warning; the run
            continues.
        callbacks: called as ``callback(step, state, values)``; each may return a new
            state, of this step or a later one, or ``fngrad.STOP``. The state is valid
            during the call only; keep a ``fngrad.snapshot`` of it.
        exit_signals: the signals that mean "save and exit", by name or number, such as
            ``("SIGTERM", "SIGUSR1")``. Without checkpoints none does.
        on_nonfinite: what happens if a loss or gradient norm is not finite. ``raise``
            ends the run within one chunk; the error carries the `fngrad.autopsy` of
            the step, if that takes at most 300 seconds. ``skip`` keeps the state from
            before the step and continues with the next batch, see
            `fngrad.steps.skip_bad_steps`; more than 10 such steps in a row raise.
            ``rollback`` returns to the newest checkpoint, lowers the learning rate
            that `fngrad.tunable` keeps and continues; ``history.notes["rollbacks"]``
            lists these; 10 in a row that get no further raise. ``ignore`` only records
            ``is_finite``. Except with ``ignore``, a state that is not finite is never
            saved.
        rollback_factor: what a rollback multiplies the learning rate by, in (0, 1).
        require: the backend to require: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        loop: ``python`` dispatches each step; ``scan`` runs the steps between two stops
            of the host in one program, a ``fori_loop`` that compiles once; ``auto``
            times both on copies of the state and takes the faster. ``history.notes``
            and the manifest record which and why; a later call with the same
            ``run_dir`` or checkpoints takes the same.
        mesh: the devices to train on, see `fngrad.sharding.make_mesh`; by default those
            of the state, or of `jax.set_mesh`. The state is placed by the step's
            ``rule``, or else is whole on every device; one that is on the mesh stays
            there. Batches are split over the axis ``data``, by which their size must be
            divisible; arrays are copied to every device once, unless they are on the
            mesh, as with `fngrad.sharding.shard_batch`.
        progress: whether to show a progress bar, if tqdm is installed. Its rate and
            remaining time leave compiling out.

    Returns:
        The last state, or the best, the history of all metrics, and why the run ended:
        ``"completed"``, ``"early_stopping"``, ``"callback"``, ``"interrupted"``, or
        ``"exhausted"`` if the data ended. ``history.notes["seconds"]`` and the
        manifest say what this call's wall time was spent on, by the parts of
        `fngrad.logging.time_spent`; a call that resumes counts anew.

    Raises:
        ValueError: if an argument is out of range or conflicts with another, a folder
            is a URL, a metric to watch is not measured or has no known direction, a
            metric's name is taken, the step returns a state unlike the one it was
            given (the leaf is named), an argument differs between processes, a
            checkpoint is of another run (the differences are named) or of an earlier
            step than the state, or there are checkpoints and ``resume="never"``; if the
            mesh has Explicit axes, cannot split the batch, or the state is on another
            mesh or placed by another rule; if a function of the step, or a map of the
            data, gives something else in another call with the same arguments.
        FileNotFoundError: if ``resume="must"`` and there is no checkpoint.
        TypeError: if the data are of an unknown kind, a leaf of the state is not an
            array, the step is a loss, callbacks or loggers take other arguments, a
            function cannot be traced, or ``exit_signals`` is not a sequence of names
            and numbers.
        NonFiniteError: see ``on_nonfinite``.
        PeerError: if an exception ended another process.
        SaveError: see ``on_save_error``.
        RuntimeError: if the backend is not the required one, an argument was donated,
            another process uses a folder (`fngrad.files.locks.LockError`), or JAX knows
            of several processes that `fngrad.distributed.initialize` did not connect.
        ImportError: if checkpoints are to be written and orbax-checkpoint is missing.
        SystemExit: if one of ``exit_signals`` came and checkpoints are written.
        Exception: whatever a callback or the data raise.

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
    arguments = Arguments.among(locals())
    with TimeSpent().listening() as spent, contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))
        rules, reporting, exits = arguments.destinations()
        interrupted = stack.enter_context(handled_signals(exits=exits))
        peers = Coordination(interrupted)
        rules = rules._replace(folder=peers.folder_of_the_first(rules.folder))
        if not peers.is_alone:
            with peers.together():
                settings = arguments.settings(is_saved=rules.folder is not None)
            peers.check_same(settings)
        run = arguments.run(rules, reporting)
        return _fit(run, interrupted, peers, spent, stack)


def _fit(
    run: Run,
    interrupted: Interruption,
    peers: Coordination,
    spent: TimeSpent,
    stack: contextlib.ExitStack,
) -> FitResult:
    """Check what tracing reveals, find where the call begins, and train from there."""
    stack.callback(run.guard.feed.close)
    run = run.traced()
    rules, reporting, evaluation = run.rules, run.reporting, run.evaluation
    state, feed = run.guard.state, run.guard.feed
    checkpoints = opened(stack, reporting.run_dir, rules, peers)
    start = begin_or_resume(
        checkpoints, rules.resume, state, feed, reporting.config, run.programs
    )
    stops = run.intervals.stops(feed, start.step)
    listens = peers.any(reporting.has_listeners)
    stops = start.logging_at(stops, run.intervals.log_every, listens)
    peers.check_same(_found(stops))
    if stopped := stopped_before(start, stops, evaluation):
        start.history.notes["seconds"] = spent.seconds()
        return finished(start.state, start.history, stopped, evaluation)
    print_resumed(start, stops, rules.folder)
    with peers.together():
        outputs = Outputs(
            reporting=reporting.of(peers),
            rules=rules,
            feed=feed,
            stops=stops,
            start=start,
            key=state.key,
            spent=spent,
            about=run.facts,
        )
    plan = Plan(
        metrics=run.metrics,
        stops=stops,
        outputs=stack.enter_context(outputs),
        evaluation=evaluation,
        callbacks=reporting.callbacks,
        saver=Saver(rules, checkpoints, stops, start) if checkpoints else None,
        guard=run.guard,
        spent=spent,
        peers=peers,
    )
    return _train(plan, start, run.loop, interrupted)


def _found(stops: Stops) -> dict[str, Any]:
    """Return what a process found of its own that must be the same in all."""
    return {
        "the step to begin at": stops.first,
        "the last step": stops.last,
        "the steps between records": stops.log_every,
    }


def _train(plan: Plan, start: Start, loop: Any, interrupted: Interruption) -> FitResult:
    step, feed, outputs = plan.guard.step, plan.guard.feed, plan.outputs
    if feed.comes_from_host:
        feed.watch(plan.spent.waiting_for)
    carry = begin(start.state, plan.metrics, feed.arrays)
    placement = placement_of(carry)
    compilations = begin_compilations(step, feed, placement)
    remaining = plan.stops.last - plan.stops.first
    peers = plan.peers
    choice = decided_loop(loop, start, outputs, peers) or choose(
        step, feed, carry, remaining, interrupted, peers
    )
    if not interrupted.is_set():  # otherwise the choice may have been cut short
        outputs.begin(choice.loop, choice.reason)
    notes = start.history.notes
    notes.update(choice._asdict(), **compilations.notes())
    advance = make_loop(choice.loop, step, feed, placement, peers)
    session = Session(plan, start, carry, advance)
    try:
        stopped = session.run(interrupted)
        notes.update(compilations.notes())
        state, history = session.carry.state, session.history
        outputs.finish(history, stopped, int(state.step))
        outputs.loggers.ending = interrupted.ending
        outputs.close()
        heard = plan.meet()
    except BaseException as error:
        notes.update(compilations.notes())
        session.attach_to(error)
        notes["seconds"] = plan.spent.seconds()
        raise
    reached = int(state.step)
    is_saved = bool(plan.saver and plan.saver.has(reached))
    interrupted.reached = reached, is_saved
    if interrupted.raised is not None:
        attach(interrupted.raised, state, history)
    elif heard.interrupted and interrupted.terminated is None:
        print_interrupted(None, reached, is_saved)
    notes["seconds"] = plan.spent.seconds()
    return finished(state, history, stopped, plan.evaluation)

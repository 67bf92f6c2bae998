"""A run that is tried before it is made: what it would take, with nothing written."""

import contextlib
import inspect
import time
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

import fngrad.programs.text_tables as text_tables
from fngrad.checkpoint import Checkpoints
from fngrad.data.dataset import batch_size_of
from fngrad.files.locks import Lock
from fngrad.fitting.arguments import Arguments, Run
from fngrad.fitting.coordination import Coordination
from fngrad.fitting.inputs import Feed
from fngrad.fitting.interrupts import Interruption
from fngrad.fitting.intervals import ENDLESS, Stops, next_chunk
from fngrad.fitting.iterables import set_back
from fngrad.fitting.loops import (
    Advance,
    Carry,
    begin,
    make_loop,
    memory,
    placement_of,
)
from fngrad.fitting.outputs import Outputs, Reporting, may_cut_records
from fngrad.fitting.plan import Plan
from fngrad.fitting.resume import Start, begin_or_resume, stopped_before
from fngrad.fitting.session import Session
from fngrad.fitting.training_loop import fit
from fngrad.fitting.validation import Evaluation
from fngrad.logging.history import History
from fngrad.logging.run_folder import check_continues, config_entries
from fngrad.logging.time_spent import TimeSpent
from fngrad.programs.compiled_memory import Memory
from fngrad.programs.operation_counts import Costs, costs
from fngrad.programs.printed import preformatted, shown
from fngrad.programs.units import seconds_text

TIMED = 0.25  # seconds for steps that are made only to be timed
LONG = 1.0  # seconds of an evaluation that is not made again to be timed

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DryRun(NamedTuple):
    """What a run would take; see `fngrad.dry_run`."""

    steps: int | None  # that are to be made; None until an iterable ends
    evaluations: int | None  # that are to be made; None if the steps are unknown
    examples: int | None  # in a batch; None if its arrays have no common first axis
    costs: Costs  # of one step, on all devices together
    memory: Memory | None  # bytes on each device: of the step's program, with its data
    compile_seconds: float  # tracing and compiling, the evaluation too
    step_seconds: float  # of a step once it is compiled
    evaluation_seconds: float  # of a second evaluation, if there is time; 0 without
    metrics: dict[str, float]  # of the step and the evaluation that were made

    @property
    def seconds(self) -> float | None:
        """The estimate of the whole run: compiling, steps, evaluations."""
        if self.steps is None or self.evaluations is None:
            return None
        evaluations = self.evaluations * self.evaluation_seconds
        return self.compile_seconds + self.steps * self.step_seconds + evaluations

    def __repr__(self) -> str:
        return shown(self, _text)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def _with_the_arguments_of(
    model: Callable[_P, Any],
) -> Callable[[Callable[..., _T]], Callable[_P, _T]]:
    """Give a function of any arguments the signature of another one."""

    def decorate(fn: Callable[..., _T]) -> Callable[_P, _T]:
        returned = inspect.signature(fn).return_annotation
        signature = inspect.signature(model, eval_str=True)
        own = signature.replace(return_annotation=returned)
        fn.__signature__ = own  # type: ignore[attr-defined]
        return fn

    return decorate


@_with_the_arguments_of(fit)
def dry_run(*args: Any, **options: Any) -> DryRun:
    """Try a run with the arguments of `fngrad.fit`, and write nothing.

    It checks all arguments as `fngrad.fit` does, traces and compiles the step and the
    evaluation, makes one step and one evaluation on a copy of the state, and further
    steps, for about a quarter of a second, to time them. What it accepts, `fit`
    accepts. No folder is made or changed: a checkpoint that the run would resume from
    is read, and the step is made from there. Loggers and callbacks are checked and not
    called. No signal is handled.

    The program of ``loop="python"`` is measured, unless ``loop="scan"`` asks for the
    other. It stays compiled for a call of `fngrad.fit` in the same process. Writing
    checkpoints, pictures and logs, callbacks, and choosing between the loops take time
    that is not in the estimate.

    Args:
        args: ``step, state, data``, as for `fngrad.fit`. An iterator that gives each
            batch once is refused, as is an iterable whose loops share one, unless it
            has ``get_state`` and ``set_state``, by which it is set back; a list or a
            loader, which makes a new iterator for each loop, is read from its
            beginning.
        options: all others, as for `fngrad.fit`.

    Returns:
        How many steps, evaluations and examples there would be, the FLOPs of a step,
        the bytes of its program on each device, or None if the backend does not report
        them, the seconds that compiling, a step and an evaluation took, the estimate of
        all ``seconds``, and the metrics.

    Raises:
        TypeError: as `fngrad.fit`, or if the data can be read only once.
        ValueError, RuntimeError, ImportError, FileNotFoundError: as `fngrad.fit`.
        NonFiniteError: if the step that is made is not finite, see ``on_nonfinite``.
        Exception: whatever the data raise.

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
        >>> found = fg.dry_run(step, state, data, num_epochs=20, run_dir="runs/a")
        >>> found.steps, found.examples, found.seconds > 0
        (40, 4, True)
    """
    bound = inspect.signature(fit).bind(*args, **options)
    bound.apply_defaults()
    arguments = Arguments.among(bound.arguments)
    with TimeSpent().listening() as spent, contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))
        stack.enter_context(set_back(arguments.data))
        rules, reporting, _ = arguments.destinations()
        run = arguments.run(rules, reporting)
        stack.callback(run.guard.feed.close)
        run = run.traced()
        return _made(run, _start(run), spent, stack)


def _start(run: Run) -> Start:
    """Return where the run would begin; read its folders and write nothing.

    Raises:
        ValueError, RuntimeError, FileNotFoundError: see `fngrad.fit`.
    """
    rules, reporting, guard = run.rules, run.reporting, run.guard
    for folder in (reporting.run_dir, rules.folder):
        if folder is not None:
            Lock(folder).check()
    found = None
    if rules.folder is not None and rules.resume != "overwrite":  # moved aside
        found = Checkpoints(rules.folder, keep=rules.keep)
    return begin_or_resume(
        found, rules.resume, guard.state, guard.feed, reporting.config, run.programs
    )


def _check_run_dir(run: Run, start: Start) -> None:
    """Raise unless the run folder can take the records of the run.

    Raises:
        ValueError, TypeError: see `fngrad.fit`.
    """
    folder = run.reporting.run_dir
    if folder is None:
        return
    config = config_entries(run.reporting.config)
    if run.rules.resume == "overwrite":  # it is moved aside
        return
    may_cut_records(folder, run.rules, start)
    check_continues(folder, config=config, data=run.guard.feed.fingerprint)


def _made(
    run: Run, start: Start, spent: TimeSpent, stack: contextlib.ExitStack
) -> DryRun:
    """Make a step and an evaluation, and time further steps."""
    step, feed = run.guard.step, run.guard.feed
    stops = run.intervals.stops(feed, start.step)
    steps, evaluations = _steps(stops), _evaluations(stops, start, run.evaluation)
    if stopped_before(start, stops, run.evaluation):
        steps = evaluations = 0
    else:
        _check_run_dir(run, start)
    name = "scan" if run.loop == "scan" else "python"
    carry = begin(start.state, run.metrics, feed.arrays)
    interrupted = Interruption()
    peers = Coordination(interrupted)
    advance = make_loop(name, step, feed, placement_of(carry), peers)
    taken = memory(name, step, feed, carry)
    plan = _plan(run, start, stops, spent, peers, stack)
    session = Session(plan, start._replace(notes={}), carry, advance)
    session.run(interrupted)
    seconds, now = spent.seconds(), stops.first + 1
    state = run.guard.state
    batch = feed.abstract_batch(state.step)
    evaluation_seconds = _evaluation_seconds(
        session.carry, plan.evaluation, seconds["evaluating"], peers
    )
    step_seconds = _step_seconds(session.carry, advance, feed, now, stops.last, peers)
    return DryRun(
        steps=steps,
        evaluations=evaluations,
        examples=batch_size_of(batch),
        costs=costs(step, state, batch),
        memory=taken,
        compile_seconds=seconds["tracing"] + seconds["compiling"],
        step_seconds=seconds["stepping"] if step_seconds is None else step_seconds,
        evaluation_seconds=evaluation_seconds,
        metrics=_scalars(session.history, now),
    )


def _plan(
    run: Run,
    start: Start,
    stops: Stops,
    spent: TimeSpent,
    peers: Coordination,
    stack: contextlib.ExitStack,
) -> Plan:
    """Return the plan of one step and one evaluation, which reports to nobody."""
    outputs = Outputs(
        reporting=Reporting(None, None, (), (), False),
        rules=run.rules,
        feed=run.guard.feed,
        stops=stops,
        start=start,
        key=run.guard.state.key,
        spent=spent,
        about=run.facts,
    )
    evaluation = run.evaluation and Evaluation(
        run.evaluation.metric_fn, run.evaluation.data, early_stopping=None
    )
    return Plan(
        metrics=run.metrics,
        stops=stops._replace(last=stops.first + 1),
        outputs=stack.enter_context(outputs),
        evaluation=evaluation,
        callbacks=(),
        saver=None,
        guard=run.guard,
        spent=spent,
        peers=peers,
    )


def _step_seconds(
    carry: Carry,
    advance: Advance,
    feed: Feed,
    now: int,
    last: int,
    peers: Coordination,
) -> float | None:
    """Return the seconds of a step, in the longest chunk that was timed.

    The clock of the first process decides. They are None if the run or its data have
    no further step.

    Raises:
        Exception: what the data raise.
    """
    chunk, spent, found = 1, 0.0, None
    while now < last and spent < TIMED:
        length = min(chunk, last - now)
        feed.seek(now)
        began = time.perf_counter()
        carry, made = advance(carry, length)
        jax.block_until_ready(carry)
        seconds = peers.agree(time.perf_counter() - began)
        if feed.failure is not None:
            raise feed.failure
        if made < length:
            break
        now, spent, found = now + made, spent + seconds, seconds / made
        chunk = next_chunk(chunk, length, seconds)
    return found


def _evaluation_seconds(
    carry: Carry, evaluation: Evaluation | None, first: float, peers: Coordination
) -> float:
    """Return the seconds of a second evaluation, or of the first if that took long.

    A first one also loads its programs and makes its buffers. The clock of the first
    process decides.
    """
    if evaluation is None or peers.agree(first) > LONG:
        return first
    began = time.perf_counter()
    jax.block_until_ready(evaluation.values(carry.state, peers))
    return time.perf_counter() - began


def _steps(stops: Stops) -> int | None:
    """Return how many steps are to be made; None if the end is unknown."""
    return None if stops.last == ENDLESS else max(stops.last - stops.first, 0)


def _evaluations(
    stops: Stops, start: Start, evaluation: Evaluation | None
) -> int | None:
    """Return how many evaluations are to be made; None if the end is unknown."""
    if evaluation is None:
        return 0
    if stops.last == ENDLESS:
        return None
    if start.report:  # an earlier call has not completed its last step
        is_due = start.report.evaluates and start.report.values is None
    else:
        is_due = evaluation.begins and stops.first == 0 and not start.history
    return stops.evaluations() + int(is_due)


def _scalars(history: History, now: int) -> dict[str, float]:
    """Return the scalars that were recorded at a step."""
    names = [name for name in history if history.steps(name)[-1] == now]
    last = {name: history.last(name) for name in names}
    return {name: value for name, value in last.items() if np.ndim(value) == 0}


def _text(it: DryRun) -> str:
    steps = "unknown steps" if it.steps is None else f"{it.steps:,} steps"
    batches = "" if it.examples is None else f" of {it.examples:,} examples"
    total = "" if it.seconds is None else f", about {seconds_text(it.seconds)}"
    rate = it.costs.flops / max(it.step_seconds, 1e-9)
    work = f"{it.costs.flops:,} FLOPs, {rate:.2g} per second"
    rows = [
        ["compiling", seconds_text(it.compile_seconds), ""],
        ["step", seconds_text(it.step_seconds), work],
    ]
    if it.evaluations != 0:
        times = "" if it.evaluations is None else f"{it.evaluations:,} times"
        rows.append(["evaluation", seconds_text(it.evaluation_seconds), times])
    table = text_tables.table([*rows, *(it.memory.rows() if it.memory else [])])
    return f"DryRun: {steps}{batches}{total}\n{table}"

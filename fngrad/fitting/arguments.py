"""The arguments of `fngrad.fit`, and a run whose arguments were checked."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

import fngrad.logging.manifest as manifest
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.reads_from_disk import in_memory
from fngrad.data.sources import Source
from fngrad.files.json_values import to_json
from fngrad.files.local_paths import absolute
from fngrad.fitting.checkpointing import DEFAULT_BEST, SaveRules, checkpoint_folder
from fngrad.fitting.early_stopping import EarlyStopping
from fngrad.fitting.hooks import Callback, Hooks, RunView
from fngrad.fitting.inputs import check_state, checked_feed
from fngrad.fitting.interrupts import SignalName, exit_numbers
from fngrad.fitting.intervals import Intervals
from fngrad.fitting.mesh import placed_run, warn_of_hidden_rules
from fngrad.fitting.nonfinite import Guard, Policy
from fngrad.fitting.outputs import Reporting
from fngrad.fitting.program_changes import record
from fngrad.fitting.recording import Loggers
from fngrad.fitting.resume import Resume
from fngrad.fitting.step_checks import TracedStep, check_step
from fngrad.fitting.validation import Evaluation
from fngrad.logging import Logger
from fngrad.logging.history import History
from fngrad.logging.progress import print_to_stderr
from fngrad.logging.time_spent import TimeSpent
from fngrad.metrics.directions import Metric
from fngrad.programs.platforms import check_backend
from fngrad.programs.product_precisions import float32_precisions
from fngrad.sharding.constraints import rules_in_use
from fngrad.training import Step, TrainState
from fngrad.training.metric_folds import check_examples


class Run(NamedTuple):
    """A run whose arguments were checked."""

    intervals: Intervals
    rules: SaveRules
    reporting: Reporting
    evaluation: Evaluation | None
    guard: Guard  # with step, state and data
    loop: Any
    metrics: dict[str, Any]  # the shapes and dtypes of the step's; empty if not traced
    programs: dict[str, Any]  # their fingerprints, if the run is saved
    facts: dict[str, Any]  # of the step, for the manifest; empty if not traced

    def traced(self) -> "Run":
        """Check what tracing reveals, and complete what depends on it.

        Raises:
            ValueError, TypeError, RuntimeError: see `fngrad.fit`.
        """
        state, feed = self.guard.state, self.guard.feed
        with rules_in_use() as rules:
            step = check_step(self.guard.step, state, feed)
        warn_of_hidden_rules(self.guard.step, state.params, rules, feed.mesh)
        evaluation = self.evaluation
        measured = evaluation and evaluation.measured(state, step.metrics)
        names = measured and measured.names
        save_rules = self.rules.resolved(names)
        if evaluation is not None:
            evaluation = evaluation.watching(save_rules.best, DEFAULT_BEST, names)
        self.intervals.stops(feed, 0)  # raises before anything is written
        self._check_hooks(step.metrics)
        is_saved = save_rules.folder is not None
        return self._replace(
            rules=save_rules,
            evaluation=evaluation,
            metrics=step.metrics,
            programs=record(step, state, measured, feed.mesh) if is_saved else {},
            facts={"float32_products": _float32_products(step)},
        )

    def _check_hooks(self, metrics: dict[str, Any]) -> None:
        state = self.guard.state
        view = RunView(
            first=int(state.step),
            folder=self.reporting.run_dir,
            metrics=frozenset(metrics),
            history=History(),
            spent=TimeSpent(),
            print=print_to_stderr,
            state=state,
            guard=self.guard,
            loggers=Loggers(self.reporting.loggers),
        )
        Hooks(self.reporting.callbacks).check(view)


def _float32_products(step: TracedStep) -> str:
    precisions = float32_precisions(step.program.closed)
    return manifest.products_in_words(jax.default_backend(), precisions)


ALIKE = (  # in all processes; folders are those of the first
    *("resume", "num_steps", "num_epochs", "eval_every", "eval_first", "log_every"),
    *("save_every", "save_minutes", "keep", "keep_best", "on_save_error"),
    *("early_stopping", "restore_best", "on_nonfinite", "rollback_factor", "loop"),
    "mesh",
)


class Arguments(NamedTuple):
    """The arguments of `fngrad.fit`, which describes them."""

    step: Step
    state: TrainState
    data: Any
    num_steps: int | None
    num_epochs: int | None
    metric_fn: Callable[..., Any] | None
    eval_data: Any
    eval_every: Literal["epoch"] | int
    run_dir: str | PathLike[str] | None
    config: Any
    checkpoint_dir: str | PathLike[str] | None
    resume: Resume
    save_every: int | None
    save_minutes: float | None
    keep: int
    keep_best: Metric | None
    on_save_error: Literal["raise", "warn"]
    early_stopping: EarlyStopping | None
    restore_best: bool
    eval_first: bool
    log_every: int | None
    loggers: Sequence[Logger]
    callbacks: Sequence[Callback]
    exit_signals: Sequence[SignalName]
    on_nonfinite: Policy
    rollback_factor: float
    require: str | None
    loop: Literal["auto", "python", "scan"]
    mesh: Mesh | None
    progress: bool

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> "Arguments":
        """Return the arguments among the local variables of a function, by name."""
        return cls(**{name: values[name] for name in cls._fields})

    def destinations(self) -> tuple[SaveRules, Reporting, tuple[int, ...]]:
        """Return what is saved and reported, and the signals that end the process.

        Raises:
            ValueError, TypeError, RuntimeError, ImportError: see `fngrad.fit`.
        """
        check_backend(self.require)
        rules = SaveRules(
            folder=checkpoint_folder(
                self.checkpoint_dir, self.run_dir, self.save_every, self.save_minutes
            ),
            resume=self.resume,
            every=self.save_every,
            minutes=self.save_minutes,
            keep=self.keep,
            best=self.keep_best,
            on_error=self.on_save_error,
        )
        rules.check(evaluates=self.metric_fn is not None)
        reporting = Reporting(
            absolute(self.run_dir),
            self.config,
            self.loggers,
            self.callbacks,
            self.progress,
        )
        reporting.check(self.state)
        exits = exit_numbers(self.exit_signals, is_saved=bool(rules.folder))
        return rules, reporting, exits

    def settings(self, *, is_saved: bool) -> dict[str, Any]:
        """Return what all processes must be given alike, by its name.

        Args:
            is_saved: whether checkpoints are written; they hold the config.

        Raises:
            TypeError, ValueError, RuntimeError: as `check_state`.
        """
        check_state(self.state)
        order = self.data.order if isinstance(self.data, Source) else self.data
        order = order if isinstance(order, Dataset) else None
        alike: dict[str, Any] = {name: getattr(self, name) for name in ALIKE}
        alike["the state's key"] = _bits(self.state.key)
        alike["the data's key"] = _bits(getattr(order, "key", None))
        for name in ("size", "batch_size"):
            alike[f"the data's {name}"] = getattr(order, name, None)
        alike["metric_fn"] = "None" if self.metric_fn is None else "a function"
        alike["eval_data"] = "None" if self.eval_data is None else "data"
        alike["the number of callbacks"] = len(self.callbacks)
        alike["config"] = to_json(self.config, "config") if is_saved else None
        return alike

    def run(self, rules: SaveRules, reporting: Reporting) -> Run:
        """Return the run with its state and data placed; read the first batch.

        Raises:
            ValueError, TypeError, RuntimeError: see `fngrad.fit`.
        """
        check_examples(self.eval_data)
        eval_data = in_memory(self.eval_data)  # once, and not at every evaluation
        mesh, state, data, eval_data = placed_run(
            self.mesh, self.step, self.state, self.data, eval_data
        )
        feed = checked_feed(self.step, data, eval_data, self.loop, mesh)
        evaluation = Evaluation.of(
            self.metric_fn,
            eval_data,
            self.early_stopping,
            self.eval_first,
            self.restore_best,
        )
        if evaluation is None and self.eval_every not in ("epoch", None):
            every = repr(self.eval_every)
            raise ValueError(f"need metric_fn and eval_data for eval_every={every}")
        guard = Guard.of(
            self.on_nonfinite, self.rollback_factor, self.step, state, feed
        )
        guard.check_rollback(is_saved=bool(rules.folder))
        intervals = Intervals(
            self.num_steps,
            self.num_epochs,
            self.log_every,
            self.eval_every if evaluation else None,
            self.save_every,
        )
        return Run(
            intervals, rules, reporting, evaluation, guard, self.loop, {}, {}, {}
        )


def _bits(key: Any) -> Any:
    """Return the bits of a random key; None for anything else, refused elsewhere."""
    is_key = hasattr(key, "dtype") and tree.is_key(key)
    return jax.random.key_data(key).tolist() if is_key else None

"""The autopsy: replay the run, evaluate the bad step, find the cause, report it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.postmortem.evidence as evidence
import fngrad.programs.jaxprs as jaxprs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.foreign_datasets import check_foreign
from fngrad.data.sources import Source
from fngrad.postmortem.findings import Autopsy
from fngrad.postmortem.replay import Replay, outputs_of, replay
from fngrad.postmortem.root_cause import RootCause, find_root_cause
from fngrad.postmortem.source_locations import layer_of, lines_of
from fngrad.training import Step, TrainState, check_train_state
from fngrad.types import Path

MAX_STEPS = 10_000  # to repeat when ``at`` is None


def autopsy(
    step: Step,
    state: TrainState,
    data: Any,
    at: int | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Autopsy:
    """Find the operation that made a step's loss, gradient or state not finite.

    The run is repeated from a good state up to the first bad step. That step is then
    evaluated operation by operation, within loops too. The autopsy names the first
    operation whose inputs are finite, whose outputs are not, and without which the
    step would have stayed finite: an infinity in a mask, or the log of 0 that a
    ``where`` drops, is not blamed. Nothing is donated and nothing is written, so the
    caller's state stays valid. It needs more memory than the compiled step: every
    intermediate value is an array of its own.

    Args:
        step: the step that went bad, from `fngrad.make_step`, `fngrad.steps` or
            elsewhere.
        state: a state of the run before it went bad; the closer, the faster.
        data: a dataset or a pure function ``step -> batch``, as the run had.
        at: the bad step, counted from 1, as in `fngrad.NonFiniteError`. An earlier bad
            step is found too: without norms among the metrics, a loss goes bad one
            step after the parameters. None searches the next 10,000 steps.
        check: called before every step and every operation; an exception that it
            raises ends the autopsy, for instance after a minute.

    Raises:
        TypeError: if the state is not a TrainState, or the data is neither a dataset
            nor a function.
        ValueError: if ``at`` is not after the state's step, if no step goes bad, or if
            the state is that of several runs.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.postmortem import autopsy
        >>> optimizer = fg.sgd(1.0)
        >>> step = fg.make_step(lambda w, batch: jnp.log(w), optimizer)
        >>> state = fg.init_state(jnp.array(2.0), optimizer, key=0)
        >>> found = autopsy(step, state, lambda step: None)
        >>> print(found.step, found.phase, found.explanation)
        4 forward log(-0.3667) = nan
    """
    _check(state, data, at)
    last = int(state.step) + MAX_STEPS if at is None else at
    # These flags would raise at the very numbers that are searched for.
    with jax.debug_nans(False), jax.debug_infs(False):
        return _diagnose(step, state, data, last, check)


def _diagnose(
    step: Step,
    state: TrainState,
    data: Any,
    last: int,
    check: Callable[[], None],
) -> Autopsy:
    found = replay(step, state, data, last, check)
    program, structure = jaxprs.trace(outputs_of(step), found.state, found.batch)
    paths = list(tree.leaf_paths(jax.tree.unflatten(structure, program.outputs)))
    checked = [i for i, path in enumerate(paths) if path in found.bad]
    arrays = jax.tree.leaves((found.state, found.batch))
    cause = find_root_cause(program, arrays, checked, check)
    if cause is None:
        return _unexplained(found, data)
    return _explained(found, data, cause, paths)


def _check(state: TrainState, data: Any, at: int | None) -> None:
    check_train_state(state)
    if jnp.shape(state.step) != ():
        raise ValueError(
            f"need the state of one run, got step with shape {jnp.shape(state.step)}"
        )
    check_foreign(data)
    if not (isinstance(data, Dataset | Source) or callable(data)):
        raise TypeError(
            "need a dataset or a function step -> batch, whose batches can be read "
            f"again, got {type(data).__name__}"
        )
    if at is None:
        return
    at = numerics.check_count("at", at, low=1)
    if at <= int(state.step):
        raise ValueError(
            "need a state before the bad step, got the state after step "
            f"{int(state.step)} and {at=}"
        )


def _explained(
    found: Replay, data: Any, cause: RootCause, paths: list[Path]
) -> Autopsy:
    origin = cause.origin
    leaves = evidence.leaves(found, cause)
    first = leaves[0] if leaves else None
    rows = evidence.rows(found, origin)
    return Autopsy(
        step=int(found.state.step) + 1,
        phase=evidence.phase(found, cause, paths),
        operation=next((e.primitive.name for e in origin.equations), None),
        explanation=evidence.explain(origin, first),
        lines=lines_of(origin.equations),
        layer=layer_of(origin.scopes),
        leaf=first,
        leaves=leaves,
        magnitudes=evidence.magnitudes(origin),
        rows=rows,
        indices=evidence.indices(data, found, rows),
        metrics=found.metrics,
        norms=evidence.norms(found.state.params),
    )


def _unexplained(found: Replay, data: Any) -> Autopsy:
    bad = ", ".join(found.bad) or "is_finite"
    return Autopsy(
        step=int(found.state.step) + 1,
        phase="unknown",
        operation=None,
        explanation=f"{bad} in the compiled step only, not operation by operation",
        lines=[],
        layer="",
        leaf=None,
        leaves=[path.removeprefix("state/") for path in found.bad],
        magnitudes=[],
        rows=None,
        indices=evidence.indices(data, found, None),
        metrics=found.metrics,
        norms=evidence.norms(found.state.params),
    )

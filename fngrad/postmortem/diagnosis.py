"""The autopsy: replay, evaluate, blame, report."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.postmortem.evidence as evidence
import fngrad.programs.slices as slices
import fngrad.tree as tree
from fngrad.data.dataset import Dataset, check_foreign
from fngrad.postmortem.blame import Verdict, find_culprit
from fngrad.postmortem.findings import Autopsy
from fngrad.postmortem.places import layer_of, lines_of
from fngrad.postmortem.replay import Replay, outputs_of, replay
from fngrad.training import Step, TrainState
from fngrad.types import Path

MAX_STEPS = 10_000  # that are made again where no bad step was named


def autopsy(
    step: Step,
    state: TrainState,
    data: Any,
    at: int | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Autopsy:
    """Find the operation that made a step's loss, gradient or state not finite.

    Steps are made again from a good state up to the first bad one. That one is then
    evaluated operation by operation, within loops too, and the first operation is
    named whose inputs are finite, whose outputs are not, and without which the step
    would have stayed finite: infinities that a mask is made of, or the log of 0 that
    a ``where`` drops, are not blamed. Nothing is donated and nothing is written; the
    state is the caller's still. It needs room: what a compiled step keeps for a moment
    is an array of its own here.

    Args:
        step: the step that went bad, from `fngrad.make_step` or `fngrad.steps`, or
            any other.
        state: of the run, before it went bad; the nearer, the faster.
        data: a dataset or a pure function ``step -> batch``, as the run had.
        at: the bad step, counted from 1, as in `fngrad.NonFiniteError`. An earlier one
            is found too: without norms among the metrics a loss goes bad one step
            after the parameters. None looks through the next 10,000.
        check: called before every step and every operation; what it raises ends the
            autopsy, after a minute for instance.

    Raises:
        TypeError: the state is no TrainState, or data of another kind.
        ValueError: ``at`` is not beyond the state, no step goes bad, or the state is
            that of many runs.

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
    # What these flags raise at is what is looked for.
    with jax.debug_nans(False), jax.debug_infs(False):
        return _inquire(step, state, data, last, check)


def _inquire(
    step: Step,
    state: TrainState,
    data: Any,
    last: int,
    check: Callable[[], None],
) -> Autopsy:
    found = replay(step, state, data, last, check)
    named = outputs_of(step)
    program, structure = slices.trace(named, found.state, found.batch)
    paths = list(tree.leaf_paths(jax.tree.unflatten(structure, program.outputs)))
    goals = [i for i, path in enumerate(paths) if path in found.bad]
    arrays = jax.tree.leaves((found.state, found.batch))
    verdict = find_culprit(program, arrays, goals, check)
    if verdict is None:
        return _unexplained(found, data)
    return _explained(found, data, verdict, paths)


def _check(state: TrainState, data: Any, at: int | None) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            f"need a TrainState from fngrad.init_state, got {type(state).__name__}"
        )
    if jnp.shape(state.step) != ():
        raise ValueError(
            f"need the state of one run, got step with shape {jnp.shape(state.step)}"
        )
    check_foreign(data)
    if not (isinstance(data, Dataset) or callable(data)):
        raise TypeError(
            "need a dataset or a function step -> batch, whose batches can be asked "
            f"for again, got {type(data).__name__}"
        )
    if at is None:
        return
    at = numerics.check_count("at", at, low=1)
    if at <= int(state.step):
        raise ValueError(
            "need a state from before the bad step, got the state after step "
            f"{int(state.step)} and {at=}"
        )


def _explained(
    found: Replay, data: Any, verdict: Verdict, paths: list[Path]
) -> Autopsy:
    culprit = verdict.culprit
    leaves = evidence.leaves(found, verdict)
    first = leaves[0] if leaves else None
    rows = evidence.rows(found, culprit)
    return Autopsy(
        step=int(found.state.step) + 1,
        phase=evidence.phase(found, verdict, paths),
        operation=next((e.primitive.name for e in culprit.equations), None),
        explanation=evidence.explain(culprit, first),
        lines=lines_of(culprit.equations),
        layer=layer_of(culprit.scopes),
        leaf=first,
        leaves=leaves,
        magnitudes=evidence.magnitudes(culprit),
        rows=rows,
        indices=evidence.indices(data, found, rows),
        metrics=found.metrics,
        norms=evidence.norms(found.state.params),
    )


def _unexplained(found: Replay, data: Any) -> Autopsy:
    told = ", ".join(found.bad) or "is_finite"
    return Autopsy(
        step=int(found.state.step) + 1,
        phase="unknown",
        operation=None,
        explanation=f"{told} in the compiled step alone, not operation by operation",
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

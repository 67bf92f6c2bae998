"""A step of a run: what it returns, by tracing it, and what is refused."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.programs.jaxprs as jaxprs
import fngrad.tree as tree
from fngrad.fitting.inputs import Feed, check_hashable, check_state
from fngrad.fitting.repeatable_batches import check_repeatable
from fngrad.programs.caller_warnings import warn
from fngrad.programs.undrawn_randomness import draws, without_key
from fngrad.sharding.placement import check_batch
from fngrad.training import Step, TrainState, call_step
from fngrad.transforms.evaluation_point import keeps_evaluation_state
from fngrad.types import Path

_UNCHANGED = (
    "the step returns model_state unchanged, so that statistics such as those of "
    "batch_norm stay as they are: layers train if they are given a key, as of "
    "loss_fn(params, model_state, batch, key), and evaluate without one; where that is "
    'meant, warnings.filterwarnings("ignore", "the step returns model_state")'
)
_UNDRAWN = (
    "the step gives no key to any layer that draws random numbers, so that {} does "
    "nothing: take a key, as loss_fn(params, batch, key), and pass it on, as "
    "model.apply(params, x, key=key); where that is meant, "
    'warnings.filterwarnings("ignore", "the step gives no key")'
)


class TracedStep(NamedTuple):
    """The program of a step, with the paths of what it reads and returns."""

    program: jaxprs.Program
    inputs: list[Path]  # of the leaves of (state, batch)
    outputs: list[Path]  # of the leaves of the new state, before those of the metrics
    metrics: dict[str, Any]  # their shapes and dtypes


def check_step(step: Step, state: TrainState, feed: Feed) -> TracedStep:
    """Trace a step without running it.

    A step that changed a shape, dtype or weak type of the state would compile again
    at every call. A warning says so if all of the model state stays as it is, or if
    layers such as dropout have no key.

    Raises:
        ValueError: if the step changes a leaf of the state (it is named), or a metric
            is not a real scalar, or is called ``step`` or ``val/...``; if the mesh
            cannot split the batch; or as `check_repeatable`.
        TypeError: if it is a loss or another function that is not a step; see
            `check_state`.
        RuntimeError: see `check_state`.
    """
    check_state(state)
    check_hashable(step, feed.static)
    batch = feed.abstract_batch(state.step)
    check_repeatable(feed, state.step)
    if feed.mesh is not None:
        check_batch(batch, feed.mesh)
    programs = []

    def outlines(state: TrainState, batch: Any) -> Any:
        program, structure = jaxprs.trace(jax.jit(step), state, batch)
        programs.append(program)
        return structure.unflatten(program.closed.out_avals)

    with without_key() as kinds:
        new_state, metrics = call_step(step, state, batch, outlines)
    check_like(state, new_state)
    if not metrics:
        raise ValueError("need at least one metric from the step, got none")
    taken = [name for name in metrics if name == "step" or name.startswith("val/")]
    if taken:
        raise ValueError(
            f"need metric names that are not taken, got {taken} from the step: "
            "'step' is the counter of steps, and 'val/...' are the metrics of an "
            "evaluation"
        )
    for name, metric in metrics.items():
        is_complex = jnp.issubdtype(metric.dtype, jnp.complexfloating)
        if metric.shape != () or is_complex:
            raise ValueError(
                "need real scalar metrics from the step, got "
                f"{metric.dtype}{list(metric.shape)} for {name!r}"
            )
    paths = [f"state/{path}" for path in tree.leaf_paths(state)]
    inputs = [*paths, *(f"batch/{i}" for i in range(len(jax.tree.leaves(batch))))]
    part = "state/model_state"
    if keeps_evaluation_state(state.model_state):
        part += "/current"
    if _is_unchanged(part, paths, programs[-1]):
        warn(_UNCHANGED)
    elif kinds and not draws(programs[-1].closed):
        warn(_UNDRAWN.format(" and ".join(sorted(kinds))))
    return TracedStep(programs[-1], inputs, paths, metrics)


def _is_unchanged(part: Path, paths: list[Path], program: jaxprs.Program) -> bool:
    """Return whether a part of the state has leaves, which a step all returns as given.

    Args:
        part: its path.
        paths: of the state's leaves, the first arguments and results of the program.
        program: of the step.
    """
    leaves = [i for i, x in enumerate(paths) if x == part or x.startswith(f"{part}/")]
    if not leaves:
        return False
    try:
        passed = jaxprs.passed_through(program.closed)
    except Exception:  # a later JAX may trace what is unknown here
        return False
    return all(passed[i] == i for i in leaves)


def check_like(state: TrainState, new_state: TrainState) -> None:
    """Raise unless a new state has the structure, shapes and dtypes of the old.

    Raises:
        ValueError: if it does not, or a leaf is weakly typed; the leaf is named.
    """
    difference = tree.mismatch(state, new_state)
    if difference:
        raise ValueError(f"need a state like the one before: {difference}")
    for path, leaf in tree.leaf_paths(new_state).items():
        if getattr(leaf, "weak_type", False):
            raise ValueError(
                "need strongly typed arrays in a new state, got a weak "
                f"{leaf.dtype} at {path!r}, which would compile another program; "
                "jnp.asarray(x, dtype) gives it a type"
            )

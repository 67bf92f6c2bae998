"""A run repeated up to the step that goes bad."""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.sources import Source
from fngrad.programs.signatures import batch_of
from fngrad.training import Step, TrainState
from fngrad.training.divergence import VERDICT, faults
from fngrad.types import Batch, Path

HISTORY = 4  # how many steps' metrics are kept


class Replay(NamedTuple):
    """The step that went bad, with its arguments."""

    state: TrainState  # before the step
    batch: Batch
    bad: list[Path]  # its bad outputs: state/params/..., metrics/loss, ...
    metrics: dict[str, np.ndarray]  # of the last steps, the bad one included
    is_bad: Callable[[Batch], bool]  # whether another batch makes the step bad


def replay(
    step: Step,
    state: TrainState,
    data: Any,
    last: int,
    check: Callable[[], None],
) -> Replay:
    """Make steps until one goes bad.

    Args:
        step: it is compiled, and donates nothing.
        state: the state to begin with.
        data: a dataset or a function ``step -> batch``.
        last: the last step to make, counted from 1.
        check: called before every step; may raise to give up.

    Raises:
        ValueError: if no step up to ``last`` goes bad.
    """
    first = int(state.step) + 1
    batch_at = reader(data)
    outputs = outputs_of(step)

    @jax.jit
    def attempt(state: TrainState, batch: Batch) -> tuple[Any, dict[Path, Any]]:
        made = outputs(state, batch)
        old, new = tree.leaf_paths(state), tree.leaf_paths(made["state"])
        sound = {f"state/{p}": tree.stays_finite(old[p], x) for p, x in new.items()}
        return made, sound

    def is_bad(batch: Batch) -> bool:
        return _faults(*attempt(state, batch)) is not None

    seen: collections.deque = collections.deque(maxlen=HISTORY)
    for _ in range(first, last + 1):
        check()
        batch = batch_at(state.step)
        made, sound = attempt(state, batch)
        metrics = jax.device_get(made["metrics"])
        seen.append(metrics)
        bad = _faults(made, sound)
        if bad is not None:
            together = {k: np.array([m[k] for m in seen]) for k in metrics}
            return Replay(state, batch, bad, together, is_bad)
        state = made["state"]
    raise ValueError(
        f"need a run that goes bad, got steps {first} to {last}, which stay finite"
    )


def outputs_of(step: Step) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """Return the step as a function whose outputs have the paths of `Replay.bad`."""

    def named(state: TrainState, batch: Batch) -> dict[str, Any]:
        new_state, metrics = step(state, batch)
        return {"metrics": metrics, "state": new_state}

    return named


def reader(data: Any) -> Callable[[Any], Batch]:
    """Return the function ``step -> batch`` of a dataset, a source or a function."""
    if isinstance(data, Source):
        return lambda number: data.batch(int(number))
    if not isinstance(data, Dataset):
        return jax.jit(functools.partial(batch_of, data))
    leaves, structure = jax.tree.flatten(data)
    program = _batch_program(structure)
    return lambda number: program(leaves, number)


@functools.lru_cache(maxsize=8)
def _batch_program(structure: Any) -> Callable[[Any, jax.Array], Batch]:
    """Return the program of a batch, compiled once for datasets of one kind.

    It takes the leaves: JAX would keep a dataset's maps alive with its structure.
    """
    return jax.jit(lambda leaves, n: jax.tree.unflatten(structure, leaves).batch(n))


def _faults(made: dict[str, Any], sound: dict[Path, Any]) -> list[Path] | None:
    """Return the paths of a step's bad outputs; None for a good step."""
    metrics = made["metrics"]
    bad = [f"metrics/{name}" for name in faults(metrics)]
    bad += [path for path, is_sound in sound.items() if not is_sound]
    says_so = VERDICT in metrics and not metrics[VERDICT]
    return bad if bad or says_so else None

"""Batches that are the same again: what a traced function must not draw on its own.

A function ``step -> batch`` and the maps of a dataset are called when a program is
traced, and not at every step. What they read or draw on the host, such as the next
entry of an iterator or numbers of a NumPy generator, becomes a constant of the program,
so that all steps would get one batch. Two calls give it away: their constants differ.
"""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.programs.jaxprs as jaxprs
import fngrad.tree as tree
from fngrad.fitting.dataset_reader import DatasetReader
from fngrad.fitting.inputs import Feed
from fngrad.programs.fingerprints import fingerprints
from fngrad.programs.signatures import batch_of, name_of
from fngrad.types import Batch, Path


def check_repeatable(feed: Feed, step: jax.Array) -> None:
    """Raise if the batch of a step depends on the call.

    The batch is traced and not computed. One that is constant in all steps passes, as
    it is meant in full-batch training.

    Args:
        feed: the data of a run; an iterable passes, as what has no maps.
        step: any step.

    Raises:
        ValueError: if two calls of a function, or of the maps, make different programs.
    """
    if feed.is_dataset or feed.is_source:
        _check_maps(feed)
    elif not feed.is_iterable:
        _check_function(feed.data, step)


def _check_function(fn: Callable[..., Any], step: jax.Array) -> None:
    called = _unjitted(fn)
    where = _difference(lambda _, step: batch_of(called, step), (), step)
    if where is not None:
        raise ValueError(
            f"need a function of the step alone, got {name_of(fn)}, with a batch{where}"
            " that changes from call to call: it is called while JAX traces the "
            "program and not at every step, so that one batch would serve all steps; "
            "fit takes an iterable of batches as it is, and "
            "jax.random.fold_in(key, step) draws inside the program"
        )


def _unjitted(fn: Any) -> Any:
    """Return what `jax.jit` made a function of, whose calls it would cache."""
    if isinstance(fn, types.MethodType):
        return types.MethodType(_unjitted(fn.__func__), fn.__self__)
    inner = getattr(fn, "__wrapped__", None)
    is_jitted = isinstance(fn, jax.stages.Wrapped) and inner is not None
    return _unjitted(inner) if is_jitted else fn


def _check_maps(feed: Feed) -> None:
    data = feed.data
    if feed.is_source:
        data = dataclasses.replace(data.order, arrays=feed.read_outline)
    maps = data.maps
    if not maps:
        return
    reader, leaves = DatasetReader.of(data), tree.leaf_paths(data)
    where = _difference(reader.batch, leaves, jnp.int32(0))
    if where is not None:
        raise ValueError(
            "need maps that are functions of the batch and a key alone, got "
            f"{', '.join(map(name_of, maps))}, with a batch{where} that changes from "
            "call to call: a map is called while JAX traces the program and not at "
            "every step, so that one draw would serve all steps; an argument named "
            "key is given another key of jax.random at every step"
        )


def _difference(
    read: Callable[[Any, jax.Array], Batch], argument: Any, step: jax.Array
) -> str | None:
    """Return where two batches of one step differ, as text; None if they do not."""
    paths: list[list[Path]] = []

    def twice(argument: Any, step: jax.Array) -> Any:
        batches = [read(argument, step), read(argument, step)]
        paths[:] = [list(tree.leaf_paths(batch)) for batch in batches]
        return batches

    program, _ = jaxprs.trace(twice, argument, step)
    first, second = paths
    if first != second:
        return ""
    results = program.outputs
    if results[: len(first)] == results[len(first) :]:  # also large constants
        return None
    inputs = [str(i) for i in range(len(program.inputs))]
    try:
        made = fingerprints(program.closed, inputs).outputs
    except Exception:  # a later JAX may trace what is unknown here
        return None
    pairs = zip(first, made, made[len(first) :], strict=False)
    return next((f" at {path!r}" for path, a, b in pairs if a != b), None)

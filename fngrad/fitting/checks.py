"""What is refused before a run begins."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.fitting.feeds import Feed
from fngrad.training import Step, TrainState, call_step


def check_backend(required: str | None) -> None:
    """Raise unless JAX runs on the required backend, ``None`` being any.

    Raises:
        RuntimeError: it runs on another.
    """
    backend = jax.default_backend()
    if required is not None and required != backend:
        raise RuntimeError(
            f"need the backend {required!r}, got {backend!r}: JAX found no "
            f"{required}, or the installed jaxlib has no support for it"
        )


def check_option(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless a value is one of those allowed.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"need {name} to be one of {allowed}, got {value!r}")


def check_functions(name: str, functions: Any, *arguments: Any) -> None:
    """Raise unless all of some functions take these arguments.

    Args:
        name: what they were passed as.
        functions: a list of functions.
        arguments: as they will be called with, by position.

    Raises:
        TypeError: no list, or an entry that cannot be called so.
    """
    if not isinstance(functions, Sequence) or isinstance(functions, str):
        raise TypeError(
            f"need a list of functions for {name}, got {type(functions).__name__}: "
            f"{name}=[...]"
        )
    for function in functions:
        if not callable(function):
            raise TypeError(f"need functions in {name}, got {function!r}")
        try:
            signature = inspect.signature(function)
        except ValueError:  # a builtin
            continue
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise TypeError(
                f"need functions of {len(arguments)} arguments in {name}, {FORMS[name]}"
                f", got {function!r} with the arguments {signature}: {error}"
            ) from None


FORMS = {
    "callbacks": "callback(step, state, values)",
    "loggers": "logger(step, values)",
}


def check_answer(answer: Any, now: int) -> None:
    """Raise unless what a callback returned is a state to go on from.

    Raises:
        TypeError: it is something else.
        ValueError: it is a state of an earlier step, whose records would come twice.
    """
    if not isinstance(answer, TrainState):
        raise TypeError(
            "need None, a TrainState or fngrad.STOP from a callback, "
            f"got {type(answer).__name__}"
        )
    check_state(answer)
    if int(answer.step) < now:
        raise ValueError(
            f"need a state of step {now} or later from a callback, got step "
            f"{int(answer.step)}; keep the step: state._replace(step=current.step)"
        )


def check_state(state: TrainState) -> None:
    """Raise unless a state can be copied and trained from.

    Raises:
        TypeError: it is no TrainState, or a leaf is no array.
        RuntimeError: a leaf was donated.
        ValueError: a state of many runs.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"need a TrainState from fngrad.init_state, got {type(state).__name__}"
        )
    for path, leaf in tree.leaf_paths(state).items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"need arrays in the state, got {type(leaf).__name__} at {path!r}"
            )
    check_not_donated("state", state)
    if jnp.shape(state.step) != ():
        raise ValueError(
            f"need the state of one run, got step with shape {jnp.shape(state.step)}; "
            "fngrad.run trains many under vmap"
        )


def check_loop(loop: str, feed: Feed) -> None:
    """Raise unless a loop can run over the data.

    Raises:
        ValueError: an unknown loop, or one in the program and batches from the host.
    """
    check_option("loop", loop, ("auto", "python", "scan"))
    if feed.is_iterable and loop == "scan":
        raise ValueError('need a dataset or a function of the step for loop="scan"')


def check_not_donated(name: str, given: Any) -> None:
    """Raise where an array that was passed in is there no more.

    Args:
        name: what it was passed as.
        given: any pytree; what is no JAX array passes.

    Raises:
        RuntimeError: a leaf was deleted; it is named.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise RuntimeError(
                f"need {name} that is still there, got a deleted array at "
                f"{tree.path_string(path)!r}: its memory was donated to an earlier "
                f"call; keep fngrad.snapshot({name}) of what is needed later"
            )


def check_step(step: Step, state: TrainState, feed: Feed) -> dict[str, Any]:
    """Trace a step without running it and return its metrics' shapes and dtypes.

    A state that comes back with another shape, dtype or weak type would compile
    every call anew.

    Raises:
        ValueError: the state comes back changed (the leaf is named), or a metric is
            not a scalar or is called ``step`` or as an evaluation's are.
        TypeError: a loss or another function that is not a step; see `check_state`.
        RuntimeError: see `check_state`.
    """
    check_state(state)
    check_hashable(step, feed.static)
    batch = feed.abstract_batch(state.step)
    shapes = functools.partial(jax.eval_shape, jax.jit(step))
    new_state, metrics = call_step(step, state, batch, shapes)
    check_like(state, new_state)
    if not metrics:
        raise ValueError("need at least one metric from the step, got none")
    _check_names(metrics)
    for name, metric in metrics.items():
        is_complex = jnp.issubdtype(metric.dtype, jnp.complexfloating)
        if metric.shape != () or is_complex:
            raise ValueError(
                "need real scalar metrics from the step, got "
                f"{metric.dtype}{list(metric.shape)} for {name!r}"
            )
    return metrics


def _check_names(metrics: dict[str, Any]) -> None:
    taken = [name for name in metrics if name == "step" or name.startswith("val/")]
    if taken:
        raise ValueError(
            f"need metric names that are not taken, got {taken} from the step: "
            "'step' counts the steps, and what an evaluation measures is called "
            "'val/...'"
        )


def check_hashable(*functions: Any) -> None:
    """Raise unless functions can be told apart, so that their programs are kept.

    Raises:
        TypeError: one of them cannot.
    """
    for what in functions:
        if getattr(what, "__hash__", None) is None:
            raise TypeError(
                f"need functions that can be hashed, got {type(what).__name__}"
            )


def check_like(state: TrainState, new_state: TrainState) -> None:
    """Raise unless a new state has the structure, shapes and dtypes of the old.

    Raises:
        ValueError: it has not, or a leaf is weakly typed; the leaf is named.
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

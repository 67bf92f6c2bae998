"""A model's ``init`` as one program, where that compiles faster than its operations."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

import fngrad.numerics as numerics

_MOST_REPEATED = 4  # leaves of a size that another leaf has
_PLAIN = "_plain"
_LARGEST = 2**24  # numbers in all; a program holds its temporaries beside its results
_HELD = 2**16  # numbers in arrays that init closes over: the program contains them


def as_one_program(init: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ``init`` that runs as one program when it is called with a key.

    Outside a program JAX compiles each operation of ``init`` separately. Four kinds of
    ``init`` are left as they are: those of models with many leaves of one size, since a
    program compiles each of their draws, and separate operations only one; those of
    large models; those that close over large arrays, such as trained weights; and those
    that cannot be traced or do not return arrays of JAX.

    Args:
        init: a pure function of a key. It gets a typed key if it can be traced, and
            what the caller passed if it cannot.
    """

    def of_arrays(key: jax.Array) -> Any:
        made = init(key)
        for leaf in jax.tree.leaves(made):
            if not isinstance(leaf, jax.Array):
                raise TypeError(f"need arrays of JAX, got {type(leaf).__name__}")
        return made

    program = jax.jit(of_arrays)
    is_traceable = True

    @functools.wraps(init)
    def made(*args: Any, **named: Any) -> Any:
        nonlocal is_traceable
        key = _key(args[0]) if is_traceable and len(args) == 1 and not named else None
        if key is None:
            return init(*args, **named)
        try:
            return (program if _pays(program.trace(key)) else init)(key)
        except Exception:  # an error of the model itself is raised again
            is_traceable = False
            return init(*args)

    setattr(made, _PLAIN, init)
    return made


def plain(init: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of which `as_one_program` was made, for an ``init`` inside.

    If each layer were a program, a model with equal layers would compile it repeatedly.
    """
    return getattr(init, _PLAIN, init)


def _key(seed: Any) -> jax.Array | None:
    """Return one concrete typed key; None for anything else."""
    try:
        key = numerics.key(seed)
    except TypeError:
        return None
    is_traced = isinstance(key, Tracer)  # then this is part of another program
    return None if is_traced or key.shape != () else key


def _pays(traced: Any) -> bool:
    """Return whether a traced ``init`` should run as one program."""
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(traced.out_info)]
    is_small = (
        sum(sizes) <= _LARGEST and sum(map(np.size, traced.jaxpr.consts)) <= _HELD
    )
    return is_small and len(sizes) - len(set(sizes)) <= _MOST_REPEATED

"""Functions that wrap a step, and the gradients that a step keeps as an attribute.

`functools.wraps` copies the attributes of a step to any function, also to one that
calls the step with another batch, whose gradients are others. So a step marks the
attribute as its own, and only the wrappers here mark it again.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

_OWNER = "_fngrad_gradients_of"  # the id of the step that has the gradients
_Fn = TypeVar("_Fn", bound=Callable[..., Any])


def own_gradients(step: _Fn, gradients: Callable[[Any, Any], Any]) -> _Fn:
    """Return a step with its attribute ``gradients(state, batch)``."""
    step.gradients = gradients  # type: ignore[attr-defined]
    setattr(step, _OWNER, id(step))
    return step


def wraps_step(
    step: Callable[..., Any], inner: Callable[[Any], Any] | None = None
) -> Callable[[_Fn], _Fn]:
    """Return a decorator like `functools.wraps(step)` that keeps a step's gradients.

    The decorated function must call the step with the batch it is given, and with the
    state it is given or with ``inner(state)``.
    """

    def decorate(fn: _Fn) -> _Fn:
        functools.update_wrapper(fn, step)
        gradients = gradients_of(step)
        if gradients is None:
            return fn
        of_inner = gradients if inner is None else _composed(gradients, inner)
        return own_gradients(fn, of_inner)

    return decorate


def _composed(
    gradients: Callable[[Any, Any], Any], inner: Callable[[Any], Any]
) -> Callable[[Any, Any], Any]:
    return lambda state, batch: gradients(inner(state), batch)


def gradients_of(step: Any) -> Callable[[Any, Any], Any] | None:
    """Return the gradients of a step, also of a jitted one, or None if it has none."""
    while hasattr(step, "lower") and hasattr(step, "__wrapped__"):  # jitted
        step = step.__wrapped__
    is_own = getattr(step, _OWNER, None) == id(step)
    return step.gradients if is_own else None

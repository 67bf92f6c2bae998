"""Functions of users, called with what their arguments are named after.

A loss or a metric takes the parameters and the batch, its two required arguments, in
this order. What else it wants it says by name (``key``, ``model_state``), in any
position. Arguments with defaults are left alone.
"""

import inspect
from collections.abc import Callable
from typing import Any


def parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a function's parameters by name; none where it tells no signature."""
    try:
        return dict(inspect.signature(fn).parameters)
    except ValueError:  # a builtin
        return {}


def check_function(fn: Any) -> None:
    """Raise unless something can be called.

    Raises:
        TypeError: it cannot; only its type is shown, for it may be large.
    """
    if not callable(fn):
        raise TypeError(f"need a function, got {type(fn).__name__}")


def bind(
    fn: Callable[..., Any], by_name: tuple[str, ...], forms: str
) -> Callable[..., Any]:
    """Return ``call(params, batch, **named)``, which passes on what ``fn`` takes.

    Args:
        fn: the user's function.
        by_name: the arguments that are recognised by name.
        forms: what to say when ``fn`` has another signature.

    Raises:
        TypeError: ``fn`` is no function, or has not exactly two other required
            arguments.
    """
    check_function(fn)
    arguments = parameters(fn)
    required = [
        name
        for name, argument in arguments.items()
        if argument.default is argument.empty and name not in by_name
    ]
    is_variadic = any(
        a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments.values()
    )
    if len(required) != 2 or is_variadic:
        raise TypeError(f"{forms}, got {fn!r} with the arguments {list(arguments)}")
    is_positional = {
        name: argument.kind is argument.POSITIONAL_ONLY
        for name, argument in arguments.items()
    }

    def call(params: Any, batch: Any, **named: Any) -> Any:
        values = dict(zip(required, (params, batch), strict=True)) | {
            name: value for name, value in named.items() if name in arguments
        }
        args = [values[n] for n in arguments if n in values and is_positional[n]]
        kwargs = {n: v for n, v in values.items() if not is_positional[n]}
        return fn(*args, **kwargs)

    return call

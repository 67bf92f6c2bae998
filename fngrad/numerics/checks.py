"""Checks of arguments: numbers, counts, integers, masked arrays."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fngrad.types import Hyper

MAX_STEP = np.iinfo(np.int32).max


def check_number(
    name: str,
    value: Hyper | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    optional: bool = False,
) -> None:
    """Raise unless a Python number is in [low, high].

    Arrays, tracers and schedules pass without a check.

    Args:
        name: the argument's name, for the message.
        value: the argument.
        low, high: the bounds.
        optional: whether the value may be None.

    Raises:
        TypeError: if the value has another type.
        ValueError: if the number is out of range, or NaN.
    """
    is_number = isinstance(value, numbers.Real) or (value is None and optional)
    if not (is_number or callable(value) or hasattr(value, "dtype")):
        raise TypeError(
            f"need {name} to be a number, a scalar array or a schedule, got {value!r}"
        )
    if isinstance(value, numbers.Real) and not low <= float(value) <= high:
        raise ValueError(f"need {low} <= {name} <= {high}, got {name}={value}")


def check_positive(name: str, value: Hyper) -> None:
    """Raise unless a Python number is above 0.

    Arrays, tracers and schedules pass without a check.

    Raises:
        TypeError: if the value has another type.
        ValueError: if the number is not above 0, or NaN.
    """
    if not isinstance(value, numbers.Real):
        check_number(name, value)
    elif not float(value) > 0:
        raise ValueError(f"need {name} > 0, got {name}={value}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless a value is one of the choices.

    Raises:
        ValueError: if it is not.
    """
    if value not in choices:
        raise ValueError(f"need {name} to be one of {choices}, got {name}={value!r}")


def check_count(name: str, value: Any, low: int = 0, high: int | None = None) -> int:
    """Return a static number, of steps or of entries, as an int in [low, high].

    Args:
        name: the argument's name, for the message.
        value: an int, or an integer scalar of NumPy.
        low, high: its bounds; ``high=None`` sets no upper bound.

    Raises:
        ValueError: if it is out of bounds, or has another type, bool included.

    Example:
        >>> import numpy as np
        >>> from fngrad.numerics import check_count
        >>> check_count("save_every", np.int64(2), 1)
        2
    """
    number = as_int(value)
    if number is None or number < low or (high is not None and number > high):
        limit = "" if high is None else f" and <= {high}"
        raise ValueError(f"need an int {name} >= {low}{limit}, got {name}={value!r}")
    return number


def as_int(value: Any) -> int | None:
    """Return an int, or an integer scalar of NumPy, as an int, else None."""
    is_bool = isinstance(value, bool | np.bool_)
    is_int = isinstance(value, numbers.Integral) and not is_bool
    return int(value) if is_int else None


def check_unmasked(what: str, x: Any) -> None:
    """Raise if an array is one of `numpy.ma`, whose mask would be lost.

    Raises:
        ValueError: if the array is masked.
    """
    if isinstance(x, np.ma.MaskedArray):
        masked = np.ma.count_masked(x)
        raise ValueError(
            f"need {what} without a mask, got a masked array with {masked} of "
            f"{x.size} entries masked: .filled(value) puts a value in their place; "
            "where= or weights= of losses and metrics leave them out"
        )


def integers(name: str, x: Any) -> jax.Array:
    """Return integers of any dtype as int32, with -1 for those that do not fit.

    Raises:
        TypeError: if the dtype is not an integer dtype.
        ValueError: if the array is masked.
    """
    check_unmasked(name, x)
    # NumPy arrays are narrowed by NumPy: without x64 a JAX array would wrap around.
    xp = np if isinstance(x, np.ndarray | np.generic) else jnp
    x = xp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"need integer {name}, got dtype {x.dtype}")
    narrow, bounds = x.astype(np.int32), jnp.iinfo(x.dtype)
    if bounds.max > MAX_STEP:
        low = max(int(bounds.min), -MAX_STEP)
        narrow = xp.where((low <= x) & (x <= MAX_STEP), narrow, np.int32(-1))
    return jnp.asarray(narrow)


def is_known(x: Any) -> bool:
    """Return whether an array's values can be read: not a tracer, no remote part."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)


MODES = 'mode="min" or mode="max"'


def check_mode(mode: Any) -> None:
    """Raise unless a mode is ``"min"``, ``"max"`` or ``None``.

    Raises:
        ValueError: if it is something else.
    """
    if mode not in (None, "min", "max"):
        raise ValueError(f"need {MODES}, got {mode!r}")

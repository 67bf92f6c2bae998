"""Taylor's test: how fast the error of the linear approximation vanishes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.gradcheck.directional_derivatives import (
    NOISE,
    STEPS,
    check_finite,
    observed_order,
    random_direction,
    scalar_of,
    slope_along,
    values_along,
)
from fngrad.types import Key, Params


class TaylorReport(NamedTuple):
    """The errors of the constant and of the linear approximation, by distance."""

    h: np.ndarray  # distances, shape (steps,)
    constant: np.ndarray  # |f(w + h v) - f(w)|
    tangent: np.ndarray  # |f(w + h v) - f(w) - h grad f(w) . v|
    noise: float  # rounding error of one value
    constant_order: float  # about 1 where the slope is not zero
    tangent_order: float  # about 2; nan where f is linear along v


def taylor_test(
    f: Callable[..., Any], params: Params, *args: Any, key: int | Key = 0
) -> TaylorReport:
    r"""Measure how fast the error of the linear approximation vanishes.

    $$|f(w + h v) - f(w) - h\,\nabla f(w) \cdot v| = O(h^2)$$

    along one random direction over all leaves. With a wrong gradient it is $O(h)$.

    Args:
        f: ``f(params, *args) -> loss`` or a tuple that begins with the loss.
        params: a tree of float or complex arrays.
        args: passed to f; floats become float64.
        key: draws the direction, with the norm of the parameters leaf by leaf.

    Returns:
        The errors at each distance, and their orders in h.

    Raises:
        TypeError: if a leaf is not a float array, or f does not return a real scalar.
        ValueError: if f or its slope is not finite here.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.gradcheck import taylor_test
        >>> report = taylor_test(lambda w: jnp.sum(jnp.exp(w)), jnp.ones(3))
        >>> print(f"{report.constant_order:.1f} {report.tangent_order:.1f}")
        1.0 2.0
    """
    tree.check_floats(params, complex_too=True)
    with numerics.double_precision():
        w, constants = numerics.as_double((params, args))
        value = scalar_of(f)
        v = random_direction(w, None, numerics.key(key))
        # Reverse mode, as in training: custom_vjp does not support forward mode.
        base, gradient = jax.jit(jax.value_and_grad(value))(w, *constants)
        base, slope = float(base), slope_along(gradient, v)
        check_finite(base)
        check_finite(slope, "slope")
        values = np.asarray(values_along(value)(w, v, constants))[:, 0]
    h = np.array(STEPS)
    constant, tangent = np.abs(values - base), np.abs(values - base - h * slope)
    noise = NOISE * max(abs(base), float(np.max(np.abs(values))))
    return TaylorReport(
        h=h,
        constant=constant,
        tangent=tangent,
        noise=noise,
        constant_order=observed_order(h, constant, noise),
        tangent_order=observed_order(h, tangent, noise),
    )

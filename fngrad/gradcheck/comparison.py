"""Autodiff compared with central differences, leaf by leaf."""

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
    name_of,
    observed_order,
    random_direction,
    scalar_of,
    slope_along,
    values_along,
)
from fngrad.types import Key, Params

KINK = 1e-3  # threshold of `LeafReport.kink`; smooth functions give 1e-6
MIN_STEPS = 4  # step sizes with finite values that a comparison needs


class LeafReport(NamedTuple):
    """The comparison along one direction in one leaf."""

    path: str
    autodiff: float  # the slope that jax.grad gives
    numeric: float  # the slope that central differences give
    error: float  # their difference beyond rounding, relative; inf: slope not finite
    order: float  # of convergence in h; nan: exact
    kink: float  # smallest over largest difference of the one-sided slopes

    @property
    def fault(self) -> str:
        """Return the error as text, if the leaf is not sound."""
        if not np.isfinite(self.autodiff):
            return "the gradient is not finite"
        if self.kink > KINK:
            return "a kink: the one-sided slopes differ"
        return "autodiff and central differences disagree"


class GradientReport(NamedTuple):
    """The result of `check_gradients`, leaf by leaf."""

    leaves: tuple[LeafReport, ...]
    tolerance: float

    @property
    def worst(self) -> LeafReport:
        """The leaf with the largest error or kink."""
        return max(self.leaves, key=lambda leaf: max(leaf.error, leaf.kink))

    @property
    def ok(self) -> bool:
        """Whether every leaf is within tolerance and has no kink."""
        return all(_is_sound(leaf, self.tolerance) for leaf in self.leaves)

    def __str__(self) -> str:
        rows = [
            f"{name_of(leaf.path):30} {leaf.autodiff:18.10e} {leaf.numeric:18.10e} "
            f"{leaf.error:10.1e} {leaf.order:6.2f} {leaf.kink:8.1e}"
            for leaf in self.leaves
        ]
        head = (
            f"{'leaf':30} {'autodiff':>18} {'central':>18} "
            f"{'error':>10} {'order':>6} {'kink':>8}"
        )
        return "\n".join([head, *rows])


def check_gradients(
    f: Callable[..., Any],
    params: Params,
    *args: Any,
    key: int | Key = 0,
    tolerance: float = 1e-6,
) -> GradientReport:
    r"""Compare `jax.grad` with central differences, leaf by leaf.

    Along a random direction v in each leaf,

    $$D(h) = \frac{f(w + h v) - f(w - h v)}{2 h} = \nabla f(w) \cdot v + O(h^2)$$

    for several h, of which the one is used where D changes least. One-sided slopes are
    compared too: if they differ, f has a kink, where the gradient is ambiguous.

    Args:
        f: ``f(params, *args) -> loss`` or a tuple that begins with the loss. It must
            be deterministic.
        params: a tree of float or complex arrays.
        args: passed to f, such as a batch; floats become float64.
        key: draws the directions.
        tolerance: the largest error, relative to the larger slope.

    Returns:
        The report, with all leaves within tolerance; print it for a table.

    Raises:
        TypeError: if a leaf is not a float array, or f does not return a real scalar.
        ValueError: if f is not finite here or nearby, a gradient is wrong or not
            finite, or f has a kink here; the message has the worst leaf, both numbers
            and the table.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.gradcheck import check_gradients
        >>> report = check_gradients(lambda w: jnp.sum(jnp.sin(w)), jnp.ones(3))
        >>> report.ok
        True
    """
    tree.check_floats(params, complex_too=True)
    with numerics.double_precision():
        w, constants = numerics.as_double((params, args))
        value = scalar_of(f)
        gradient = jax.jit(jax.grad(value))(w, *constants)
        along = values_along(value)
        base = float(jax.jit(value)(w, *constants))
        check_finite(base)
        reports = []
        for i, path in enumerate(tree.leaf_paths(w)):
            v = random_direction(w, path, jax.random.fold_in(numerics.key(key), i))
            values = np.asarray(along(w, v, constants), np.float64)
            slope = slope_along(gradient, v)
            reports.append(_leaf_report(path, slope, base, values))
    report = GradientReport(tuple(reports), tolerance)
    if not report.ok:
        worst = report.worst
        raise ValueError(
            f"need equal slopes, got at {name_of(worst.path)!r}: {worst.fault}: "
            f"autodiff {worst.autodiff:.10e}, central differences "
            f"{worst.numeric:.10e}\n{report}"
        )
    return report


def _leaf_report(
    path: str, slope: float, base: float, values: np.ndarray
) -> LeafReport:
    is_usable = np.isfinite(values).all(axis=1)  # f may be undefined at large h
    h, values = np.array(STEPS)[is_usable], values[is_usable]
    if len(h) < MIN_STEPS:
        raise ValueError(f"need f to be finite around {name_of(path)!r}, it is not")
    rounding = NOISE * max(abs(base), float(np.max(np.abs(values)))) / h
    central = (values[:, 0] - values[:, 1]) / (2 * h)
    steadiest = int(np.argmin(np.abs(np.diff(central)) + rounding[1:])) + 1
    numeric = float(central[steadiest])
    largest = max(abs(slope), abs(numeric))
    apart = max(abs(slope - numeric) - float(rounding[steadiest]), 0.0)
    order = observed_order(h, np.abs(central - numeric), rounding)
    # One-sided slopes differ by h f'', which vanishes with h, unless there is a kink.
    sides = np.abs(values[:, 0] + values[:, 1] - 2 * base) / h
    sides = np.maximum(sides - 2 * rounding, 0.0)
    kink = float(np.min(sides) / np.max(sides)) if np.max(sides) > 0 else 0.0
    error = apart / largest if largest > 0 else 0.0
    error = error if np.isfinite(slope) else float("inf")
    return LeafReport(
        path=path,
        autodiff=slope,
        numeric=numeric,
        error=error,
        order=order,
        kink=kink,
    )


def _is_sound(leaf: LeafReport, tolerance: float) -> bool:
    return bool(leaf.error <= tolerance and leaf.kink <= KINK)

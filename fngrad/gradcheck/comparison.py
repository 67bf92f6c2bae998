"""Autodiff against central differences, leaf by leaf."""

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
    check_params,
    direction,
    name_of,
    observed_order,
    scalar_of,
    slope_along,
    values_along,
)
from fngrad.types import Key, Params

KINK = 1e-3  # of the largest difference of one-sided slopes; smooth f give 1e-6
FEWEST = 4  # step sizes that a comparison needs


class LeafReport(NamedTuple):
    """What was seen along one direction in one leaf."""

    path: str
    autodiff: float  # the slope that jax.grad gives
    numeric: float  # the slope that central differences give
    error: float  # their difference beyond rounding, over the larger; inf: no slope
    order: float  # in which power of h the differences converge; nan: exact
    kink: float  # least difference of the one-sided slopes, over the largest

    @property
    def fault(self) -> str:
        """Say what is wrong here, if anything is."""
        if not np.isfinite(self.autodiff):
            return "the gradient is not finite"
        if self.kink > KINK:
            return "a kink: the slopes to both sides differ"
        return "autodiff and central differences disagree"


class GradientReport(NamedTuple):
    """What `check_gradients` saw, leaf by leaf."""

    leaves: tuple[LeafReport, ...]
    tolerance: float

    @property
    def worst(self) -> LeafReport:
        """The leaf with the largest error or kink."""
        return max(self.leaves, key=lambda leaf: max(leaf.error, leaf.kink))

    @property
    def ok(self) -> bool:
        """Whether every leaf is within tolerance and no kink was met."""
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

    Along a random direction v in each leaf alone,

    $$D(h) = \frac{f(w + h v) - f(w - h v)}{2 h} = \nabla f(w) \cdot v + O(h^2)$$

    for a sweep of h, from which the one is taken where D changes least. One-sided
    slopes are compared too: where they differ f has a kink, and the gradient there is
    a choice.

    Args:
        f: ``f(params, *args) -> loss`` or a tuple that begins with the loss. It must
            be deterministic.
        params: a tree of float or complex arrays.
        args: handed on, such as a batch; floats are taken to float64.
        key: draws the directions.
        tolerance: the largest error, relative to the larger slope.

    Returns:
        The report, all within tolerance; print it for a table.

    Raises:
        TypeError: a leaf is no float array, or f returns no real scalar.
        ValueError: f is not finite here or nearby, a gradient is wrong or not finite,
            or f has a kink here; the message names the worst leaf, both numbers, and
            has the table.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.gradcheck import check_gradients
        >>> report = check_gradients(lambda w: jnp.sum(jnp.sin(w)), jnp.ones(3))
        >>> report.ok
        True
    """
    check_params(params, complex_too=True)
    with numerics.double_precision():
        w, constants = numerics.as_double((params, args))
        value = scalar_of(f)
        gradient = jax.jit(jax.grad(value))(w, *constants)
        along = values_along(value)
        base = float(jax.jit(value)(w, *constants))
        check_finite(base)
        reports = []
        for i, path in enumerate(tree.leaf_paths(w)):
            v = direction(w, path, jax.random.fold_in(numerics.key(key), i))
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
    is_usable = np.isfinite(values).all(axis=1)  # far away f may not be defined
    h, values = np.array(STEPS)[is_usable], values[is_usable]
    if len(h) < FEWEST:
        raise ValueError(f"need f to be finite around {name_of(path)!r}, it is not")
    rounding = NOISE * max(abs(base), float(np.max(np.abs(values)))) / h
    central = (values[:, 0] - values[:, 1]) / (2 * h)
    steadiest = int(np.argmin(np.abs(np.diff(central)) + rounding[1:])) + 1
    numeric = float(central[steadiest])
    largest = max(abs(slope), abs(numeric))
    apart = max(abs(slope - numeric) - float(rounding[steadiest]), 0.0)
    order = observed_order(h, np.abs(central - numeric), rounding)
    # One-sided slopes differ by h f'', which falls with h, unless there is a kink.
    sides = np.abs(values[:, 0] + values[:, 1] - 2 * base) / h
    sides = np.maximum(sides - 2 * rounding, 0.0)
    kink = float(np.min(sides) / np.max(sides)) if np.max(sides) > 0 else 0.0
    error = apart / largest if largest > 0 else 0.0
    error = error if np.isfinite(slope) else float("inf")
    return LeafReport(path, slope, numeric, error, order, kink)


def _is_sound(leaf: LeafReport, tolerance: float) -> bool:
    return bool(leaf.error <= tolerance and leaf.kink <= KINK)

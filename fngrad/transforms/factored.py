r"""Second moments in less memory than the parameters take.

A *factored* moment keeps of a matrix of squares its row means and its column means,
whose product over the mean of all is the matrix that both agree with. A *cover* keeps
one number for each slice along each axis, an upper bound of what is in the slice.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.leaves as leaves
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.roots import divide_by_root, squarable
from fngrad.types import Hyper, Params, Updates


class Factors(NamedTuple):
    """Averages of |g|**2 over one axis of a leaf, and over another; real."""

    row: jax.Array  # shape without the second factored axis
    column: jax.Array  # shape without the first


class ScaleByFactoredRmsState(NamedTuple):
    """State of `scale_by_factored_rms`."""

    step: jax.Array  # int32, shape ()
    nu: Updates  # average of |g|**2 where a leaf is not factored, else None
    factors: Updates  # Factors where a leaf is factored, else None

    non_negative = ("nu",)


class ScaleBySm3State(NamedTuple):
    """State of `scale_by_sm3`."""

    step: jax.Array  # int32, shape ()
    bounds: Updates  # a tuple a leaf: for each axis, shape (size,); real


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Hyper = 0.8,
    step_offset: Hyper = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Hyper = 1e-30,
    *,
    factored_dims: str = "largest",
) -> Transform:
    r"""Divide by the root of a factored second moment: Adafactor's direction.

    With $s_t = |g_t|^2 + \epsilon$ and the weight $\gamma_t = t^{-c}$ of the present,
    a matrix has

    $$r_t = (1 - \gamma_t)\,r_{t-1} + \gamma_t\,\operatorname{mean}_j s_t, \qquad
      k_t = (1 - \gamma_t)\,k_{t-1} + \gamma_t\,\operatorname{mean}_i s_t$$
    $$u_t = g_t \Big/ \sqrt{\frac{r_t\,k_t^\top}{\operatorname{mean} r_t}}$$

    and a leaf that is not factored
    $\nu_t = (1 - \gamma_t)\,\nu_{t-1} + \gamma_t\,s_t$ and $u_t = g_t / \sqrt{\nu_t}$.

    Args:
        factored: whether any leaf is factored.
        decay_rate: $c$ >= 0.
        step_offset: t counts from this step on, for a run that goes on from another;
            earlier steps have t = 1.
        min_dim_size_to_factor: a leaf is factored if both axes are at least this long.
        epsilon: $\epsilon$ >= 0, in squared gradient units.
        factored_dims: the two axes: the ``"largest"`` (optax), or the ``"last"``
            (PyTorch, Keras). Further axes count matrices. It makes no difference to a
            matrix.

    Raises:
        ValueError: a number out of range, or another word for ``factored_dims``.

    References:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory
        cost, 2018, algorithms 4 and 5, https://arxiv.org/abs/1804.04235. Differs from
        it in: means take the place of sums, which changes nothing but the scale of
        what is kept; small matrices are not factored.
    """
    if factored_dims not in ("largest", "last"):
        raise ValueError(
            f"need factored_dims to be 'largest' or 'last', got {factored_dims=}"
        )
    numerics.check_number("decay_rate", decay_rate, low=0.0)
    numerics.check_number("step_offset", step_offset, low=0.0)
    numerics.check_number("epsilon", epsilon, low=0.0)
    longest = factored_dims == "largest"
    shortest = _shortest(factored, min_dim_size_to_factor)

    def start(p: jax.Array) -> tuple[jax.Array | None, Factors | None]:
        return _start(p, _axes(p.shape, longest, shortest))

    def init(params: Params) -> ScaleByFactoredRmsState:
        nu, factors = leaves.map_leaves(start, params, outputs=2)
        return ScaleByFactoredRmsState(numerics.first_step(), nu, factors)

    def update(
        updates: Updates, state: ScaleByFactoredRmsState, params: Params
    ) -> tuple[Updates, ScaleByFactoredRmsState]:
        weight = _weight_of_present(decay_rate, step_offset, state.step)
        eps = numerics.hyper(epsilon, state.step)

        def divide(
            g: jax.Array, nu: jax.Array | None, factors: Factors | None
        ) -> tuple[jax.Array, jax.Array | None, Factors | None]:
            axes = _axes(g.shape, longest, shortest)
            g = squarable(g, 1 if axes is None else max(g.shape[i] for i in axes))
            square = tree.abs_square(g) + eps.astype(_real_dtype(g))
            if axes is None or factors is None:
                nu = tree.lerp(nu, square, weight)
                return divide_by_root(g, nu, 0.0, 0.0), nu, None
            means = Factors(jnp.mean(square, axes[1]), jnp.mean(square, axes[0]))
            means = tree.lerp(factors, means, weight)
            return _divide_by_factors(g, means, axes), None, means

        new_updates, nu, factors = leaves.map_leaves(
            divide, updates, state.nu, state.factors, outputs=3
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleByFactoredRmsState(step, nu, factors)

    return chain(Transform(init, update, name="scale_by_factored_rms"))


def _weight_of_present(
    decay_rate: Hyper, step_offset: Hyper, step: jax.Array
) -> jax.Array:
    exponent, offset = (numerics.hyper(x, step) for x in (decay_rate, step_offset))
    t = jnp.maximum(step.astype(offset.dtype) - offset, 0) + 1
    return t**-exponent


def scale_by_sm3(eps: Hyper = 1e-8, *, variant: str = "II") -> Transform:
    r"""Divide by the root of a bound on the sum of squares: SM3's direction.

    Each index $r$ of each axis is a slice of the leaf and keeps a number $\mu_t(r)$.
    SM3-II is

    $$s_t(i) = \min_{r \ni i} \mu_{t-1}(r) + |g_t(i)|^2, \qquad
      \mu_t(r) = \max_{i \in r} s_t(i), \qquad u_t = g_t / \sqrt{s_t + \epsilon}$$

    and SM3-I, whose bound is looser,

    $$\mu_t(r) = \mu_{t-1}(r) + \max_{i \in r} |g_t(i)|^2, \qquad
      s_t(i) = \min_{r \ni i} \mu_t(r)$$

    On vectors and scalars both are Adagrad. A coordinate with $s_t = 0$ does not move.

    Args:
        eps: $\epsilon$ >= 0, in squared gradient units.
        variant: ``"I"`` or ``"II"``.

    Raises:
        ValueError: a negative number, or another variant.

    References:
        Anil et al., Memory-efficient adaptive optimization, 2019, algorithms SM3-I and
        SM3-II, https://arxiv.org/abs/1901.11150. Differs from it in: $\epsilon$, which
        is 0 there. Differs from optax's in: the momentum is a part of its own, `ema`.
    """
    if variant not in ("I", "II"):
        raise ValueError(f"need variant to be 'I' or 'II', got {variant=}")
    numerics.check_number("eps", eps, low=0.0)

    def start(p: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, _real_dtype(p)) for shape in _bound_shapes(p))

    def init(params: Params) -> ScaleBySm3State:
        bounds = leaves.map_leaves(start, params)
        return ScaleBySm3State(numerics.first_step(), bounds)

    def update(
        updates: Updates, state: ScaleBySm3State, params: Params
    ) -> tuple[Updates, ScaleBySm3State]:
        updates = squarable(updates)
        inside = numerics.hyper(eps, state.step)

        def divide(
            g: jax.Array, bounds: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            square = tree.abs_square(g)
            if variant == "I":
                maxima = _slice_maxima(square)
                sums = tuple(map(jnp.add, bounds, maxima))
                bounds = tuple(map(numerics.saturated, sums, maxima))
                total = _least_bound(bounds, g)
            else:
                total = numerics.saturated(_least_bound(bounds, g) + square, g)
                bounds = _slice_maxima(total)
            return divide_by_root(g, total, inside, 0.0), bounds

        new_updates, bounds = leaves.map_leaves(
            divide, updates, state.bounds, outputs=2
        )
        return new_updates, ScaleBySm3State(numerics.next_step(state.step), bounds)

    return chain(Transform(init, update, name="scale_by_sm3"))


def _shortest(factored: bool, min_dim_size_to_factor: int) -> float:
    """Return the size from which on an axis is factored."""
    size = numerics.check_count("min_dim_size_to_factor", min_dim_size_to_factor)
    return size if factored else math.inf


def _axes(
    shape: tuple[int, ...], longest: bool, shortest: float
) -> tuple[int, int] | None:
    """Return the axes of rows and of columns, or None where a leaf is not factored."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable") if longest else np.arange(len(shape))
    row, column = map(int, order[-2:])
    return (row, column) if min(shape[row], shape[column]) >= shortest else None


def _start(
    p: jax.Array, axes: tuple[int, int] | None
) -> tuple[jax.Array | None, Factors | None]:
    dtype = _real_dtype(p)
    if axes is None:
        return jnp.zeros_like(p, dtype=dtype), None
    row, column = (np.delete(p.shape, axis) for axis in reversed(axes))
    return None, Factors(jnp.zeros(row, dtype), jnp.zeros(column, dtype))


def _divide_by_factors(
    g: jax.Array, factors: Factors, axes: tuple[int, int]
) -> jax.Array:
    """Take each root by itself: products and quotients of squares may not fit."""
    row_axis, column_axis = axes
    row = jnp.expand_dims(factors.row, column_axis)
    column = jnp.expand_dims(factors.column, row_axis)
    root = numerics.square_root(jnp.mean(row, row_axis, keepdims=True))
    by_row = divide_by_root(g, jnp.broadcast_to(row, g.shape), 0.0, 0.0)
    by_row = by_row * root.astype(g.dtype)
    return divide_by_root(by_row, jnp.broadcast_to(column, g.shape), 0.0, 0.0)


def _bound_shapes(x: jax.Array) -> list[tuple[int, ...]]:
    return [x.shape] if x.ndim < 2 else [(size,) for size in x.shape]


def _slice_maxima(square: jax.Array) -> tuple[jax.Array, ...]:
    if square.ndim < 2:
        return (square,)
    axes = range(square.ndim)
    return tuple(
        jnp.max(square, tuple(other for other in axes if other != axis), initial=0)
        for axis in axes
    )


def _least_bound(bounds: tuple[jax.Array, ...], g: jax.Array) -> jax.Array:
    if g.ndim < 2:
        return bounds[0]
    least = jnp.full(g.shape, jnp.inf, bounds[0].dtype)
    for axis, bound in enumerate(bounds):
        others = tuple(other for other in range(g.ndim) if other != axis)
        least = jnp.minimum(least, jnp.expand_dims(bound, others))
    return least


def _real_dtype(x: jax.Array) -> jnp.dtype:
    return jnp.finfo(tree.wide_dtype(x.dtype)).dtype

"""Adafactor: RMSProp with a factored second moment.

A *factored* moment keeps the row means and the column means of a matrix of squares.
Their product over the mean of all has these row and column means too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.blocks import clip_by_block_rms, scale_by_param_block_rms
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.moment_arithmetic import divide_by_root, real_dtype, squarable
from fngrad.transforms.momentum_buffers import averaged
from fngrad.transforms.scaling import (
    check_learning_rate,
    scale,
    scale_by_learning_rate,
)
from fngrad.types import Hyper, Params, Scalar, Schedule, Selector, Updates


class Factors(NamedTuple):
    """Averages of |g|**2 over one axis of a leaf, and over another; real."""

    row: jax.Array  # shape without the second factored axis
    column: jax.Array  # shape without the first


class ScaleByFactoredRmsState(NamedTuple):
    """State of `scale_by_factored_rms`."""

    step: jax.Array  # int32, shape ()
    nu: Updates  # average of |g|**2 where a leaf is not factored, else None
    factors: Updates  # Factors where a leaf is factored, else None

    non_negative = ("nu",)  # type: tuple[str, ...]


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

    Returns $u_t$ of `adafactor`; see there for the equations and the reference.

    Args:
        factored: whether any leaf is factored.
        decay_rate: $c$ >= 0.
        step_offset: t counts from this step on, for a run that continues another;
            earlier steps have t = 1.
        min_dim_size_to_factor: a leaf is factored if both axes are at least this long.
        epsilon: $\epsilon_1$ >= 0, in squared gradient units.
        factored_dims: the two axes: the ``"largest"`` (optax), or the ``"last"``
            (PyTorch, Keras). Further axes index matrices. For a matrix the two are the
            same.

    Raises:
        ValueError: if a number is out of range, or ``factored_dims`` is neither of the
            two.
    """
    numerics.check_choice("factored_dims", factored_dims, ("largest", "last"))
    numerics.check_number("decay_rate", decay_rate, low=0.0)
    numerics.check_number("step_offset", step_offset, low=0.0)
    numerics.check_number("epsilon", epsilon, low=0.0)
    longest = factored_dims == "largest"
    shortest = _shortest(factored, min_dim_size_to_factor)

    def start(p: jax.Array) -> tuple[jax.Array | None, Factors | None]:
        return start_factors(p, factored_axes(p.shape, longest, shortest))

    def init(params: Params) -> ScaleByFactoredRmsState:
        nu, factors = tree.map_leaves(start, params, outputs=2)
        return ScaleByFactoredRmsState(numerics.first_step(), nu, factors)

    def update(
        updates: Updates, state: ScaleByFactoredRmsState, params: Params
    ) -> tuple[Updates, ScaleByFactoredRmsState]:
        weight = _weight_of_present(decay_rate, step_offset, state.step)
        eps = numerics.hyper(epsilon, state.step)

        def divide(
            g: jax.Array, nu: jax.Array | None, factors: Factors | None
        ) -> tuple[jax.Array, jax.Array | None, Factors | None]:
            axes = factored_axes(g.shape, longest, shortest)
            g = squarable(g, 1 if axes is None else max(g.shape[i] for i in axes))
            square = tree.abs_square(g) + eps.astype(real_dtype(g))
            if axes is None or factors is None:
                nu = tree.lerp(nu, square, weight)
                return divide_by_root(g, nu, 0.0, 0.0), nu, None
            means = Factors(jnp.mean(square, axes[1]), jnp.mean(square, axes[0]))
            means = tree.lerp(factors, means, weight)
            return divide_by_factors(g, means, axes), None, means

        new_updates, nu, factors = tree.map_leaves(
            divide, updates, state.nu, state.factors, outputs=3
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleByFactoredRmsState(step, nu, factors)

    return chain(Transform(init, update, name="scale_by_factored_rms"))


def adafactor(
    learning_rate: Hyper | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Hyper = 0.8,
    decay_offset: Hyper = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Hyper | None = None,
    weight_decay_rate: Hyper | None = None,
    eps: Hyper = 1e-30,
    factored: bool = True,
    mask: Selector | None = None,
    *,
    min_scale: Scalar = 1e-3,
    relative_step: bool = False,
    factored_dims: str = "largest",
) -> Transform:
    r"""Adafactor: RMSProp with a factored moment, clipped, in units of the parameters.

    With $s_t = |g_t|^2 + \epsilon_1$ and the weight $\gamma_t = t^{-c}$ of the present,
    a matrix has

    $$r_t = (1 - \gamma_t)\,r_{t-1} + \gamma_t\,\operatorname{mean}_j s_t, \qquad
      k_t = (1 - \gamma_t)\,k_{t-1} + \gamma_t\,\operatorname{mean}_i s_t$$
    $$u_t = g_t \Big/ \sqrt{\frac{r_t\,k_t^\top}{\operatorname{mean} r_t}}$$

    and a leaf that is not factored
    $\nu_t = (1 - \gamma_t)\,\nu_{t-1} + \gamma_t\,s_t$ and $u_t = g_t / \sqrt{\nu_t}$.
    Then, for each leaf,

    $$\hat u_t = u_t / \max(1, \operatorname{rms}(u_t) / d)$$
    $$w_{t+1} = w_t - \alpha_t \max(\epsilon_2, \operatorname{rms}(w_t))\,\hat u_t -
      \lambda_t\,w_t$$

    With ``momentum`` $\beta$ the update, apart from the decay, is replaced by its
    exponential average. Stacked layers (`fngrad.layers.repeat`, ``scan=True``) count as
    one leaf, a stack of vectors as a matrix; `fngrad.layerwise` treats each by itself.

    The learning rates of the field:

    - ``adafactor()`` is the paper's, $\alpha_t = \min(10^{-2}, 1 / \sqrt t)$;
    - ``adafactor(1e-2, relative_step=True, min_dim_size_to_factor=1)`` is PyTorch's
      and Keras's; for leaves of three and more axes add ``factored_dims="last"``.
      PyTorch's ``weight_decay`` is ``weight_decay_rate`` over the learning rate;
    - ``adafactor(lambda t: 1e-6 * (t + 1), relative_step=True)`` warms up as T5 does,
      $\alpha_t = \min(10^{-6}\,t, 1 / \sqrt t)$.

    Args:
        learning_rate: $\alpha$, a share of each leaf's root mean square: a number
            >= 0, a scalar array or tracer, or a schedule. ``None`` is ``1e-2`` with
            ``relative_step``.
        min_dim_size_to_factor: a leaf is factored if both axes are at least this long.
        decay_rate: $c$ >= 0; the moment's decay is $1 - t^{-c}$.
        decay_offset: t counts from this step on in the decay; earlier steps have t = 1.
        multiply_by_parameter_scale: whether $\operatorname{rms}(w_t)$ scales the step.
        clipping_threshold: $d$ > 0; ``None`` does not clip.
        momentum: $\beta$ in [0, 1]; ``None`` keeps no average.
        weight_decay_rate: $\lambda$, not times the learning rate; ``None`` does not
            decay.
        eps: $\epsilon_1$ >= 0, in squared gradient units.
        factored: whether any leaf is factored.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        min_scale: $\epsilon_2$ >= 0, in units of the parameters.
        relative_step: whether $\alpha_t$ is at most $1 / \sqrt t$.
        factored_dims: ``"largest"`` or ``"last"``, see `scale_by_factored_rms`.

    Raises:
        TypeError: if the learning rate is of another type.
        ValueError: if a number is out of range, or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adafactor(0.5)
        >>> params, update = jnp.array([3.0, -3.0]), jax.jit(optimizer.update)
        >>> updates, _ = update(params, optimizer.init(params), params)
        >>> print(updates.round(1))  # half of the root mean square
        [-1.5  1.5]

    References:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory
        cost, 2018, algorithms 4 to 6 and sections 6 and 8,
        https://arxiv.org/abs/1804.04235. Differs from it in: means take the place of
        sums, which only changes the scale of the state; small matrices are not factored
        by default. Differs from optax in: without a learning rate it takes the paper's,
        not 1.
    """
    if mask is not None and weight_decay_rate is None:
        raise ValueError(f"need a weight_decay_rate to mask, got {mask=}")
    if learning_rate is None:
        learning_rate, relative_step = 1e-2, True
    check_learning_rate(learning_rate)
    numerics.check_number("decay_offset", decay_offset, low=0.0)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("weight_decay_rate", weight_decay_rate, optional=True)
    rate = _at_most_relative(learning_rate) if relative_step else learning_rate
    parts = [
        scale_by_factored_rms(
            factored,
            decay_rate,
            decay_offset,
            min_dim_size_to_factor,
            eps,
            factored_dims=factored_dims,
        )
    ]
    if clipping_threshold is not None:
        numerics.check_positive("clipping_threshold", clipping_threshold)
        parts.append(clip_by_block_rms(clipping_threshold))
    parts.append(scale_by_learning_rate(rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scale_by_param_block_rms(min_scale))
    parts.extend(averaged(momentum))
    if weight_decay_rate is not None:
        parts.append(add_decayed_weights(weight_decay_rate, mask))
    return chain(*parts, scale(-1.0))


def _weight_of_present(
    decay_rate: Hyper, step_offset: Hyper, step: jax.Array
) -> jax.Array:
    exponent, offset = (numerics.hyper(x, step) for x in (decay_rate, step_offset))
    t = jnp.maximum(step.astype(offset.dtype) - offset, 0) + 1
    return t**-exponent


def _shortest(factored: bool, min_dim_size_to_factor: int) -> float:
    """Return the least length of a factored axis."""
    size = numerics.check_count("min_dim_size_to_factor", min_dim_size_to_factor)
    return size if factored else math.inf


def factored_axes(
    shape: tuple[int, ...], longest: bool, shortest: float
) -> tuple[int, int] | None:
    """Return the axes of rows and of columns, or None where a leaf is not factored.

    Args:
        shape: of the leaf.
        longest: whether the two longest axes are factored, or the last two.
        shortest: the least length of both.
    """
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable") if longest else np.arange(len(shape))
    row, column = map(int, order[-2:])
    return (row, column) if min(shape[row], shape[column]) >= shortest else None


def start_factors(
    p: jax.Array, axes: tuple[int, int] | None
) -> tuple[jax.Array | None, Factors | None]:
    """Return a leaf's second moments of zero: all of them, or their factors."""
    dtype = real_dtype(p)
    if axes is None:
        return tree.zeros(p, dtype), None
    shapes = (tuple(np.delete(p.shape, axis).tolist()) for axis in reversed(axes))
    return None, Factors(*(tree.zeros(p, dtype, shape) for shape in shapes))


def divide_by_factors(
    g: jax.Array, factors: Factors, axes: tuple[int, int]
) -> jax.Array:
    """Divide by the root of what the factors approximate.

    Each root is taken by itself: products and quotients of squares may not fit.
    """
    row_axis, column_axis = axes
    row = jnp.expand_dims(factors.row, column_axis)
    column = jnp.expand_dims(factors.column, row_axis)
    root = numerics.square_root(jnp.mean(row, row_axis, keepdims=True))
    by_row = divide_by_root(g, jnp.broadcast_to(row, g.shape), 0.0, 0.0)
    by_row = by_row * root.astype(g.dtype)
    return divide_by_root(by_row, jnp.broadcast_to(column, g.shape), 0.0, 0.0)


def _at_most_relative(learning_rate: Hyper) -> Schedule:
    def schedule(step: jax.Array) -> jax.Array:
        rate = numerics.hyper(learning_rate, step)
        t = step.astype(rate.dtype) + 1  # step + 1 may not fit in int32
        return jnp.minimum(rate, 1 / jnp.sqrt(t))

    return schedule

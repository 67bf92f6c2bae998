"""SM3: Adagrad with a cover of its sums.

A *cover* keeps one number for each slice along each axis of a leaf: an upper bound on
the sums in the slice.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
from fngrad.transforms.moment_arithmetic import divide_by_root, real_dtype, squarable
from fngrad.transforms.momentum_buffers import averaged
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleBySm3State(NamedTuple):
    """State of `scale_by_sm3`."""

    step: jax.Array  # int32, shape ()
    bounds: Updates  # a tuple per leaf: for each axis, shape (size,); real


def scale_by_sm3(eps: Hyper = 1e-8, *, variant: str = "II") -> Transform:
    r"""Divide by the root of a bound on the sum of squares: SM3's direction.

    Returns $u_t$ of `sm3`; see there for the equations and the reference. On vectors
    and scalars both variants are Adagrad. A coordinate with $s_t = 0$ does not move.

    Args:
        eps: $\epsilon$ >= 0, in squared gradient units.
        variant: ``"I"`` or ``"II"``.

    Raises:
        ValueError: if a number is negative, or ``variant`` is neither of the two.
    """
    numerics.check_choice("variant", variant, ("I", "II"))
    numerics.check_number("eps", eps, low=0.0)

    def start(p: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(tree.zeros(p, real_dtype(p), shape) for shape in _bound_shapes(p))

    def init(params: Params) -> ScaleBySm3State:
        bounds = tree.map_leaves(start, params)
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

        new_updates, bounds = tree.map_leaves(divide, updates, state.bounds, outputs=2)
        return new_updates, ScaleBySm3State(numerics.next_step(state.step), bounds)

    return chain(Transform(init, update, name="scale_by_sm3"))


def sm3(
    learning_rate: Hyper,
    momentum: Hyper | None = 0.9,
    *,
    eps: Hyper = 1e-8,
    variant: str = "II",
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""SM3: Adagrad with one number for each slice along each axis.

    Each index $r$ of each axis is a slice of the leaf and keeps a number $\mu_t(r)$: a
    matrix of m rows and n columns keeps m + n, from which each entry $i$ takes the
    smaller of its row's and its column's. SM3-II is

    $$s_t(i) = \min_{r \ni i} \mu_{t-1}(r) + |g_t(i)|^2, \qquad
      \mu_t(r) = \max_{i \in r} s_t(i), \qquad u_t = g_t / \sqrt{s_t + \epsilon}$$
    $$b_t = \beta\,b_{t-1} + (1 - \beta)\,u_t, \qquad w_{t+1} = w_t - \alpha_t\,b_t$$

    and SM3-I, whose bound is looser, has

    $$\mu_t(r) = \mu_{t-1}(r) + \max_{i \in r} |g_t(i)|^2, \qquad
      s_t(i) = \min_{r \ni i} \mu_t(r)$$

    In stacked layers (`fngrad.layers.repeat`, ``scan=True``) each layer is a slice of
    one leaf; `fngrad.layerwise` treats each by itself.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no average; any number, also 0,
            keeps one, of the size of the parameters.
        eps: $\epsilon$ >= 0, in squared gradient units; the authors' code has 1e-30.
        variant: ``"II"`` or ``"I"``.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range, or ``variant`` is neither of the two;
            or there is a mask but no decay; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sm3(0.1, momentum=None)
        >>> params = jnp.array([[3.0, -4.0]])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)
        [[-0.1  0.1]]

    References:
        Anil et al., Memory-efficient adaptive optimization, 2019, algorithms SM3-I and
        SM3-II, https://arxiv.org/abs/1901.11150. Differs from it in: $\epsilon$, which
        is 0 there. Differs from optax's in: the momentum is a part of its own, `ema`.
    """
    return chain(
        scale_by_sm3(eps, variant=variant),
        *averaged(momentum),
        *optional_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


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

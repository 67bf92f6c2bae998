r"""L-BFGS: inverse curvature from differences of past parameters and gradients.

A *pair* is $s = w' - w$, $y = g' - g$ between one update and the next. With a
deterministic gradient $H s \approx y$ for the Hessian $H$. With mini-batches $y$ also
holds the noise of two batches, so a quasi-Newton rule needs the same batch in every
step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Metrics, Params, Updates


class ScaleByLbfgsState(NamedTuple):
    """State of `scale_by_lbfgs`; m is the memory size."""

    step: jax.Array  # int32, shape ()
    pairs: jax.Array  # int32, shape (); pairs taken so far, the last m are kept
    params: Params  # the last parameters, at least float32
    gradient: Updates  # the last gradient
    s: Updates  # differences of parameters, shape (m, ...), a ring
    y: Updates  # differences of gradients, shape (m, ...), a ring
    inverse_products: jax.Array  # 1 / <s, y>, shape (m,); 0 where there is no pair


def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> Transform:
    r"""Multiply the gradient by L-BFGS's inverse Hessian, from the last m pairs.

    Returns $u_t$ of `lbfgs`; see there for the equations and the references. It reports
    ``pairs``, how many are in use.

    Args:
        memory_size: m >= 1, how many pairs are kept.
        scale_init_precond: whether the recursion begins at $\gamma I$, or at $I$.

    Raises:
        ValueError: if ``memory_size`` is below 1.
    """
    memory_size = numerics.check_count("memory_size", memory_size, 1)

    def init(params: Params) -> ScaleByLbfgsState:
        moment = tree.wide_zeros_like(params)
        ring = jax.tree.map(lambda m: jnp.stack([m] * memory_size), moment)
        return ScaleByLbfgsState(
            numerics.first_step(),
            numerics.first_step(),
            moment,
            tree.zeros_like(moment),
            ring,
            tree.zeros_like(ring),
            jnp.zeros(memory_size, tree.vdot(moment, moment).dtype),
        )

    def report(
        updates: Updates, state: ScaleByLbfgsState, params: Params
    ) -> tuple[Updates, ScaleByLbfgsState, Metrics]:
        state = _take_pair(state, tree.widen(params), updates)
        unit = _unit(updates)
        less = jax.tree.map(lambda g: numerics.divided(g, unit), updates)
        gamma = _first_scale(state, less, unit) if scale_init_precond else unit
        direction = _two_loops(state, less, gamma, unit)
        metrics = {"pairs": jnp.minimum(state.pairs, memory_size)}
        return direction, state._replace(step=numerics.next_step(state.step)), metrics

    return chain(from_report(init, report, "scale_by_lbfgs"))


def lbfgs(
    learning_rate: Hyper = 1.0,
    memory_size: int = 10,
    scale_init_precond: bool = True,
) -> Transform:
    r"""L-BFGS: the gradient times an inverse Hessian built from the last m steps.

    With $\rho_i = 1 / \langle s_i, y_i \rangle$ and $V_i = I - \rho_i\,y_i s_i^\top$,
    from the oldest of the last m pairs to the newest,

    $$P_{i+1} = V_i^\top P_i V_i + \rho_i\,s_i s_i^\top, \qquad
      u_t = P\,g_t, \qquad w_{t+1} = w_t - \alpha_t\,u_t$$

    by the two-loop recursion, which needs 4 m inner products and no matrix. The first
    matrix is $\gamma I$ with $\gamma = \langle s, y \rangle / \|y\|^2$ of the newest
    pair; before there is one, $\gamma = \min(1, 1 / \|g\|)$, so that the first step is
    no longer than $\alpha$.

    A pair enters only if $\langle s, y \rangle > \epsilon\,\|s\|\,\|y\|$, where
    $\epsilon$ is the spacing of numbers at 1: a pair of negative curvature, or of one
    lost in rounding, would make $P$ indefinite.

    L-BFGS needs the same batch in every step, and a line search:
    ``steps.line_search(loss_fn, lbfgs(), "strong_wolfe")``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule; 1 is right with a line search.
        memory_size: m >= 1; the state holds 2 m + 2 copies of the parameters.
        scale_init_precond: whether the recursion begins at $\gamma I$, or at $I$.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lbfgs(0.5)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)  # at first along the gradient, no longer than alpha
        [-0.3  0.4]

    References:
        Liu and Nocedal, On the limited memory BFGS method for large scale
        optimization, 1989, https://doi.org/10.1007/BF01589116. Nocedal and Wright,
        Numerical optimization, 2006, algorithms 7.4 and 7.5 and equation 7.20,
        https://doi.org/10.1007/978-0-387-40065-5. Differs from them in: pairs without
        positive curvature are skipped, and the first matrix, which is optax's.
    """
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale_by_learning_rate(learning_rate),
    )


def _take_pair(
    state: ScaleByLbfgsState, params: Params, gradient: Updates
) -> ScaleByLbfgsState:
    """Put the newest pair into the ring, if there is one of positive curvature."""
    s, y = tree.sub(params, state.params), tree.sub(gradient, state.gradient)
    s, y = _in_range(s, y)
    product = tree.vdot(s, y)
    least = jnp.finfo(product.dtype).eps * tree.norm(s) * tree.norm(y)
    is_pair = (state.step > 0) & (product > least) & jnp.isfinite(product)
    slot = state.pairs % len(state.inverse_products)

    def put(ring: jax.Array, x: jax.Array) -> jax.Array:
        return ring.at[slot].set(jnp.where(is_pair, x, ring[slot]))

    inverse = 1 / jnp.where(is_pair, product, 1)
    return ScaleByLbfgsState(
        state.step,
        jnp.where(is_pair, numerics.next_step(state.pairs), state.pairs),
        jax.tree.map(jnp.copy, params),  # the state is donated, they are not
        jax.tree.map(jnp.copy, gradient),
        jax.tree.map(put, state.s, s),
        jax.tree.map(put, state.y, y),
        put(state.inverse_products, inverse),
    )


def _in_range(s: Params, y: Updates) -> tuple[Params, Updates]:
    """Return the pair divided by a power of two at which its products fit.

    A common factor of both leaves the inverse Hessian as it is. It is usually 1.
    """
    length, rate = numerics.fitting_norm(tree.norm, y)
    middle = jnp.sqrt(tree.norm(s)) * jnp.sqrt(length) / jnp.sqrt(rate)
    is_far = (middle < 1 / numerics.LARGE) | (middle > numerics.LARGE)
    scale = jnp.where(is_far, numerics.power_of_two_below(middle), 1)
    return tuple(jax.tree.map(lambda x: numerics.divided(x, scale), x) for x in (s, y))


def _unit(gradient: Updates) -> jax.Array:
    """Return the power of two that the gradient is divided by: 1 unless it is huge."""
    norm, rate = numerics.fitting_norm(tree.norm, gradient)
    power = jnp.where(rate < 1, 2.0**126, numerics.power_of_two_below(norm))
    return jnp.where((norm > numerics.LARGE) | (rate < 1), power, 1).astype(norm.dtype)


def _first_scale(
    state: ScaleByLbfgsState, gradient: Updates, unit: jax.Array
) -> jax.Array:
    """Return gamma times the unit that the gradient was divided by."""
    newest = (state.pairs - 1) % len(state.inverse_products)
    y = _at(state.y, newest)
    square, size = tree.vdot(y, y), tree.norm(y)
    inverse = state.inverse_products[newest]
    curvature, unit = inverse * square, unit.astype(square.dtype)
    fits = jnp.isfinite(curvature) & (square > 0)
    curvature = jnp.where(fits, curvature, inverse * size)
    scale = jnp.where(fits, unit, unit / jnp.where(size > 0, size, 1))
    bounded = 1 / jnp.maximum(tree.norm(gradient), 1 / unit)
    by_pair = numerics.divide(scale, curvature)
    return jnp.where(state.pairs > 0, by_pair, bounded)


@jax.jit  # called eagerly, its loops would be compiled every time
def _two_loops(
    state: ScaleByLbfgsState, gradient: Updates, gamma: jax.Array, unit: jax.Array
) -> Updates:
    """Return P (unit g); slots without a pair have weight 0 and change nothing."""
    size = len(state.inverse_products)

    def back(i: Any, carry: Any) -> Any:
        q, alphas = carry
        slot = (state.pairs - 1 - i) % size
        alpha = state.inverse_products[slot] * tree.vdot(_at(state.s, slot), q)
        return _add_scaled(q, -alpha, _at(state.y, slot)), alphas.at[slot].set(alpha)

    def forth(i: Any, r: Updates) -> Updates:
        slot = (state.pairs + i) % size
        beta = state.inverse_products[slot] * tree.vdot(_at(state.y, slot), r)
        return _add_scaled(r, alphas[slot] - beta, _at(state.s, slot))

    start = gradient, jnp.zeros_like(state.inverse_products)
    q, alphas = jax.lax.fori_loop(0, size, back, start)
    # From here on in units of the result, not of the gradient.
    is_far = (gamma > numerics.LARGE) | (unit > 1)
    scale = jnp.where(is_far, numerics.power_of_two_below(gamma), 1)
    alphas = alphas * unit.astype(alphas.dtype) / scale.astype(alphas.dtype)
    r = jax.lax.fori_loop(0, size, forth, tree.scale(gamma / scale, q))
    return tree.scale(scale, r)


def _at(ring: Updates, slot: jax.Array) -> Updates:
    return jax.tree.map(lambda x: x[slot], ring)


def _add_scaled(a: Updates, factor: jax.Array, b: Updates) -> Updates:
    return tree.add(a, tree.scale(factor, b))

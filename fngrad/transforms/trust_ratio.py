r"""Trust ratios: updates in proportion to the parameters that they change.

A *trust ratio* is $\eta\,\|w\| / \|u\|$ for a leaf with parameters $w$ and update $u$.
Each leaf then moves by the same fraction of its norm. The ratio is 1 where either norm
is zero, so that parameters initialized at zero can move.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.types import Hyper, Metrics, Params, Selector, Updates


class TrustRatios(NamedTuple):
    """Trust ratios as trees of their parts: numerator / (denominator / scale)."""

    numerators: Any
    denominators: Any  # of scale * u, where the norm of u does not fit
    scales: Any  # 1, or a power of two below

    def values(self) -> Any:
        return jax.tree.map(lambda a, b, scale: a / b * scale, *self)

    def at_most(self, bound: jax.Array) -> "TrustRatios":
        """Return the ratios, bounded."""

        def clip(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
            return jnp.minimum(a, bound * (b / scale))

        return self._replace(numerators=jax.tree.map(clip, *self))

    def scale(self, updates: Updates) -> Updates:
        return tree.map_leaves(numerics.times_ratio, updates, *self)


class TrustRatioState(NamedTuple):
    """State of `scale_by_trust_ratio` and of `fngrad.lars`."""

    step: jax.Array  # int32, shape ()


def scale_by_trust_ratio(
    min_norm: Hyper = 0.0,
    trust_coefficient: Hyper = 1.0,
    eps: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    max_ratio: Hyper | None = None,
) -> Transform:
    r"""Multiply each leaf's update by its trust ratio.

    $$u \leftarrow \rho\,u, \qquad
      \rho = \eta\,\frac{\max(\|w\|, m)}{\max(\|u\|, m) + \epsilon}$$

    and $\rho = 1$ where either norm, after the maximum, is zero. It reports
    ``smallest_ratio`` and ``largest_ratio`` among the selected leaves.

    Args:
        min_norm: $m$ >= 0, in the units of the parameters and in those of the updates.
        trust_coefficient: $\eta$ >= 0.
        eps: $\epsilon$ >= 0, in units of the updates.
        mask: which leaves are scaled, see `fngrad.tree.select`; ``None`` means all.
            The other leaves' updates pass unchanged.
        max_ratio: the largest ratio, >= 0; ``None`` sets no bound.

    Raises:
        ValueError: if a number is negative; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> rule, params = fg.scale_by_trust_ratio(), jnp.array([6.0, 8.0])
        >>> print(rule.update(jnp.array([0.0, 2.0]), rule.init(params), params)[0])
        [ 0. 10.]

    References:
        See `fngrad.lamb`.
    """
    numerics.check_number("min_norm", min_norm, low=0.0)
    numerics.check_number("trust_coefficient", trust_coefficient, low=0.0)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("max_ratio", max_ratio, low=0.0, optional=True)

    def init(params: Params) -> TrustRatioState:
        tree.check_mask(mask, params)
        return TrustRatioState(numerics.first_step())

    def ratios_of(updates: Updates, step: jax.Array, params: Params) -> TrustRatios:
        low, coefficient, outside = numerics.hypers(
            step, min_norm, trust_coefficient, eps
        )

        param_norms, update_norms, scales = norms(params), *fitting_norms(updates)
        param_norms = jax.tree.map(lambda w: jnp.maximum(w, low), param_norms)
        update_norms = jax.tree.map(
            lambda u, r: jnp.maximum(u, low * r), update_norms, scales
        )
        ratios = trust_ratios(coefficient, param_norms, update_norms, outside, scales)
        return (
            ratios
            if max_ratio is None
            else ratios.at_most(numerics.hyper(max_ratio, step))
        )

    def report(
        updates: Updates, state: TrustRatioState, params: Params
    ) -> tuple[Updates, TrustRatioState, Metrics]:
        ratios = ratios_of(updates, state.step, params)
        return apply_ratios(mask, ratios, updates, state, params)

    return chain(from_report(init, report, "scale_by_trust_ratio"))


def trust_ratios(
    coefficient: jax.Array,
    param_norms: Any,
    update_norms: Any,
    eps: jax.Array,
    scales: Any,
) -> TrustRatios:
    """Return coefficient ||w|| / (||u|| + eps), and 1 where either norm is 0."""
    are_one = jax.tree.map(lambda w, u: (w == 0) | (u == 0), param_norms, update_norms)

    def unless_one(fn: Any, *trees: Any) -> Any:
        # Select before the division, as in numerics.divide.
        return jax.tree.map(
            lambda is_one, *x: jnp.where(is_one, jnp.ones_like(x[0]), fn(*x)),
            are_one,
            *trees,
        )

    return TrustRatios(
        unless_one(lambda w: coefficient * w, param_norms),
        unless_one(lambda u, scale: u + eps * scale, update_norms, scales),
        unless_one(lambda scale: scale, scales),
    )


def norms(a: Any) -> Any:
    """Return each leaf's norm, in the dtype of hyperparameters."""
    return tree.map_leaves(
        lambda x: tree.norm(x).astype(jnp.result_type(float)), tree.widen(a)
    )


def fitting_norms(a: Any) -> tuple[Any, Any]:
    """Return each leaf's norm and rate, see `fngrad.numerics.fitting_norm`."""
    dtype = jnp.result_type(float)

    def measure(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm, rate = numerics.fitting_norm(tree.norm, x)
        return norm.astype(dtype), rate.astype(dtype)

    return tree.map_leaves(measure, tree.widen(a), outputs=2)


def apply_ratios(
    mask: Selector | None,
    ratios: TrustRatios,
    updates: Updates,
    state: TrustRatioState,
    params: Params,
) -> tuple[Updates, TrustRatioState, Metrics]:
    """Multiply the updates of selected leaves by their ratios, and report the ratios.

    The metrics are ``smallest_ratio`` and ``largest_ratio``.
    """
    new_updates = _scale_selected(mask, params, ratios, updates)
    new_state = TrustRatioState(numerics.next_step(state.step))
    return new_updates, new_state, _extremes(mask, params, ratios.values())


def _scale_selected(
    mask: Selector | None, params: Params, ratios: TrustRatios, updates: Updates
) -> Updates:
    return jax.tree.map(
        lambda is_scaled, u, plain: u if is_scaled else plain,
        tree.selected(mask, params),
        ratios.scale(updates),
        updates,
    )


def _extremes(mask: Selector | None, params: Params, ratios: Any) -> Metrics:
    scaled = jax.tree.leaves(tree.keep(tree.selected(mask, params), ratios))
    flat = jnp.concatenate([jnp.ravel(r) for r in scaled] or [jnp.ones(1, float)])
    return {"smallest_ratio": jnp.min(flat), "largest_ratio": jnp.max(flat)}

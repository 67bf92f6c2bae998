"""Hyperball: steps of a relative length on the sphere of the initial norm."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.optimizers.adam import adam, scale_by_adam
from fngrad.optimizers.muon import scale_by_muon
from fngrad.transforms.core import Transform, TransformLike, chain, from_report
from fngrad.transforms.matrix_leaves import with_rest
from fngrad.transforms.polar_factors import QUINTIC, Coefficients, of_length
from fngrad.transforms.scaling import check_learning_rate
from fngrad.types import Hyper, Metrics, Params, Selector, Updates


class ScaleByHyperballState(NamedTuple):
    """State of `scale_by_hyperball`."""

    step: jax.Array  # int32, shape ()
    radius: Params  # initial norm of each leaf, shape ()
    chain_order = queries.LAST_CHANGE  # type: int


def scale_by_hyperball(learning_rate: Hyper) -> Transform:
    r"""Step along a direction by a share of the norm, then back to the initial norm.

    It takes directions $u_t$ of ascent and comes last in a chain, in place of the
    learning rate, for any rule; `muonh` has the equations and the reference. Reports
    ``learning_rate``, its present value.

    Each leaf has its own sphere, of radius $R = \|w_0\|_F$; the norm that it returns to
    is kept in the state, so that rounding does not add up. A leaf that starts at zero
    has no sphere: its steps have length $\alpha_t$ and are not projected.

    Args:
        learning_rate: $\alpha$, a share of the norm: a number >= 0, a scalar array or
            tracer, or a schedule.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> rule = fg.chain(fg.scale_by_sign(), fg.scale_by_hyperball(0.1))
        >>> params = jnp.array([3.0, 4.0])
        >>> updates, _ = rule.update(params, rule.init(params), params)
        >>> print(jnp.linalg.norm(params + updates).round(4))
        5.0
    """
    check_learning_rate(learning_rate)

    def init(params: Params) -> ScaleByHyperballState:
        radius = tree.map_leaves(tree.norm, tree.wide_copy(params))
        return ScaleByHyperballState(numerics.first_step(), radius)

    def report(
        updates: Updates, state: ScaleByHyperballState, params: Params
    ) -> tuple[Updates, ScaleByHyperballState, Metrics]:
        rate = numerics.hyper(learning_rate, state.step)

        def step(u: jax.Array, w: jax.Array, radius: jax.Array) -> jax.Array:
            w, has_sphere = w.astype(u.dtype), radius > 0
            share = rate.astype(radius.dtype)
            moved = w - of_length(u, share * jnp.where(has_sphere, radius, 1))
            back = of_length(moved, jnp.where(has_sphere, radius, tree.norm(moved)))
            return back - w

        new_updates = tree.map_leaves(step, updates, params, state.radius)
        new_state = state._replace(step=numerics.next_step(state.step))
        return new_updates, new_state, {"learning_rate": rate}

    return chain(from_report(init, report, "scale_by_hyperball"))


def muonh(
    learning_rate: Hyper,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    *,
    nesterov: bool = True,
    ns_dtype: DTypeLike | None = None,
    matrices: Selector | None = None,
    rest: TransformLike | None = None,
) -> Transform:
    r"""MuonH: Muon's direction, with constant norms of weights and steps.

    With Muon's direction $u_t$ (see `muon`) and $R = \|w_0\|_F$

    $$w_{t+1} = R\,\operatorname{norm}\big(
      w_t - \alpha_t R\,\operatorname{norm}(u_t)\big), \qquad
      \operatorname{norm}(x) = \frac{x}{\|x\|_F}$$

    so that the learning rate is the relative length of a step, about the angle by which
    the weights turn, whatever their size. It takes the place of weight decay. Layers
    whose scale has no effect, as those before a normalization, lose nothing by it. All
    other leaves go to `adam`.

    Args:
        learning_rate: $\alpha$, a share of the norm: a number >= 0, a scalar array or
            tracer, or a schedule.
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        nesterov: whether to look ahead.
        ns_dtype: dtype of the iterations; ``None`` means at least float32.
        matrices: which leaves stay on their spheres, see `fngrad.tree.select`; ``None``
            means those of two axes. One that starts at zero has no sphere, see
            `scale_by_hyperball`.
        rest: the rule for the other leaves; ``None`` means ``adam(learning_rate)``.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            matrix is complex.
        ValueError: if a number is out of range, or the coefficients do not fit; at
            ``init``, if a leaf to orthogonalize has fewer than two axes, or a glob
            selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.muonh(0.02, matrices="layers/*/weight", rest=fg.adam(3e-3))

    References:
        Wen, Dang, Lyu, Ma and Liang, Fantastic pretraining optimizers and where to find
        them 2.1: hyperball optimization, 2025,
        https://whenwen.github.io/wd_blog/public/hyperball-part-1.html.
    """
    rule = scale_by_muon(
        ns_coeffs, ns_steps, beta, eps, nesterov=nesterov, ns_dtype=ns_dtype
    )
    on_spheres = chain(rule, scale_by_hyperball(learning_rate))
    rest = adam(learning_rate) if rest is None else rest
    return with_rest("muonh", on_spheres, rest, matrices)


def adamh(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool = False,
    matrices: Selector | None = None,
    rest: TransformLike | None = None,
) -> Transform:
    r"""AdamH: Adam's direction, with constant norms of weights and steps.

    As `muonh`, with Adam's direction $u_t$ (see `adam`).

    Args:
        learning_rate: $\alpha$, a share of the norm: a number >= 0, a scalar array or
            tracer, or a schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether to look ahead.
        matrices: which leaves stay on their spheres, see `muonh`.
        rest: the rule for the other leaves; ``None`` means `adam` with the same
            arguments.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.adamh(0.02, b2=0.95, matrices="layers/*/weight")

    References:
        The reference of `muonh`.
    """
    rule = scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)
    on_spheres = chain(rule, scale_by_hyperball(learning_rate))
    if rest is None:
        rest = adam(learning_rate, b1, b2, eps, eps_root, nesterov=nesterov)
    return with_rest("adamh", on_spheres, rest, matrices)

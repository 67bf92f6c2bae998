"""AdaMuon: Muon with a second moment of the orthogonalized update."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.optimizers.muon import of_matrices
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.transforms.core import Transform, TransformLike, chain
from fngrad.transforms.matrix_leaves import check_axes
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_decay,
    divide_by_root,
    zero_moment,
)
from fngrad.transforms.polar_factors import (
    QUINTIC,
    Coefficients,
    check_coefficients,
    of_length,
    polar_factor,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByAdamuonState(NamedTuple):
    """State of `scale_by_adamuon`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of o**2

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_adamuon(
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    *,
    nesterov: bool = False,
    consistent_rms: Hyper = 0.2,
    ns_dtype: DTypeLike | None = None,
) -> Transform:
    r"""Orthogonalize the momentum's signs, then normalize: AdaMuon's direction.

    Returns $u_t$ of `adamuon`; see there for the equations and the references.

    Args:
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1], of both averages.
        eps: $\epsilon$ >= 0, in units of $o_t$.
        nesterov: whether to look ahead.
        consistent_rms: $\rho$ >= 0.
        ns_dtype: dtype of the iterations, see `fngrad.orthogonalize`.

    Raises:
        TypeError: at ``init``, if a leaf is complex.
        ValueError: if a number is out of range, or the coefficients do not fit; at
            ``init``, if a leaf has fewer than two axes.
    """
    check_decay("beta", beta, corrected=False)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("consistent_rms", consistent_rms, low=0.0)
    check_coefficients(ns_coeffs, ns_steps)

    def init(params: Params) -> ScaleByAdamuonState:
        tree.check_real("scale_by_adamuon", params)
        check_axes("scale_by_adamuon", params)
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByAdamuonState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdamuonState, params: Params
    ) -> tuple[Updates, ScaleByAdamuonState]:
        decay, floor = numerics.hypers(state.step, beta, eps)
        rms = numerics.hyper(consistent_rms, state.step)
        mu = tree.average(decay, state.mu, updates)
        ahead = tree.average(decay, mu, updates) if nesterov else mu

        def direct(
            place: Place, m: jax.Array, nu: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            least, signs = floor.astype(m.dtype), jnp.sign(m)
            o = polar_factor(place, signs, ns_coeffs, ns_steps, least, ns_dtype)
            o = o.reshape(m.shape)
            nu = average_square(decay, nu, o)
            u = divide_by_root(o, nu, 0, floor)
            return of_length(u, rms * m.size**0.5), nu

        mesh = auto_mesh_of(updates, state, params)
        new_updates, nu = map_matrices(direct, ahead, state.nu, mesh=mesh, outputs=2)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByAdamuonState(step, mu, nu)

    return chain(Transform(init, update, name="scale_by_adamuon"))


def adamuon(
    learning_rate: Hyper,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    nesterov: bool = False,
    consistent_rms: Hyper = 0.2,
    ns_dtype: DTypeLike | None = None,
    matrices: Selector | None = None,
    rest: TransformLike | None = None,
) -> Transform:
    r"""AdaMuon: Muon with a second moment per entry, AdamW for the rest.

    $$m_t = \beta\,m_{t-1} + (1 - \beta)\,g_t, \qquad
      o_t = \mathrm{orthogonalize}(\operatorname{sign}(m_t)), \qquad
      v_t = \beta\,v_{t-1} + (1 - \beta)\,o_t^2$$
    $$\hat o_t = \frac{o_t}{\sqrt{v_t} + \epsilon}, \qquad
      u_t = \rho \sqrt{n_{in} n_{out}}\,\frac{\hat o_t}{\|\hat o_t\|_F}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    The root mean square of the update is $\rho$, near Adam's, and Adam's learning rate
    fits. Because of the signs the direction does not depend on the size of the
    gradient's entries. All other leaves go to `adamw`. For stacked layers and meshes
    see `muon`.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1], of both averages.
        eps: $\epsilon$ >= 0, in units of $o_t$.
        weight_decay: $\lambda$ of the matrices.
        mask: which of them decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether to look ahead, as the authors' code does: the signs are those
            of $\beta\,m_t + (1 - \beta)\,g_t$.
        consistent_rms: $\rho$ >= 0.
        ns_dtype: dtype of the iterations; ``None`` means at least float32.
        matrices: which leaves are orthogonalized, see `fngrad.tree.select`; ``None``
            means those of two axes. A kernel of more axes counts as a matrix whose
            columns are its last axis.
        rest: the rule for the other leaves; ``None`` means ``adamw(learning_rate)``
            without decay.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            matrix is complex.
        ValueError: if a number is out of range, or the coefficients do not fit; at
            ``init``, if a leaf to orthogonalize has fewer than two axes, or a glob
            selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.adamuon(1e-3, weight_decay=0.1, matrices="layers/*/weight")

    References:
        Si, Zhang and Shen, AdaMuon: adaptive Muon optimizer, 2025, algorithm 1,
        https://arxiv.org/abs/2507.11005. Differs from it in: $m_t$ is an average, not a
        sum, which has the same signs.
    """
    rule = scale_by_adamuon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        nesterov=nesterov,
        consistent_rms=consistent_rms,
        ns_dtype=ns_dtype,
    )
    return of_matrices(
        "adamuon", rule, learning_rate, weight_decay, mask, matrices, rest
    )

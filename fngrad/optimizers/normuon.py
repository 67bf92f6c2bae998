"""NorMuon: Muon whose neurons take steps of one size."""

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
    check_decay,
    divide_by_root,
    real_dtype,
)
from fngrad.transforms.polar_factors import (
    QUINTIC,
    Coefficients,
    check_coefficients,
    of_length,
    polar_factor,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByNormuonState(NamedTuple):
    """State of `scale_by_normuon`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of a neuron's mean square, shape (out,)

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_normuon(
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    beta2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    *,
    nesterov: bool = False,
    consistent_rms: Hyper | None = 0.2,
    ns_dtype: DTypeLike | None = None,
) -> Transform:
    r"""Orthogonalize the momentum, then normalize each neuron: NorMuon's direction.

    Returns $u_t$ of `normuon`; see there for the equations and the references.

    Args:
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta_1$ in [0, 1].
        beta2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, added to the norm of the momentum, in gradient units, and
            to the neurons' root mean squares.
        nesterov: whether to look ahead.
        consistent_rms: $\rho$ >= 0, or ``None``, see `normuon`.
        ns_dtype: dtype of the iterations, see `fngrad.orthogonalize`.

    Raises:
        TypeError: at ``init``, if a leaf is complex.
        ValueError: if a number is out of range, or the coefficients do not fit; at
            ``init``, if a leaf has fewer than two axes.
    """
    check_decay("beta", beta, corrected=False)
    check_decay("beta2", beta2, corrected=False)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("consistent_rms", consistent_rms, low=0.0, optional=True)
    check_coefficients(ns_coeffs, ns_steps)

    def init(params: Params) -> ScaleByNormuonState:
        tree.check_real("scale_by_normuon", params)
        check_axes("scale_by_normuon", params)
        nu = tree.map_leaves(
            lambda p: tree.zeros(p, real_dtype(p), p.shape[-1:]), params
        )
        return ScaleByNormuonState(
            numerics.first_step(), tree.wide_zeros_like(params), nu
        )

    def update(
        updates: Updates, state: ScaleByNormuonState, params: Params
    ) -> tuple[Updates, ScaleByNormuonState]:
        decay, decay2, floor = numerics.hypers(state.step, beta, beta2, eps)
        rms = None
        if consistent_rms is not None:
            rms = numerics.hyper(consistent_rms, state.step)
        mu = tree.average(decay, state.mu, updates)
        ahead = tree.average(decay, mu, updates) if nesterov else mu

        def direct(
            place: Place, m: jax.Array, nu: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            least = floor.astype(m.dtype)
            o = polar_factor(place, m, ns_coeffs, ns_steps, least, ns_dtype)
            square = jnp.sum(o * o, axis=0) / max(o.shape[0], 1)
            nu = tree.average(decay2, nu, square)
            u = divide_by_root(o, jnp.broadcast_to(nu, o.shape), 0, floor)
            return of_length(u, _length(o, rms)).reshape(m.shape), nu

        mesh = auto_mesh_of(updates, state, params)
        new_updates, nu = map_matrices(direct, ahead, state.nu, mesh=mesh, outputs=2)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByNormuonState(step, mu, nu)

    return chain(Transform(init, update, name="scale_by_normuon"))


def normuon(
    learning_rate: Hyper,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    beta2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    nesterov: bool = False,
    consistent_rms: Hyper | None = 0.2,
    ns_dtype: DTypeLike | None = None,
    matrices: Selector | None = None,
    rest: TransformLike | None = None,
) -> Transform:
    r"""NorMuon: Muon with a second moment per neuron, AdamW for the rest.

    With the columns j of a matrix, one per neuron (output),

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      o_t = \mathrm{orthogonalize}(\mu_t), \qquad
      \nu_{t,j} = \beta_2\,\nu_{t-1,j} +
      (1 - \beta_2)\,\operatorname{mean}_i o_{t,ij}^2$$
    $$\hat o_{t,ij} = \frac{o_{t,ij}}{\sqrt{\nu_{t,j}} + \epsilon}, \qquad
      u_t = s\,\frac{\hat o_t}{\|\hat o_t\|_F}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    The length is $s = \rho \sqrt{n_{in} n_{out}}$, so that the root mean square of the
    update is $\rho$, near Adam's, and Adam's learning rate fits. With
    ``consistent_rms=None`` it is Muon's,
    $s = \sqrt{\max(1, n_{out} / n_{in})}\,\|o_t\|_F$, as in the authors' code, which
    looks ahead too (``nesterov=True``). All other leaves go to `adamw`. For stacked
    layers and meshes see `muon`.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta_1$ in [0, 1].
        beta2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, see `scale_by_normuon`.
        weight_decay: $\lambda$ of the matrices.
        mask: which of them decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether to look ahead: $\beta_1 \mu_t + (1 - \beta_1)\,g_t$ is
            orthogonalized.
        consistent_rms: $\rho$ >= 0, or ``None`` for Muon's length.
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
        >>> optimizer = fg.normuon(1e-3, weight_decay=0.1, matrices="layers/*/weight")
        >>> other_rest = fg.normuon(1e-3, "polar_express", rest=fg.lion(1e-4))

    References:
        Li et al., NorMuon: making Muon more efficient and scalable, 2025, algorithm 1,
        https://arxiv.org/abs/2510.05491. Differs from it in: a matrix is (in, out), so
        that a neuron is a column.
    """
    rule = scale_by_normuon(
        ns_coeffs,
        ns_steps,
        beta,
        beta2,
        eps,
        nesterov=nesterov,
        consistent_rms=consistent_rms,
        ns_dtype=ns_dtype,
    )
    return of_matrices(
        "normuon", rule, learning_rate, weight_decay, mask, matrices, rest
    )


def _length(o: jax.Array, rms: jax.Array | None) -> jax.Array:
    """Return the Frobenius norm of the direction."""
    rows, columns = o.shape
    if rms is None:
        return max(1.0, columns / max(rows, 1)) ** 0.5 * tree.norm(o)
    return rms * o.size**0.5

"""Dion: orthogonalized updates of low rank, by one power iteration per step."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import matmul
from fngrad.optimizers.muon import of_matrices
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.transforms.core import Transform, TransformLike, chain
from fngrad.transforms.matrix_leaves import check_axes
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.types import Hyper, Key, Params, Scalar, Selector, Updates


class ScaleByDionState(NamedTuple):
    """State of `scale_by_dion`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # what no update has had yet of the gradients' sum
    basis: Params  # of each matrix, shape (in, rank)

    signed = ("mu",)  # type: tuple[str, ...]


def scale_by_dion(
    rank_fraction: float = 1, beta: Hyper = 0.95, *, key: Key | int = 0
) -> Transform:
    r"""Orthogonalize the momentum's leading directions: Dion's direction.

    Returns $u_t$ of `dion`; see there for the equations and the reference.

    Args:
        rank_fraction: the rank over the smaller axis, in (0, 1], rounded up; a Python
            number, since it determines shapes.
        beta: $\beta$ in [0, 1].
        key: of the first basis; leaves of one shape begin with one basis.

    Raises:
        TypeError: at ``init``, if a leaf is complex.
        ValueError: if a number is out of range; at ``init``, if a leaf has fewer than
            two axes.
    """
    if not isinstance(rank_fraction, numbers.Real) or not 0 < rank_fraction <= 1:
        raise ValueError(
            "need a Python number 0 < rank_fraction <= 1, which determines shapes, "
            f"got {rank_fraction=}"
        )
    check_decay("beta", beta, corrected=False)
    numerics.key(key)

    def start(p: jax.Array) -> jax.Array:
        rows, columns = math.prod(p.shape[:-1]), p.shape[-1]
        rank = math.ceil(rank_fraction * min(rows, columns))
        basis = jax.random.normal(numerics.key(key), (rows, rank), jnp.float32)
        return basis.astype(tree.wide_dtype(p.dtype))

    def init(params: Params) -> ScaleByDionState:
        tree.check_real("scale_by_dion", params)
        check_axes("scale_by_dion", params)
        basis = tree.map_leaves(start, params)
        mu = tree.wide_zeros_like(params)
        return ScaleByDionState(numerics.first_step(), mu, basis)

    def update(
        updates: Updates, state: ScaleByDionState, params: Params
    ) -> tuple[Updates, ScaleByDionState]:
        decay = numerics.hyper(beta, state.step)

        def direct(
            place: Place, g: jax.Array, m: jax.Array, basis: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            total = place.gather(numerics.bounded(m + g.astype(m.dtype), m, g))
            total = total.reshape(len(basis), g.shape[-1])
            p, r, new_basis = _power_iteration(total, place.gather(basis))
            seen = matmul(r, p.T)
            m = total - numerics.scaled(1 - decay, seen)
            u = (g.shape[-1] / max(len(basis), 1)) ** 0.5 * matmul(new_basis, p.T)
            is_new = jnp.broadcast_to(jnp.any(new_basis != 0, axis=0), basis.shape)
            basis = jnp.where(is_new, new_basis, basis)
            return u.reshape(g.shape), m.reshape(g.shape), basis

        mesh = auto_mesh_of(updates, state, params)
        new_updates, mu, basis = map_matrices(
            direct, updates, state.mu, state.basis, mesh=mesh, outputs=3
        )
        return new_updates, ScaleByDionState(numerics.next_step(state.step), mu, basis)

    return chain(Transform(init, update, name="scale_by_dion"))


def dion(
    learning_rate: Hyper,
    rank_fraction: float = 1,
    beta: Hyper = 0.95,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    key: Key | int = 0,
    matrices: Selector | None = None,
    rest: TransformLike | None = None,
) -> Transform:
    r"""Dion: orthogonalized momentum of low rank, AdamW for the rest.

    With the right basis $Q_t$ of shape (in, r) and the momentum $M_t$, of shape
    (in, out), both as they were left by the step before,

    $$B_t = M_{t-1} + g_t, \qquad
      P_t = \mathrm{qr}(B_t^\top Q_{t-1}), \qquad
      R_t = B_t\,P_t, \qquad
      M_t = B_t - (1 - \beta)\,R_t P_t^\top$$
    $$Q_{t,j} = \frac{R_{t,j}}{\|R_{t,j}\|}, \qquad
      u_t = \sqrt{n_{out} / n_{in}}\;Q_t P_t^\top, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    One power iteration per step follows the leading singular vectors as they move; what
    the r directions leave out stays in the momentum whole (error feedback) and gets its
    turn. With full rank it does what Muon does, by products of thinner matrices and one
    QR decomposition. A direction that the momentum lacks, up to rounding, takes no
    step. All other leaves go to `adamw`. For stacked layers and meshes see `muon`.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        rank_fraction: r over the smaller axis, in (0, 1], rounded up; a Python number,
            since it determines shapes.
        beta: $\beta$ in [0, 1].
        weight_decay: $\lambda$ of the matrices.
        mask: which of them decay, see `fngrad.tree.select`; ``None`` means all.
        key: of the first basis; leaves of one shape begin with one basis.
        matrices: which leaves are orthogonalized, see `fngrad.tree.select`; ``None``
            means those of two axes. A kernel of more axes counts as a matrix whose
            columns are its last axis.
        rest: the rule for the other leaves; ``None`` means ``adamw(learning_rate)``
            without decay.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            matrix is complex.
        ValueError: if a number is out of range; at ``init``, if a leaf to orthogonalize
            has fewer than two axes, or a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dion(0.01, rank_fraction=0.25, matrices="layers/*/weight")

    References:
        Ahn, Xu, Abreu and Langford, Dion: distributed orthonormalized updates, 2025,
        algorithm 1, https://arxiv.org/abs/2504.05295. Differs from it in: a matrix is
        (in, out), directions below rounding take no step, and AdamW, not Lion, has the
        rest.
    """
    rule = scale_by_dion(rank_fraction, beta, key=key)
    return of_matrices("dion", rule, learning_rate, weight_decay, mask, matrices, rest)


def _power_iteration(
    b: jax.Array, basis: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return P, R and the columns of R of norm one, zero where they are rounding."""
    largest = jnp.max(jnp.abs(b), initial=0)
    unit = numerics.power_of_two_below(largest)  # squares may not fit
    b = numerics.divided(b, unit)
    p = jnp.linalg.qr(matmul(b.T, basis))[0]
    r = matmul(b, p)
    norms = numerics.norm(r, 0)
    rounding = max(b.shape) * jnp.finfo(b.dtype).eps * tree.norm(b).astype(b.dtype)
    length: Scalar = jnp.where(norms > rounding, norms, 0)
    lengths = jnp.broadcast_to(length, r.shape)
    return p, numerics.scaled(unit, r), numerics.divide(r, lengths)

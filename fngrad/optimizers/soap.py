"""SOAP: Adam in the eigenvectors of Shampoo's statistics."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import Axes, along, gram, matmul
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import AnyMesh, auto_mesh_of
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_decay,
    check_moments,
    divide_by_root,
    remove_bias,
    shrunk_leaf,
    squarable,
    zero_moment,
)
from fngrad.types import Hyper, Params, Selector, Updates

ROUNDING = 8  # error of a rotated entry, in units of machine precision


class ScaleBySoapState(NamedTuple):
    """State of `scale_by_soap`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of the squares of g in the eigenbases
    statistics: Updates  # a tuple per leaf: (n, n) for each axis, None if left alone
    bases: Updates  # their eigenvectors, in columns
    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_soap(
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    shampoo_beta: Hyper | None = None,
    eps: Hyper = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    precondition_1d: bool = False,
    skip_first: bool = True,
) -> Transform:
    r"""Run Adam in the eigenvectors of Shampoo's statistics: SOAP's direction.

    Returns $u_t$ of `soap`; see there for the equations and the reference. Derivatives
    treat the bases as constants, because they have no derivative where eigenvalues are
    equal.

    The direction depends on the basis. Where eigenvalues are equal or zero, any basis
    of their subspace is right; which one the decomposition returns depends on the
    machine, and the direction within that subspace is Adam's in that basis. The same
    holds for eigenvalues that differ by less than the rounding of the largest.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        shampoo_beta: $\beta$ in [0, 1); ``None`` takes $\beta_2$.
        eps: $\epsilon$ >= 0, in gradient units.
        precondition_frequency: the number of Adam's steps from one renewal of a basis
            to the next.
        max_precond_dim: the longest axis to be rotated.
        precondition_1d: whether leaves of one axis are rotated too.
        skip_first: whether the first gradient only sets the bases, with an update of
            zero, so that no gradient is divided by a scale found in its own
            eigenvectors. If not, it also takes the first step of Adam.

    Raises:
        TypeError: at ``init``, if a leaf is complex.
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps)
    if shampoo_beta is not None:
        check_decay("shampoo_beta", shampoo_beta, corrected=True)
    every = numerics.check_count("precondition_frequency", precondition_frequency, 1)
    max_precond_dim = numerics.check_count("max_precond_dim", max_precond_dim)

    def empty(p: jax.Array) -> Axes:
        is_rotated = p.size > 0 and (p.ndim > 1 or precondition_1d)
        dtype = tree.wide_dtype(p.dtype)
        sizes = [n if is_rotated and n <= max_precond_dim else None for n in p.shape]
        return tuple(n if n is None else tree.zeros(p, dtype, (n, n)) for n in sizes)

    def init(params: Params) -> ScaleBySoapState:
        tree.check_real("scale_by_soap", params)
        statistics, bases = (tree.map_leaves(empty, params) for _ in range(2))
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleBySoapState(numerics.first_step(), mu, nu, statistics, bases)

    def update(
        updates: Updates, state: ScaleBySoapState, params: Params
    ) -> tuple[Updates, ScaleBySoapState]:
        beta = numerics.hyper(b2 if shampoo_beta is None else shampoo_beta, state.step)
        updates = tree.map_leaves(_squarable, updates, state.bases)
        mesh = auto_mesh_of(updates, state, params)
        state = _with_statistics(updates, state, beta, mesh)
        t = jnp.maximum(state.step - int(skip_first), 0)  # Adam's step
        beta_1, beta_2 = (numerics.hyper(b, state.step) for b in (b1, b2))
        rotated = map_matrices(_rotate, updates, state.bases, mesh=mesh)
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, rotated)
        if skip_first:
            mu, nu = tree.where(state.step == 0, (state.mu, state.nu), (mu, nu))
        mu_hat, nu_hat = remove_bias(mu, beta_1, t), remove_bias(nu, beta_2, t)
        mu_hat = map_matrices(_rotate, mu_hat, state.bases, mesh=mesh)
        direction = divide_by_root(mu_hat, nu_hat, 0, numerics.hyper(eps, state.step))
        new_updates = map_matrices(_multiply, direction, state.bases, mesh=mesh)
        is_due = (state.step > 0) & ((t + 1) % every == 0)
        nu, bases = _follow(is_due, nu, state.statistics, state.bases, mesh=mesh)
        step = numerics.next_step(state.step)
        return new_updates, state._replace(step=step, mu=mu, nu=nu, bases=bases)

    return chain(Transform(init, update, name="scale_by_soap"))


def soap(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    shampoo_beta: Hyper | None = None,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    mask: Selector | None = None,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    precondition_1d: bool = False,
    skip_first: bool = True,
) -> Transform:
    r"""SOAP: Adam in the eigenvectors of Shampoo's statistics, with weight decay.

    For a matrix, with $Q_L$ and $Q_R$ the eigenvectors of $L$ and $R$,

    $$G' = Q_L^\top G\,Q_R, \qquad
      M_t = \beta_1 M_{t-1} + (1 - \beta_1)\,G, \qquad
      V_t = \beta_2 V_{t-1} + (1 - \beta_2)\,G' \odot G'$$
    $$u_t = Q_L\,\frac{\hat M'_t}{\sqrt{\hat V_t} + \epsilon}\,Q_R^\top, \qquad
      M'_t = Q_L^\top M_t\,Q_R, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    where $\hat M'$ and $\hat V$ are debiased as in Adam; then

    $$L \leftarrow \beta L + (1 - \beta)\,G G^\top, \qquad
      R \leftarrow \beta R + (1 - \beta)\,G^\top G$$

    $Q_L$ and $Q_R$ are computed from the first gradient, whose step is weight decay
    alone. Later, every ``precondition_frequency`` steps, they take one power iteration
    $Q \leftarrow \mathrm{qr}(L\,Q)$, columns (and $V$ with them) sorted by
    $\mathrm{diag}(Q^\top L\,Q)$. Adam's average of the gradient is rotated with the
    bases, and its average of squares is not. A leaf of more axes has one statistic per
    axis. Without rotated axes, as for vectors, this is Adam.

    A stack of layers, as those of `fngrad.layers.repeat` and of models with
    ``scan=True``, is one leaf that is rotated along the axis of the layers too;
    `fngrad.layerwise` gives each layer its own bases.

    On a mesh (`fngrad.sharding`) every device decomposes every statistic, which is
    gathered once for it, and keeps its part of the basis; where `stack_leaves` stacks
    equal matrices, each device decomposes its share if the size of the mesh axis "data"
    divides their number.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        shampoo_beta: $\beta$ in [0, 1), decay of the averages of $G G^\top$ and
            $G^\top G$; ``None`` takes $\beta_2$.
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        precondition_frequency: the number of Adam's steps from one renewal of a basis
            to the next.
        max_precond_dim: the longest axis to be rotated.
        precondition_1d: whether leaves of one axis are rotated too.
        skip_first: whether the first gradient only sets the bases; if not, it also
            takes the first step of Adam.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            leaf is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.soap(3e-3, precondition_frequency=10, mask="**/weight")
        >>> of_scanned_blocks = fg.layerwise(fg.soap(3e-3), "blocks/**")

    References:
        Vyas et al., SOAP: improving and stabilizing Shampoo using Adam, 2024,
        algorithms 3 and 4, https://arxiv.org/abs/2409.11321; the official code,
        https://github.com/nikhilvyas/SOAP. Differs from the paper in: the skipped first
        step and the sorting, which are the code's. From the code in: $\epsilon$ is
        added to the debiased root, as in Adam; entries of $G'$ and $M'$ within rounding
        of zero (8 units of machine precision of the leaf's largest, times the root of
        its longest axis) count as zero, where Adam would take steps of full length;
        weights decay as in `adamw`, before the step and also on the skipped one.
    """
    rule = scale_by_soap(
        b1,
        b2,
        shampoo_beta,
        eps=eps,
        precondition_frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
        precondition_1d=precondition_1d,
        skip_first=skip_first,
    )
    return decaying(rule, learning_rate, weight_decay, mask)


def _squarable(g: jax.Array, bases: Axes) -> jax.Array:
    """Return a gradient whose squares fit; if it is rotated, its Gram matrices fit too.

    Bounding single entries would change the direction of a rotated gradient.
    """
    return shrunk_leaf(g) if _is_rotated(bases) else squarable(g)


def _is_rotated(axes: Axes) -> bool:
    return any(matrix is not None for matrix in axes)


def _with_statistics(
    updates: Updates, state: ScaleBySoapState, beta: jax.Array, mesh: AnyMesh | None
) -> ScaleBySoapState:
    """Average the gradient into the statistics; the first one sets the bases."""

    def observe(place: Place, g: jax.Array, axes: Axes) -> Axes:
        if _is_rotated(axes):
            g = place.gather(g)
        return tuple(
            None if s is None else tree.average(beta, s, gram(g, i))
            for i, s in enumerate(axes)
        )

    statistics = map_matrices(observe, updates, state.statistics, mesh=mesh)
    bases = _begin(state.step == 0, updates, statistics, state.bases, mesh=mesh)
    return state._replace(statistics=statistics, bases=bases)


# Jitted, or a step outside jit would compile the branches each time.
@functools.partial(jax.jit, static_argnames="mesh")
def _begin(
    is_first: jax.Array,
    updates: Updates,
    statistics: Updates,
    bases: Updates,
    *,
    mesh: AnyMesh | None,
) -> Updates:
    def decompose(place: Place, g: jax.Array, axes: Axes) -> Axes:
        axes = place.gather(axes)
        return place.gather(
            tuple(None if s is None else jnp.linalg.eigh(s)[1] for s in axes)
        )

    statistics = lax.stop_gradient(statistics)
    return lax.cond(
        is_first,
        lambda: map_matrices(decompose, updates, statistics, mesh=mesh),
        lambda: bases,
    )


@functools.partial(jax.jit, static_argnames="mesh")
def _follow(
    is_due: jax.Array,
    nu: Updates,
    statistics: Updates,
    bases: Updates,
    *,
    mesh: AnyMesh | None,
) -> tuple[Updates, Updates]:
    statistics = lax.stop_gradient(statistics)
    return lax.cond(
        is_due,
        lambda: map_matrices(_renew, nu, statistics, bases, mesh=mesh, outputs=2),
        lambda: (nu, bases),
    )


def _rotate(place: Place, x: jax.Array, bases: Axes) -> jax.Array:
    """Return x in the bases, with zeros for entries that are only rounding.

    Adam would divide the rounding by its own size: directions without a gradient would
    take steps of full length.
    """
    if not _is_rotated(bases):
        return x
    inverses = tuple(None if q is None else q.T for q in place.gather(bases))
    rotated = _multiply(place, x, inverses)
    size = jnp.abs(rotated)
    level = ROUNDING * max(x.shape) ** 0.5 * float(jnp.finfo(x.dtype).eps)
    is_noise = size <= level * jnp.max(size, initial=0)
    return jnp.where(is_noise, 0, rotated)


def _multiply(place: Place, x: jax.Array, matrices: Axes) -> jax.Array:
    """Multiply x along each axis by its matrix, where there is one."""
    if not _is_rotated(matrices):
        return x
    x = place.share(x)
    for i, matrix in enumerate(place.gather(matrices)):
        x = x if matrix is None else along(matrix, x, i)
    return place.share(x)


def _renew(
    place: Place, nu: jax.Array, statistics: Axes, bases: Axes
) -> tuple[jax.Array, Axes]:
    """Make one power iteration; the squares follow their eigenvectors."""
    if not _is_rotated(bases):
        return nu, bases
    renewed = []
    nu = place.share(nu)
    statistics, bases = place.gather((statistics, bases))
    for i, (s, q) in enumerate(zip(statistics, bases, strict=True)):
        if s is None:
            renewed.append(None)
            continue
        product = place.gather(matmul(s, q))
        order = place.gather(jnp.argsort(-jnp.sum(q * product, axis=0)))
        renewed.append(jnp.linalg.qr(product[:, order])[0])
        nu = jnp.take(nu, order, axis=i)
    return place.share(nu), place.gather(tuple(renewed))

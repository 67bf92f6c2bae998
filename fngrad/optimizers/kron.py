"""Kron: PSGD with one triangular factor of the preconditioner for each axis."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import Axes, along, diagonal, gram, matmul
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import AnyMesh, auto_mesh_of
from fngrad.transforms.blocks import clip_rms
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import check_decay, remove_bias, shrunk_leaf
from fngrad.types import Hyper, Key, Params, Scalar, Selector, Updates

DAMPING = (
    2.0**-11.5
)  # noise in the gradient, of its mean modulus: root of float32's eps
MAX_RMS = 1.1  # of a leaf's update
BALANCE_EVERY = 100  # steps
SAVING = (None, "one_diag", "all_diag")


class ScaleByKronState(NamedTuple):
    """State of `scale_by_kron`."""

    step: jax.Array  # int32, shape ()
    waited: jax.Array  # int32, shape (); steps since the factors were updated
    mu: Updates  # average of g
    factors: Updates  # a tuple per leaf: (n, n) for each axis, (n,) if diagonal

    signed = ("mu",)  # type: tuple[str, ...]


def scale_by_kron(
    b1: Hyper = 0.9,
    preconditioner_update_probability: Hyper | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    *,
    momentum_into_precond_update: bool = True,
    precond_lr: Hyper = 0.1,
    precond_init_scale: Scalar = 1.0,
    key: Key | int = 0,
) -> Transform:
    r"""Whiten the momentum with a Kronecker-factored preconditioner: Kron's direction.

    Returns $u_t$ of `kron`; see there for the equations, the arguments and the
    references.

    Args:
        b1: $\beta_1$ in [0, 1).
        preconditioner_update_probability: p in [0, 1]; ``None`` anneals it.
        max_size_triangular: the longest axis with a triangular factor.
        min_ndim_triangular: the fewest axes of a leaf with triangular factors.
        memory_save_mode: ``None``, ``"one_diag"`` or ``"all_diag"``.
        momentum_into_precond_update: whether $G$ is the momentum.
        precond_lr: $\eta$ >= 0.
        precond_init_scale: $s$ > 0.
        key: of the noise; leaves of one shape share it.

    Raises:
        TypeError: if the key is neither a typed key nor an int; at ``init``, if a leaf
            is complex.
        ValueError: if a number is out of range, or ``memory_save_mode`` is not one of
            its choices.
    """
    check_decay("b1", b1, corrected=True)
    numerics.check_number(
        *("preconditioner_update_probability", preconditioner_update_probability),
        *(0.0, 1.0),
        optional=True,
    )
    numerics.check_number("precond_lr", precond_lr, low=0.0)
    numerics.check_positive("precond_init_scale", precond_init_scale)
    numerics.check_choice("memory_save_mode", memory_save_mode, SAVING)
    longest = numerics.check_count("max_size_triangular", max_size_triangular)
    fewest = numerics.check_count("min_ndim_triangular", min_ndim_triangular)
    numerics.key(key)

    def start(p: jax.Array) -> Axes:
        are_diagonal = _are_diagonal(p.shape, longest, fewest, memory_save_mode)
        return _first_factors(p, are_diagonal, numerics.scalar(precond_init_scale))

    def init(params: Params) -> ScaleByKronState:
        tree.check_real("scale_by_kron", params)
        factors, mu = tree.map_leaves(start, params), tree.wide_zeros_like(params)
        first = numerics.first_step
        return ScaleByKronState(first(), first(), mu, factors)

    def update(
        updates: Updates, state: ScaleByKronState, params: Params
    ) -> tuple[Updates, ScaleByKronState]:
        step, decay = state.step, numerics.hyper(b1, state.step)
        updates = tree.map_leaves(shrunk_leaf, updates)
        mesh = auto_mesh_of(updates, state, params)
        mu = tree.average(decay, state.mu, updates)
        mu_hat = remove_bias(mu, decay, step)
        chance = _chance(preconditioner_update_probability, step)
        waited = numerics.next_step(state.waited)
        is_due = waited.astype(chance.dtype) * chance >= 1 - 1e-6  # 1/3 is rounded
        noise_key = jax.random.fold_in(numerics.key(key), step)
        rates = numerics.hyper(precond_lr, step), noise_key
        seen = mu_hat if momentum_into_precond_update else updates
        factors = _follow(is_due, step, seen, state.factors, rates, mesh=mesh)
        new_updates = map_matrices(_precondition, mu_hat, factors, mesh=mesh)
        waited = jnp.where(is_due, 0, waited)
        step = numerics.next_step(step)
        return new_updates, ScaleByKronState(step, waited, mu, factors)

    return chain(Transform(init, update, name="scale_by_kron"))


def kron(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    preconditioner_update_probability: Hyper | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    *,
    momentum_into_precond_update: bool = True,
    precond_lr: Hyper = 0.1,
    precond_init_scale: Scalar = 1.0,
    key: Key | int = 0,
) -> Transform:
    r"""PSGD-Kron: momentum whitened by factors that are learned by gradient descent.

    For a matrix, with Adam's debiased average $G = \hat\mu_t$ and upper triangular
    $Q_L$ and $Q_R$, which begin at the root of s times the identity,

    $$P G = Q_L^\top Q_L\,G\,Q_R^\top Q_R, \qquad
      u_t = P G \Big/ \max\Big(1, \frac{\operatorname{rms}(P G)}{1.1}\Big), \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    Before that the factors take a step towards the P for which $P G$ is white: with
    noise $V \sim \mathcal N(0, 1)$, $A = Q_L\,G\,Q_R^\top$ and
    $B = Q_L^{-\top} V\,Q_R^{-1}$,

    $$Q_L \leftarrow Q_L - \eta\,\frac{\operatorname{triu}(A A^\top - B B^\top)}
      {\|A A^\top + B B^\top\|}\,Q_L, \qquad
      Q_R \leftarrow Q_R - \eta\,\frac{\operatorname{triu}(A^\top A - B^\top B)}
      {\|A^\top A + B^\top B\|}\,Q_R$$

    where the norms are lower bounds of the spectral ones. No matrix is inverted or
    decomposed, only triangular systems are solved. A leaf of more axes has one factor
    per axis, and a diagonal factor acts entry by entry; with diagonal factors alone,
    as for vectors, the rule is near Adam's, with a third of its learning rate.

    The factors are updated about every 1/p steps, by default at each of the first 500,
    and then more and more rarely, up to every 33rd:
    $p = \max(0.03, \min(1, e^{-0.001\,(t - 500)}))$.

    Stacked layers (`fngrad.layers.repeat`, ``scan=True``) have a factor along the axis
    of the layers too; `fngrad.layerwise` gives each layer its own factors.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a schedule;
            about a third of AdamW's, the decay three times AdamW's.
        b1: $\beta_1$ in [0, 1).
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        preconditioner_update_probability: p in [0, 1], or a schedule; ``None`` anneals
            it as above.
        max_size_triangular: a longer axis has a diagonal factor.
        min_ndim_triangular: a leaf with fewer axes has diagonal factors.
        memory_save_mode: ``None``; ``"one_diag"``, a diagonal factor for the longest
            axis; ``"all_diag"``, for all.
        momentum_into_precond_update: whether $G$ in A is the momentum, as above, or the
            gradient.
        precond_lr: $\eta$ >= 0, below 1.
        precond_init_scale: $s$ > 0.
        key: of the noise, a typed key or an int; leaves of one shape share it.

    Raises:
        TypeError: if the learning rate is None or of another type, or the key is
            neither a typed key nor an int; at ``init``, if a leaf is complex.
        ValueError: if a number is out of range, or ``memory_save_mode`` is not one of
            its choices; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.kron(3e-4, weight_decay=0.3, mask="**/weight")
        >>> of_scanned_blocks = fg.layerwise(fg.kron(3e-4), "blocks/**")

    References:
        Li, Preconditioned stochastic gradient descent, 2018,
        https://arxiv.org/abs/1512.04202; the whitening form: Pooladzandi and Li,
        Curvature-informed SGD via general purpose Lie-group preconditioners, 2024,
        https://arxiv.org/abs/2402.04553; the reference implementation,
        https://github.com/evanatyourservice/kron_torch. Differs from it in: updates of
        the factors and their balancing (every 100 steps, which leaves P as it is) come
        at fixed steps, not at random; the noise is added to $G$ as in its version for
        JAX, times 3.5e-4 and the mean of $|G|$; there is no merging of axes.
    """
    rule = scale_by_kron(
        *(b1, preconditioner_update_probability, max_size_triangular),
        *(min_ndim_triangular, memory_save_mode),
        momentum_into_precond_update=momentum_into_precond_update,
        precond_lr=precond_lr,
        precond_init_scale=precond_init_scale,
        key=key,
    )
    return decaying(rule, learning_rate, weight_decay, mask)


def _chance(given: Hyper | None, step: jax.Array) -> jax.Array:
    return _annealed(step) if given is None else numerics.hyper(given, step)


def _annealed(step: jax.Array) -> jax.Array:
    """Return the reference implementation's probability of an update."""
    after = step.astype(jnp.result_type(float)) - 500
    return jnp.clip(jnp.exp(-0.001 * after), 0.03, 1.0)


def _are_diagonal(
    shape: tuple[int, ...], longest: int, fewest: int, saving: str | None
) -> tuple[bool, ...]:
    if len(shape) < fewest or saving == "all_diag" or math.prod(shape) == 0:
        return (True,) * len(shape)
    largest = shape.index(max(shape)) if saving == "one_diag" else None
    return tuple(n == 1 or n > longest or i == largest for i, n in enumerate(shape))


@functools.partial(jax.jit, static_argnums=1)
def _first_factors(
    p: jax.Array, are_diagonal: tuple[bool, ...], scale: jax.Array
) -> Axes:
    dtype = tree.wide_dtype(p.dtype)
    each = (scale ** (1 / max(p.ndim, 1))).astype(dtype)
    if p.ndim == 0:
        return (each,)
    return tuple(
        jnp.full((n,), each) if is_diagonal else each * jnp.eye(n, dtype=dtype)
        for n, is_diagonal in zip(p.shape, are_diagonal, strict=True)
    )


# Jitted, or a step outside jit would compile the branches each time.
@functools.partial(jax.jit, static_argnames="mesh")
def _follow(
    is_due: jax.Array,
    step: jax.Array,
    seen: Updates,
    factors: Updates,
    rates: tuple[jax.Array, Key],
    *,
    mesh: AnyMesh | None,
) -> Updates:
    rate, key = rates
    is_balanced = (step > 0) & (step % BALANCE_EVERY == 0)

    def renew(place: Place, g: jax.Array, axes: Axes) -> Axes:
        if g.size == 0:
            return axes
        g, axes = place.gather((g, axes))
        noise = jax.random.normal(key, g.shape, jnp.float32).astype(g.dtype)
        g = g + DAMPING * jnp.mean(jnp.abs(g)) * noise
        axes = tree.where(is_balanced, _balanced(axes), axes)
        return place.gather(_step(g, noise, axes, rate.astype(g.dtype)))

    return jax.lax.cond(
        is_due,
        lambda: map_matrices(renew, seen, factors, mesh=mesh),
        lambda: factors,
    )


def _step(g: jax.Array, noise: jax.Array, axes: Axes, rate: jax.Array) -> Axes:
    """Return the factors a step further towards whitening."""
    a = g
    for i, q in enumerate(axes):
        a = _times(q, a, i)
        noise = _solved(q, noise, i)
    a, b = shrunk_leaf(a), shrunk_leaf(noise)
    return tuple(_renewed(q, a, b, i, rate) for i, q in enumerate(axes))


def _renewed(
    q: jax.Array, a: jax.Array, b: jax.Array, i: int, rate: jax.Array
) -> jax.Array:
    if q.ndim < 2:
        of = functools.partial(diagonal, axis=i) if q.ndim else jnp.square
        seen, wanted = of(a), of(b)
        return q - numerics.divide(rate * (seen - wanted), jnp.max(seen + wanted)) * q
    seen, wanted = gram(a, i), gram(b, i)
    excess = numerics.divide(jnp.triu(seen - wanted), _spectral_norm(seen + wanted))
    return q - rate * matmul(excess, q)


def _spectral_norm(x: jax.Array) -> jax.Array:
    """Return a lower bound of the norm of a symmetric matrix, from its longest row."""
    largest = jnp.max(jnp.abs(x))
    x = numerics.divide(x, largest)
    row = matmul(x[jnp.argmax(jnp.sum(x * x, axis=0))], x)
    row = numerics.divide(row, tree.norm(row))
    return largest * tree.norm(matmul(row, x))


def _balanced(axes: Axes) -> Axes:
    """Return factors of equal largest entries, with the same product."""
    sizes = [jnp.max(jnp.abs(q)) for q in axes]
    mean = math.prod(size ** (1 / len(sizes)) for size in sizes)
    return tuple(q * (mean / size) for q, size in zip(axes, sizes, strict=True))


def _times(q: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    return along(q, x, axis) if q.ndim > 1 else _as_column(q, x, axis) * x


def _solved(q: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Return x times the inverse of the transposed factor along an axis."""
    if q.ndim < 2:
        return x / _as_column(q, x, axis)
    moved = jnp.moveaxis(x, axis, 0)
    solution = solve_triangular(q, moved.reshape(len(q), -1), trans="T")
    return jnp.moveaxis(solution.reshape(moved.shape), 0, axis)


def _as_column(q: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    return q.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _precondition(place: Place, x: jax.Array, axes: Axes) -> jax.Array:
    if x.size == 0:
        return x
    x = place.share(x)
    for i, q in enumerate(place.gather(axes)):
        inner = _times(q, x, i)
        x = along(q.T, inner, i) if q.ndim > 1 else _times(q, inner, i)
    return place.share(clip_rms(x, jnp.asarray(MAX_RMS, x.dtype)))

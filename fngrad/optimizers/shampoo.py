"""Shampoo: a matrix for each axis of a leaf, and an inverse root of it.

Eigenvalues are taken in at least float32, every few steps: a decomposition is cubic
in the length of the axis.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import Axes, along, diagonal, gram, matmul
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import AnyMesh, auto_mesh_of
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    check_moments,
    divide_by_root,
    largest_sum,
    shrunk_leaf,
    weight_seen,
    zero_moment,
)
from fngrad.transforms.momentum_buffers import traced
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByShampooState(NamedTuple):
    """State of `scale_by_shampoo`."""

    step: jax.Array  # int32, shape ()
    statistics: Updates  # a tuple per leaf: (n, n) for each axis, (n,) if diagonal
    roots: Updates  # their inverse roots, in the same form
    nu: Updates  # sum or average of g**2, for the diagonal graft; else ()
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_shampoo(
    b2: Hyper = 1.0,
    eps: Hyper = 1e-12,
    update_every: int = 1,
    max_size: int = 1024,
    *,
    full_vectors: bool = False,
    exponent: Hyper | None = None,
    bias_correction: bool = True,
    graft: str | None = None,
) -> Transform:
    r"""Multiply along every axis by an inverse root of its statistic: Shampoo.

    Returns $u_t$ of `shampoo`; see there for the equations and the references. From
    zero statistics and with ``eps=0`` a matrix's first update is $U V^\top$ of
    $G = U \Sigma V^\top$. Eigenvalues below $n\,\varepsilon_{machine}$ times the
    largest count as that; a gradient of zeros gives zeros.

    Args:
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in squared gradient units.
        update_every: the number of steps from one computation of the inverse roots to
            the next; the first step computes them.
        max_size: the longest axis that has a matrix; a longer one keeps only the
            diagonal of $S_i$.
        full_vectors: whether a vector has a matrix too. Its statistic has rank t after
            t steps: while the rank is not full and ``eps`` is small, the inverse root
            turns float32's rounding into steps.
        exponent: in place of $1/2k$, >= 0.
        bias_correction: whether averages are divided by $1 - \beta_2^t$.
        graft: the rule that gives the norm of a leaf's update, while Shampoo gives the
            direction: ``None`` for Shampoo itself, ``"sgd"`` for G, ``"diagonal"`` for
            $G / \sqrt{\nu + \epsilon}$, $\nu$ kept like the statistics (Adagrad at
            $\beta_2 = 1$, RMSProp below).

    Raises:
        TypeError: at ``init``, if a leaf is complex.
        ValueError: if a number is out of range, or ``graft`` is not one of its choices.
    """
    check_moments(b2=b2, eps=eps, corrected=False)
    numerics.check_number("exponent", exponent, low=0.0, optional=True)
    update_every = numerics.check_count("update_every", update_every, low=1)
    max_size = numerics.check_count("max_size", max_size)
    numerics.check_choice("graft", graft, (None, "sgd", "diagonal"))

    def size(p: jax.Array) -> int:
        return max_size if p.ndim > 1 or full_vectors else 0

    def init(params: Params) -> ScaleByShampooState:
        tree.check_real("scale_by_shampoo", params)
        statistics, roots = (
            tree.map_leaves(lambda p: _empty_statistics(p, size(p)), params)
            for _ in range(2)
        )
        nu = zero_moment(params) if graft == "diagonal" else ()
        return ScaleByShampooState(numerics.first_step(), statistics, roots, nu)

    def update(
        updates: Updates, state: ScaleByShampooState, params: Params
    ) -> tuple[Updates, ScaleByShampooState]:
        ridge = numerics.hyper(eps, state.step)
        power = None if exponent is None else numerics.hyper(exponent, state.step)
        weights = _weights(numerics.hyper(b2, state.step), state.step, bias_correction)
        mesh = auto_mesh_of(updates, state, params)
        gradients, updates = updates, tree.map_leaves(shrunk_leaf, updates)
        observe = functools.partial(_observe, weights)
        statistics = map_matrices(observe, updates, state.statistics, mesh=mesh)
        is_due = state.step % update_every == 0
        scales = _Scales(weights.seen, ridge, power)
        roots = _follow(is_due, state.roots, updates, statistics, scales, mesh=mesh)
        nu, target = state.nu, gradients
        if graft == "diagonal":
            nu = jax.tree.map(weights.accumulate_square, nu, updates)
            target = divide_by_root(updates, tree.scale(1 / weights.seen, nu), ridge, 0)
        new_updates = map_matrices(_multiply, updates, roots, mesh=mesh)
        if graft is not None:
            new_updates = tree.map_leaves(_with_norm_of, new_updates, target)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByShampooState(step, statistics, roots, nu)

    return chain(Transform(init, update, name="scale_by_shampoo"))


def shampoo(
    learning_rate: Hyper,
    b2: Hyper = 1.0,
    eps: Hyper = 1e-12,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    update_every: int = 1,
    max_size: int = 1024,
    *,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    full_vectors: bool = False,
    exponent: Hyper | None = None,
    bias_correction: bool = True,
    graft: str | None = None,
) -> Transform:
    r"""Shampoo: a matrix of Adagrad's kind for each axis of each leaf.

    For a leaf with k axes and along each axis i

    $$S_i \leftarrow \beta_2\,S_i + w\,G_{(i)} G_{(i)}^\top, \qquad
      u_t = G \times_1 (S_1 + \epsilon I)^{-1/2k} \times_2 \dots
      \times_k (S_k + \epsilon I)^{-1/2k}$$
    $$w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    so that a matrix gets $L^{-1/4}\,G\,R^{-1/4}$, with $L$ the sum of $G G^\top$ and
    $R$ that of $G^\top G$. A vector gets diagonal Adagrad, or full-matrix Adagrad with
    ``full_vectors``. At $\beta_2 = 1$ the statistics are sums ($w = 1$), else averages
    ($w = 1 - \beta_2$), debiased. With ``momentum`` $\beta$ the preconditioned gradient
    $u_t$ is replaced by $b_t = \beta\,b_{t-1} + u_t$, or with ``nesterov`` by
    $\beta\,b_t + u_t$.

    On a mesh (`fngrad.sharding`) every device decomposes every statistic, which is
    gathered once for it, and keeps its part of the root; where `stack_leaves` stacks
    equal matrices, each device decomposes its share if the size of the mesh axis "data"
    divides their number.

    A stack of layers, as those of `fngrad.layers.repeat` and of models with
    ``scan=True``, is one leaf with a matrix for the axis of the layers too;
    `fngrad.layerwise` gives each layer its own matrices.

    The defaults are the paper's rule. Networks are mostly trained with
    ``b2=0.99, momentum=0.9, graft="diagonal", update_every=10``, and Adam's learning
    rates.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b2: $\beta_2$ in [0, 1]: 1 for sums, less for averages.
        eps: $\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        update_every: the number of steps from one computation of the inverse roots to
            the next; the first step computes them.
        max_size: the longest axis that has a matrix; a longer one keeps only its
            diagonal.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no buffer; any number, also 0, keeps
            one.
        nesterov: whether to look ahead; it needs a momentum.
        full_vectors: whether a vector has a matrix too, instead of its diagonal.
        exponent: in place of $1/2k$, >= 0.
        bias_correction: whether averages are divided by $1 - \beta_2^t$.
        graft: the rule that gives the norm of a leaf's update: ``None``, ``"sgd"`` or
            ``"diagonal"``, see `scale_by_shampoo`.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            leaf is complex.
        ValueError: if a number is out of range, ``graft`` is not one of its choices, or
            ``nesterov`` has no momentum; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.shampoo(1.0)
        >>> params = jnp.array([[3.0, 0.0], [0.0, -4.0]])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(3) + 0.0)  # the first update is -U V' of the gradient
        [[-1.  0.]
         [ 0.  1.]]
        >>> of_scanned_blocks = fg.layerwise(fg.shampoo(1.0), "blocks/**")

    References:
        Gupta, Koren and Singer, Shampoo: preconditioned stochastic tensor optimization,
        2018, algorithms 1 and 2, https://arxiv.org/abs/1802.09568. Averages, grafting
        and roots every few steps: Anil et al., Scalable second order optimization for
        deep learning, 2020, https://arxiv.org/abs/2002.09018. Differs from the first
        in: vectors are diagonal, as in the second. Differs from the second in:
        $\epsilon I$ is added where the root is taken, which is the same for sums and
        does not fade in averages; long axes are not cut into blocks; momentum comes
        after grafting; averages are debiased by default.
    """
    rule = scale_by_shampoo(
        b2,
        eps,
        update_every,
        max_size,
        full_vectors=full_vectors,
        exponent=exponent,
        bias_correction=bias_correction,
        graft=graft,
    )
    rule = chain(rule, *traced(momentum, nesterov))
    return decaying(rule, learning_rate, weight_decay, mask)


class _Weights(NamedTuple):
    """The weights of a statistic's past and present, and the total it has seen."""

    decay: jax.Array
    new: jax.Array
    seen: jax.Array

    def accumulate(self, old: jax.Array, new: jax.Array) -> jax.Array:
        # XLA removes a constant weight of one and keeps one that is data, and would
        # round the multiply-adds differently.
        average = numerics.scaled(self.decay, old) + numerics.scaled(self.new, new)
        return jnp.where(self.decay == 1, old + new, average)

    def accumulate_square(self, old: jax.Array, g: jax.Array) -> jax.Array:
        return numerics.saturated(self.accumulate(old, tree.abs_square(g)), g)


def _weights(decay: jax.Array, step: jax.Array, bias_correction: bool) -> _Weights:
    one = jnp.ones_like(decay)
    is_sum = decay == 1
    seen = weight_seen(decay, step) if bias_correction else one
    return _Weights(
        decay, jnp.where(is_sum, one, 1 - decay), jnp.where(is_sum, one, seen)
    )


def _empty_statistics(p: jax.Array, max_size: int) -> Axes:
    dtype = tree.wide_dtype(p.dtype)
    sizes = (p.shape or (1,)) if p.size else ()
    shapes = [(n, n) if n <= max_size else (n,) for n in sizes]
    return tuple(tree.zeros(p, dtype, shape) for shape in shapes)


def _observe(weights: _Weights, place: Place, g: jax.Array, axes: Axes) -> Axes:
    g = jnp.atleast_1d(g)
    if any(s.ndim == 2 for s in axes):
        g = place.gather(g)
    return tuple(
        _saturated(weights.accumulate(s, gram(g, i) if s.ndim == 2 else diagonal(g, i)))
        for i, s in enumerate(axes)
    )


def _saturated(s: jax.Array) -> jax.Array:
    """Scale a statistic whose trace, the same for all axes, exceeds its limit."""
    trace = jnp.trace(s) if s.ndim == 2 else jnp.sum(s)
    limit = largest_sum(s.dtype)
    is_full = trace > limit
    return s * jnp.where(is_full, limit / jnp.where(is_full, trace, 1), 1)


class _Scales(NamedTuple):
    """What the roots of statistics depend on."""

    seen: jax.Array  # the sum of the statistics' weights
    ridge: jax.Array
    power: jax.Array | None


# Jitted, or a step outside jit would compile the branches each time.
@functools.partial(jax.jit, static_argnames="mesh")
def _follow(
    is_due: jax.Array,
    roots: Updates,
    updates: Updates,
    statistics: Updates,
    scales: _Scales,
    *,
    mesh: AnyMesh | None,
) -> Updates:
    """Return the statistics' roots if they are due, else the old ones."""

    def invert(place: Place, g: jax.Array, axes: Axes) -> Axes:
        return place.gather(_inverse_roots(place.gather(axes), *scales))

    return lax.cond(
        is_due,
        lambda: map_matrices(invert, updates, statistics, mesh=mesh),
        lambda: roots,
    )


def _inverse_roots(
    axes: Axes, seen: jax.Array, ridge: jax.Array, exponent: jax.Array | None
) -> Axes:
    if exponent is None:
        exponent = jnp.asarray(1 / (2 * max(len(axes), 1)))
    ridged = [s / seen.astype(s.dtype) for s in axes]
    return tuple(_inverse_power(s, ridge, exponent) for s in ridged)


def _inverse_power(s: jax.Array, ridge: jax.Array, power: jax.Array) -> jax.Array:
    """Return (s + ridge I) ** -power of a matrix, or of a diagonal."""
    ridge, power = ridge.astype(s.dtype), power.astype(s.dtype)
    return (_of_matrix if s.ndim == 2 else _of_values)(s, ridge, power)


def _of_values(values: jax.Array, ridge: jax.Array, power: jax.Array) -> jax.Array:
    values = jnp.where(values < 0, 0, values) + ridge
    floor = len(values) * float(jnp.finfo(values.dtype).eps) * jnp.max(values)
    return numerics.power(jnp.maximum(values, lax.stop_gradient(floor)), -power)


@jax.custom_jvp
def _of_matrix(s: jax.Array, ridge: jax.Array, power: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(s)
    roots = _of_values(values, ridge, power)
    return matmul(vectors * roots[None], vectors.T)


@_of_matrix.defjvp
def _of_matrix_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Use divided differences: eigenvectors have no derivative at equal eigenvalues."""
    (s, ridge, power), (ds, dridge, dpower) = primals, tangents
    values, vectors = jnp.linalg.eigh(s)
    roots, droots = jax.jvp(
        lambda r, p: _of_values(values, r, p), (ridge, power), (dridge, dpower)
    )
    slope = jax.jvp(
        lambda v: _of_values(v, ridge, power), (values,), (jnp.ones_like(values),)
    )[1]
    gaps = values[:, None] - values[None]
    near = float(jnp.finfo(s.dtype).eps) ** (1 / 3)  # both forms are as exact there
    size = jnp.abs(values)
    is_equal = jnp.abs(gaps) <= near * (size[:, None] + size[None])
    ratio = (roots[:, None] - roots[None]) / jnp.where(is_equal, 1, gaps)
    ratio = jnp.where(is_equal, (slope[:, None] + slope[None]) / 2, ratio)
    inner = ratio * matmul(matmul(vectors.T, ds), vectors) + jnp.diag(droots)
    turned_back = matmul(matmul(vectors, inner), vectors.T)
    return matmul(vectors * roots[None], vectors.T), turned_back


def _multiply(place: Place, g: jax.Array, axes: Axes) -> jax.Array:
    u = place.share(jnp.atleast_1d(g))
    for i, root in enumerate(place.gather(axes)):
        if root.ndim == 2:
            u = along(root, u, i)
        else:
            others = [j for j in range(u.ndim) if j != i]
            u = u * jnp.expand_dims(root, others)
    return place.share(u).reshape(g.shape)


def _with_norm_of(u: jax.Array, target: jax.Array) -> jax.Array:
    norm, rate = numerics.fitting_norm(tree.norm, target)
    grown = u * numerics.divide(norm, tree.norm(u)).astype(u.dtype)
    return numerics.bounded(grown / rate.astype(u.dtype), u)

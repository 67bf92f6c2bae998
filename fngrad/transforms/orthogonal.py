r"""Muon's direction: the momentum of a matrix, its singular values made equal.

The *polar factor* of $X = U \Sigma V^\top$ is $U V^\top$. A *Newton-Schulz* iteration
approaches it by odd polynomials of $X$, that is by matrix products alone. A matrix is
(in, out); a kernel (width, ..., in, out) is one with all axes but the last made one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.leaves as leaves
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.roots import check_decay, debiased
from fngrad.types import Hyper, Params, Scalar, Updates

Coefficients = Sequence[Scalar] | Sequence[Sequence[Scalar]] | jax.Array
QUINTIC = (3.4445, -4.7750, 2.0315)


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    signed = ("mu",)


def orthogonalize(
    x: jax.Array,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    eps: Scalar = 1e-8,
    *,
    ns_dtype: Any = None,
) -> jax.Array:
    r"""Bring the singular values of a matrix near one, by Newton-Schulz iterations.

    $$X_0 = \frac{X}{\|X\|_F + \epsilon}, \qquad
      X_{k+1} = a\,X_k + b\,X_k X_k^\top X_k + c\,(X_k X_k^\top)^2 X_k$$

    The default coefficients grow small singular values fastest and never settle: from
    $\sigma / \|X\|_F \ge 0.006$ five steps end within [0.68, 1.135]. The cubic
    ``(1.5, -0.5, 0.0)`` converges to the polar factor $U V^\top$, slowly at first. Zero
    stays zero.

    Args:
        x: a matrix of shape (rows, columns), real or complex, where $X^\top$ is the
            conjugate transpose.
        ns_coeffs: $(a, b, c)$ for all steps, or such a triple for each step, of which
            the last ``ns_steps`` are used.
        ns_steps: how many steps.
        eps: $\epsilon$ >= 0, in units of ``x``.
        ns_dtype: dtype of the iterations; ``None`` takes that of ``x``. bfloat16 is
            faster on accelerators and good to about 1 %. The norm is taken in at
            least float32.

    Returns:
        A matrix like ``x``.

    Raises:
        ValueError: ``x`` has not two axes, the coefficients are no triples, or there
            are fewer of them than steps.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> x = jnp.array([[3.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
        >>> polar = fg.orthogonalize(x, (1.5, -0.5, 0.0), ns_steps=15)
        >>> print(polar.round(3) + 0.0)
        [[ 1.  0.]
         [ 0. -1.]
         [ 0.  0.]]

    References:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
        https://kellerjordan.github.io/posts/muon/. Björck and Bowie, An iterative
        algorithm for computing the best estimate of an orthogonal matrix, 1971,
        https://doi.org/10.1137/0708036.
    """
    if jnp.ndim(x) != 2:
        raise ValueError(f"need a matrix, got shape {jnp.shape(x)}")
    triples = _triples(ns_coeffs, ns_steps)
    is_tall = x.shape[0] > x.shape[1]
    y = tree.widen(x)
    unit = numerics.power_of_two_below(jnp.max(numerics.magnitudes(y), initial=0))
    y = numerics.divided(y, unit)  # the norm itself may not fit
    norm = tree.norm(y)
    total = norm + numerics.hyper(eps).astype(norm.dtype) / unit
    is_zero = total == 0
    y = numerics.divided(y, jnp.where(is_zero, 1, total))
    y = y.astype(x.dtype if ns_dtype is None else ns_dtype)
    y = y.conj().T if is_tall else y  # the smaller of the two squares
    for triple in triples:
        y = _quintic(y, *(numerics.hyper(value).astype(y.dtype) for value in triple))
    return (y.conj().T if is_tall else y).astype(x.dtype)


def scale_by_muon(
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    *,
    nesterov: bool = True,
    debias: bool = True,
    adaptive: bool = False,
    consistent_rms: Hyper | None = None,
    ns_dtype: Any = None,
) -> Transform:
    r"""Orthogonalise the momentum of every leaf: Muon's direction.

    $$\mu_t = \beta\,\mu_{t-1} + (1 - \beta)\,g_t, \qquad
      \hat\mu_t = \frac{\mu_t}{1 - \beta^t}, \qquad
      u_t = s\,\mathrm{orthogonalize}(\hat\mu_t)$$

    With Nesterov's look-ahead
    $\hat\mu_t = \beta \mu_t / (1 - \beta^{t+1}) + (1 - \beta) g_t / (1 - \beta^t)$.
    Leaves have two axes, (in, out), or more, (..., in, out), of which all but the last
    are made one for the while. The factor is $s = \sqrt{\max(1, n_{out} / n_{in})}$,
    or $s = \rho \sqrt{\max(n_{in}, n_{out})}$, which gives the update of a leaf of full
    rank a root mean square near $\rho$, and so Adam's scale.

    Args:
        ns_coeffs: the coefficients, see `orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units, see `orthogonalize`.
        nesterov: whether to look ahead.
        debias: whether $\mu_t$ and $g_t$ are divided by what they lack, as above and
            in optax. If not, $\hat\mu_t = \mu_t$, or with the look-ahead
            $\beta \mu_t + (1 - \beta) g_t$, as in the original, PyTorch and Keras.
        adaptive: whether $u_t$ is multiplied by $\langle \hat\mu_t, o_t \rangle$,
            $o_t$ the orthogonalised momentum: steepest descent in the spectral norm.
        consistent_rms: $\rho$ >= 0; ``None`` takes the first form of $s$, as the
            original does. Moonlight's and Keras' value is 0.2.
        ns_dtype: dtype of the iterations, see `orthogonalize`.

    Raises:
        TypeError: at ``init``, a complex leaf.
        ValueError: a number out of range, or bad coefficients; at ``init``, a leaf of
            less than two axes.

    References:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
        https://kellerjordan.github.io/posts/muon/. The second factor: Liu et al., Muon
        is scalable for LLM training, 2025, equation 4,
        https://arxiv.org/abs/2502.16982. ``adaptive``: Bernstein and Newhouse, Old
        optimizer, new norm: an anthology, 2024, proposition 5,
        https://arxiv.org/abs/2409.20325. Differs from Jordan in: a matrix is
        (in, out), where PyTorch has (out, in); the iterations run in float32 by
        default, not in bfloat16.
    """
    check_decay("beta", beta, corrected=True)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("consistent_rms", consistent_rms, low=0.0)
    _triples(ns_coeffs, ns_steps)

    def init(params: Params) -> ScaleByMuonState:
        leaves.check_real("scale_by_muon", params)
        _check_axes(params)
        return ScaleByMuonState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: ScaleByMuonState, params: Params
    ) -> tuple[Updates, ScaleByMuonState]:
        decay = numerics.hyper(beta, state.step)
        floor = numerics.hyper(eps, state.step)
        rms = None
        if consistent_rms is not None:
            rms = numerics.hyper(consistent_rms, state.step)
        mu = tree.average(decay, state.mu, updates)

        def direct(m: jax.Array, g: jax.Array) -> jax.Array:
            unit = _unit(m, g)
            m, g = m / unit, g / unit
            m = _look_ahead(m, g, decay, state.step, nesterov, debias)
            flat = m.reshape(math.prod(m.shape[:-1]), m.shape[-1])
            least = floor.astype(unit.dtype) / unit
            o = orthogonalize(flat, ns_coeffs, ns_steps, least, ns_dtype=ns_dtype)
            if adaptive:
                o = numerics.scaled(tree.vdot(flat, o), o)
                o = numerics.bounded(o * unit, o)
            return numerics.scaled(_factor(flat.shape, rms), o).reshape(m.shape)

        new_updates = leaves.map_leaves(direct, mu, updates)
        return new_updates, ScaleByMuonState(numerics.next_step(state.step), mu)

    return chain(Transform(init, update, name="scale_by_muon"))


def _unit(*arrays: jax.Array) -> jax.Array:
    """Return the power of two at which divided averages fit: 1 but for huge ones."""
    largest = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in arrays]
    )
    return jnp.where(largest > 2.0**96, 2.0**64, 1).astype(largest.dtype)


def _look_ahead(
    mu: Updates,
    updates: Updates,
    decay: jax.Array,
    step: jax.Array,
    nesterov: bool,
    debias: bool,
) -> Updates:
    if debias:
        return debiased(mu, updates, decay, step, nesterov)
    return tree.average(decay, mu, updates) if nesterov else mu


def _quintic(y: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    gram = _matmul(y, y.conj().T)
    return a * y + _matmul(b * gram + c * _matmul(gram, gram), y)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")  # float32 means float32 on TPU too


def _factor(shape: tuple[int, ...], rms: jax.Array | None) -> Scalar:
    rows, columns = shape
    if rms is None:
        return max(1.0, columns / max(rows, 1)) ** 0.5
    return rms * max(rows, columns) ** 0.5


def _triples(ns_coeffs: Coefficients, ns_steps: int) -> Sequence[Any]:
    """Return the coefficients of each step."""
    ns_steps = numerics.check_count("ns_steps", ns_steps)
    first: Any = ns_coeffs[0]
    table: list[Any] = list(ns_coeffs)
    if not isinstance(first, Sequence) and jnp.ndim(first) == 0:
        table = [ns_coeffs] * max(ns_steps, 1)
    if any(len(triple) != 3 for triple in table):
        raise ValueError(f"need three coefficients a step, got {ns_coeffs=}")
    if len(table) < ns_steps:
        raise ValueError(f"need coefficients for {ns_steps=}, got {len(table)}")
    return table[len(table) - ns_steps :]


def _check_axes(params: Params) -> None:
    for path, leaf in tree.leaf_paths(params).items():
        if leaf.ndim < 2:
            raise ValueError(
                "need leaves of two axes or more for scale_by_muon, "
                f"got shape {leaf.shape} at {path!r}"
            )

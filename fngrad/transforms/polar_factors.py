r"""Polar factors by matrix products: the iteration behind Muon and its relatives.

The *polar factor* of $X = U \Sigma V^\top$ is $U V^\top$. A *Newton-Schulz* iteration
approaches it by odd polynomials of $X$, that is by matrix products only. A matrix is
(in, out); a kernel (width, ..., in, out) counts as a matrix with all axes but the last
flattened.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import matmul
from fngrad.sharding.matrices import Place
from fngrad.types import Scalar

Triple: TypeAlias = Sequence[Scalar]
Coefficients: TypeAlias = str | Triple | Sequence[Triple] | jax.Array

QUINTIC = (3.4445, -4.7750, 2.0315)

# Optimal for singular values in [1e-3, 1]; safe for rounding by a factor of 1.01 but in
# the last, to which the others tend.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "original": (QUINTIC,),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS),
        (1.875, -1.25, 0.375),
    ),
    "cubic": ((1.5, -0.5, 0.0),),
}


def orthogonalize(
    x: jax.Array,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    eps: Scalar = 1e-8,
    *,
    ns_dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Bring the singular values of a matrix near one, by Newton-Schulz iterations.

    $$X_0 = \frac{X}{\|X\|_F + \epsilon}, \qquad
      X_{k+1} = a\,X_k + b\,X_k X_k^\top X_k + c\,(X_k X_k^\top)^2 X_k$$

    The default coefficients let small singular values grow fastest and do not converge:
    from $\sigma / \|X\|_F \ge 0.006$ five steps end within [0.68, 1.135]. The cubic
    ``(1.5, -0.5, 0.0)`` converges to the polar factor $U V^\top$, slowly at first. Zero
    stays zero.

    Args:
        x: a matrix of shape (rows, columns), real or complex, where $X^\top$ is the
            conjugate transpose.
        ns_coeffs: $(a, b, c)$ for all steps, or such a triple for each step, of which
            the last ``ns_steps`` are used; or a name, of which the first are used and
            the last one for all further steps:

            - ``"original"`` is the default;
            - ``"quintic"`` ends five steps within [0.97, 1.15] from
              $\sigma / \|X\|_F \ge 0.003$;
            - ``"polar_express"`` ends five steps within [0.84, 1.13] from 0.001, and
              converges with eight: each triple is the best for the range that the one
              before leaves;
            - ``"cubic"`` is ``(1.5, -0.5, 0.0)``.
        ns_steps: how many steps.
        eps: $\epsilon$ >= 0, in units of ``x``.
        ns_dtype: dtype of the iterations; ``None`` takes that of ``x``. bfloat16 is
            faster on accelerators and good to about 1 %. The norm is taken in at
            least float32.

    Returns:
        A matrix like ``x``.

    Raises:
        ValueError: if ``x`` does not have two axes, the name of the coefficients is
            unknown, they are not triples, or there are fewer of them than steps.

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
        The polynomial: Jordan et al., cited in `muon`. ``"quintic"``: You, in
        modded-nanogpt, 2025, https://github.com/KellerJordan/modded-nanogpt.
        ``"polar_express"``: Amsel et al., The Polar Express: optimal matrix sign
        methods and their application to the Muon algorithm, 2025, algorithm 1,
        https://arxiv.org/abs/2505.16932. Differs from it in: the norm is not multiplied
        by 1.01. Björck and Bowie, An iterative
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


def polar_factor(
    place: Place,
    m: jax.Array,
    ns_coeffs: Coefficients,
    ns_steps: int,
    eps: jax.Array,
    ns_dtype: DTypeLike | None,
) -> jax.Array:
    """Orthogonalize a leaf as a matrix, of shape (all axes but the last, last)."""
    flat = place.gather(m).reshape(math.prod(m.shape[:-1]), m.shape[-1])
    o = orthogonalize(flat, ns_coeffs, ns_steps, eps, ns_dtype=ns_dtype)
    return place.gather(o)  # or XLA splits the iterations as what follows


def of_length(x: jax.Array, length: Scalar) -> jax.Array:
    """Return an array scaled to a Euclidean norm; zero stays zero."""
    largest = jnp.max(numerics.magnitudes(x), initial=0)
    # Of zeros 1: compilers multiply a tiny unit by the caller's divisors, down to 0.
    unit = jnp.where(largest == 0, 1, numerics.power_of_two_below(largest))
    x = numerics.divided(x, unit)  # the norm itself may not fit
    return numerics.scaled(length, numerics.divide(x, tree.norm(x).astype(x.dtype)))


def check_coefficients(ns_coeffs: Coefficients, ns_steps: int) -> None:
    """Raise unless there are coefficients for every step.

    Raises:
        ValueError: if the name is unknown, the coefficients are not triples, or there
            are fewer of them than steps.
    """
    _triples(ns_coeffs, ns_steps)


def _quintic(y: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    gram = matmul(y, y.conj().T)
    return a * y + matmul(b * gram + c * matmul(gram, gram), y)


def _triples(ns_coeffs: Coefficients, ns_steps: int) -> Sequence[Any]:
    """Return the coefficients of each step."""
    ns_steps = numerics.check_count("ns_steps", ns_steps)
    if isinstance(ns_coeffs, str):
        numerics.check_choice("ns_coeffs", ns_coeffs, tuple(COEFFICIENTS))
        named = COEFFICIENTS[ns_coeffs]
        return [named[min(i, len(named) - 1)] for i in range(ns_steps)]
    first: Any = ns_coeffs[0]
    table: list[Any] = list(ns_coeffs)
    if not isinstance(first, Sequence) and jnp.ndim(first) == 0:
        table = [ns_coeffs] * max(ns_steps, 1)
    if any(len(triple) != 3 for triple in table):
        raise ValueError(
            f"`ns_coeffs` must have three coefficients per step, got {ns_coeffs=}"
        )
    if len(table) < ns_steps:
        raise ValueError(f"need coefficients for {ns_steps=}, got {len(table)}")
    return table[len(table) - ns_steps :]

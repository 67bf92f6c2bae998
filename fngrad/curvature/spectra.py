r"""The spectrum of the Hessian by Lanczos' method.

k products with the Hessian, starting from a random unit vector $q_1$, give an
orthonormal basis Q of the Krylov space and the tridiagonal $T = Q^\top H Q$. The
eigenvalues of T (*Ritz values*) approach those of H from inside, both ends first; the
squared first components of T's eigenvectors are the weights of H's spectrum in $q_1$.

In floating point Q loses its orthogonality as soon as a Ritz value converges, and T
then has copies of it, *ghosts*. Here every new vector is made orthogonal to all earlier
ones, twice, which needs memory for k vectors and leaves no ghosts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
from fngrad.curvature.hessian_products import ScalarFn, flat_hessian
from fngrad.numerics.matrix_products import matmul
from fngrad.types import Key, Params

DEFAULT_STEPS = 64


class Krylov(NamedTuple):
    """The result of `lanczos`: H Q = Q T + beta_k q e_k', with q orthogonal to Q."""

    diagonal: jax.Array  # (k,), of T
    off_diagonal: jax.Array  # (k,), of T; the last is beta_k
    basis: jax.Array  # (k, n), orthonormal rows: the columns of Q


class Extremes(NamedTuple):
    """Both ends of a spectrum; the outermost eigenvalue comes first."""

    smallest: jax.Array  # (count,), ascending
    largest: jax.Array  # (count,), descending
    smallest_error: jax.Array  # (count,): bounds on the distance to an eigenvalue
    largest_error: jax.Array  # (count,)
    smallest_vectors: Params  # leaves (count, ...): unit eigenvectors
    largest_vectors: Params


class SpectralDensity(NamedTuple):
    """A discrete measure that approximates the spectrum; the weights sum to one."""

    eigenvalues: jax.Array  # (samples, k), ascending in each row
    weights: jax.Array  # (samples, k)


def lanczos(
    f: ScalarFn,
    params: Params,
    *args: Any,
    key: Key | int,
    num_steps: int | None = None,
) -> Krylov:
    r"""Reduce the Hessian to a tridiagonal matrix.

    $$\beta_j\,q_{j+1} = H q_j - \alpha_j\,q_j - \beta_{j-1}\,q_{j-1}$$

    If the Krylov space cannot grow ($\beta_j$ vanishes: $q_1$ lies in an invariant
    subspace), $\beta_j$ is set to 0 and the method continues from a random direction
    orthogonal to all vectors before. So n steps give the whole spectrum, with
    multiplicities.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all.
        key: a typed key or a seed.
        num_steps: k, in 1, ..., n; by default min(64, n).

    Returns:
        The tridiagonal matrix and the basis, in float32 or wider.

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if ``num_steps`` is out of range.

    References:
        Lanczos, An iteration method for the solution of the eigenvalue problem, 1950,
        https://doi.org/10.6028/jres.045.026. Golub and Van Loan, Matrix computations,
        section 10.3. Differs from it in: the random restart.
    """
    H = flat_hessian(f, params, *args)
    k = _check_steps(num_steps, H.size)
    tiny = jnp.finfo(H.dtype).eps * H.size**0.5
    keys = jax.random.split(numerics.key(key), k + 1)
    start, fresh = keys[0], keys[1:]

    def advance(carry: Any, now: Any) -> tuple[Any, Any]:
        basis, q, scale = carry
        j, restart = now
        basis = basis.at[j].set(q)
        image = H.apply(q)
        rest = _orthogonalize(image, basis)
        scale = jnp.maximum(scale, numerics.norm(image))
        beta = numerics.norm(rest)
        is_invariant = beta <= tiny * scale
        beta = jnp.where(is_invariant, 0, beta)
        random = jax.random.normal(restart, q.shape, q.dtype)
        direction = jnp.where(is_invariant, random, numerics.divide(rest, beta))
        q_next = _unit(_orthogonalize(direction, basis))
        alpha = jnp.vdot(q, image, precision="highest")
        return (basis, q_next, scale), (alpha, beta)

    q = _unit(jax.random.normal(start, (H.size,), H.dtype))
    empty = jnp.zeros((k, H.size), H.dtype), q, jnp.zeros((), H.dtype)
    steps = jnp.arange(k), fresh
    (basis, _, _), (diagonal, off_diagonal) = lax.scan(advance, empty, steps)
    return Krylov(diagonal, off_diagonal, basis)


def extreme_eigenvalues(
    f: ScalarFn,
    params: Params,
    *args: Any,
    key: Key | int,
    count: int = 1,
    num_steps: int | None = None,
) -> Extremes:
    r"""Return the Hessian's smallest and largest eigenvalues, with eigenvectors.

    Both ends are returned, so a negative eigenvalue is found even if a positive one is
    larger. For a Ritz pair $(\theta, Q s)$ the residual $|\beta_k s_k|$ bounds the
    distance from $\theta$ to an eigenvalue.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all.
        key: a typed key or a seed.
        count: how many at each end, at most ``num_steps``. Fewer than n steps find an
            eigenvalue only once, whatever its multiplicity.
        num_steps: of Lanczos, in 1, ..., n; by default min(64, n).

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if ``count`` or ``num_steps`` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad import curvature
        >>> saddle = lambda w: w[0] ** 2 - 3 * w[1] ** 2
        >>> measure = jax.jit(lambda w: curvature.extreme_eigenvalues(saddle, w, key=0))
        >>> ends = measure(jnp.zeros(2))
        >>> print(f"{ends.smallest[0]:.3f} {ends.largest[0]:.3f}")
        -6.000 2.000
    """
    H = flat_hessian(f, params, *args)
    num_steps = _check_steps(num_steps, H.size)
    count = numerics.check_count("count", count)
    if not 1 <= count <= num_steps:
        raise ValueError(f"need 1 <= count <= num_steps, got {count=} {num_steps=}")
    krylov = lanczos(f, params, *args, key=key, num_steps=num_steps)
    values, vectors = jnp.linalg.eigh(_tridiagonal(krylov))
    errors = jnp.abs(krylov.off_diagonal[-1] * vectors[-1])

    def in_parameters(columns: jax.Array) -> Params:
        return jax.vmap(H.unravel)(matmul(columns.T, krylov.basis))

    low, high = slice(None, count), slice(None, -count - 1, -1)
    return Extremes(
        smallest=values[low],
        largest=values[high],
        smallest_error=errors[low],
        largest_error=errors[high],
        smallest_vectors=in_parameters(vectors[:, low]),
        largest_vectors=in_parameters(vectors[:, high]),
    )


def sharpness(
    f: ScalarFn,
    params: Params,
    *args: Any,
    key: Key | int,
    num_steps: int | None = None,
) -> jax.Array:
    r"""Return the Hessian's largest eigenvalue $\lambda_{\max}$, shape ().

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all.
        key: a typed key or a seed.
        num_steps: of Lanczos, in 1, ..., n; by default min(64, n).

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if ``num_steps`` is out of range.
    """
    krylov = lanczos(f, params, *args, key=key, num_steps=num_steps)
    return jnp.linalg.eigvalsh(_tridiagonal(krylov))[-1]


def largest_stable_learning_rate(
    sharpness: jax.Array, momentum: float = 0.0, nesterov: bool = False
) -> jax.Array:
    r"""Return the learning rate above which descent on a quadratic diverges.

    $$\frac{2 + 2\beta}{\lambda_{\max}} \quad\text{or, with Nesterov's look-ahead,}\quad
    \frac{2 + 2\beta}{(1 + 2\beta)\,\lambda_{\max}}$$

    which is $2 / \lambda_{\max}$ without momentum, and infinite if no curvature is
    positive.

    Args:
        sharpness: $\lambda_{\max}$, any shape; see `sharpness`.
        momentum: $\beta$ in [0, 1).
        nesterov: whether momentum is Nesterov's.

    Raises:
        ValueError: if momentum is outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import curvature
        >>> print(curvature.largest_stable_learning_rate(jnp.array(4.0)))
        0.5
    """
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    if momentum == 1:
        raise ValueError(f"need momentum < 1, got {momentum=}")
    reach = (2 + 2 * momentum) / (1 + 2 * momentum if nesterov else 1)
    positive = jnp.where(sharpness > 0, sharpness, 1)
    return jnp.where(sharpness > 0, reach / positive, jnp.inf)


def spectral_density(
    f: ScalarFn,
    params: Params,
    *args: Any,
    key: Key | int,
    num_steps: int | None = None,
    num_samples: int = 8,
) -> SpectralDensity:
    r"""Estimate the distribution of the Hessian's eigenvalues.

    For a random unit vector $q$ Lanczos' T has eigenpairs $(\theta_i, s_i)$, and

    $$\frac1n \operatorname{tr} g(H) = \mathbb{E}\,q^\top g(H)\,q
    \approx \sum_i s_{1i}^2\,g(\theta_i)$$

    where the sum is exact for polynomials $g$ of degree $2k - 1$: Gauss' quadrature,
    averaged over samples of $q$.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all.
        key: a typed key or a seed.
        num_steps: of Lanczos, in 1, ..., n; by default min(64, n).
        num_samples: how many random vectors, >= 1, one after another.

    Returns:
        Nodes and weights of the quadrature; `smoothed` turns them into a curve, and
        ``weights[eigenvalues < 0].sum()`` is the share of negative curvature.

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if ``num_steps`` or ``num_samples`` is out of range.

    References:
        Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature, 2017, https://doi.org/10.1137/16M1104974, algorithm 1. Ghorbani,
        Krishnan and Xiao, An investigation into neural net optimization via Hessian
        eigenvalue density, 2019, https://arxiv.org/abs/1901.10159. Differs from it
        in: full re-orthogonalization.
    """
    num_samples = numerics.check_count("num_samples", num_samples, 1)

    def sample(k_start: Key) -> tuple[jax.Array, jax.Array]:
        krylov = lanczos(f, params, *args, key=k_start, num_steps=num_steps)
        values, vectors = jnp.linalg.eigh(_tridiagonal(krylov))
        return values, vectors[0] ** 2 / num_samples

    keys = jax.random.split(numerics.key(key), num_samples)
    return SpectralDensity(*lax.map(sample, keys))


def smoothed(density: SpectralDensity, points: jax.Array, width: float) -> jax.Array:
    r"""Return the density as a curve: each eigenvalue becomes a Gaussian.

    $$\rho(x) = \sum_i w_i\,\mathcal{N}(x;\,\theta_i,\,\sigma^2)$$

    Args:
        density: from `spectral_density`.
        points: $x$, shape (m,), in units of the eigenvalues.
        width: $\sigma > 0$, in the same units.

    Returns:
        Shape (m,); the integral is one.

    Raises:
        ValueError: if the width is not positive.
    """
    numerics.check_positive("width", width)
    centers, weights = density.eigenvalues.ravel(), density.weights.ravel()
    z = (points[:, None] - centers[None, :]) / width
    bell = jnp.exp(-(z**2) / 2) / (width * (2 * jnp.pi) ** 0.5)
    return matmul(bell, weights)


def _check_steps(num_steps: int | None, size: int) -> int:
    if num_steps is None:
        return min(DEFAULT_STEPS, size)
    num_steps = numerics.check_count("num_steps", num_steps)
    if not 1 <= num_steps <= size:
        raise ValueError(
            f"need 1 <= num_steps <= number of parameters, got {num_steps=} {size=}"
        )
    return num_steps


def _tridiagonal(krylov: Krylov) -> jax.Array:
    beside = krylov.off_diagonal[:-1]
    return jnp.diag(krylov.diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)


def _orthogonalize(v: jax.Array, basis: jax.Array) -> jax.Array:
    """Remove the span of the rows from v; the second pass removes rounding errors.

    Rows of zeros have no effect. Half-precision products, an accelerator's default,
    would destroy the orthogonality.
    """
    for _ in range(2):
        v = v - matmul(matmul(basis, v), basis)
    return v


def _unit(v: jax.Array) -> jax.Array:
    return numerics.divide(v, numerics.norm(v))

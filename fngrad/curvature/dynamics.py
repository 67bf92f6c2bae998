r"""Local dynamics of an optimizer: the linear map that it is near a minimum.

A step maps $z = $ (parameters, state) to a new $z$. Around its fixed point, with
gradient noise $e$,

$$z_{t+1} = J z_t + B e_t, \qquad J = \partial z_{t+1} / \partial z_t, \qquad
B = \partial z_{t+1} / \partial g$$

so the distance to the minimum shrinks by the spectral radius of J per step, and under
noise of covariance C the stationary covariance S solves
$S = J S J^\top + B C B^\top$.

All functions compute in float64, whatever the parameters' dtype and jax's x64 setting,
and need concrete values (not under jit).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.curvature.hessian_products import ScalarFn
from fngrad.transforms.core import TransformLike, apply_updates
from fngrad.types import OptState, Params

EPS = float(np.finfo(np.float64).eps)


class LinearStep(NamedTuple):
    """One step around a point: z' = J z + B e, in float64.

    The first n of the m variables are the parameters, raveled; the others are the float
    leaves of the state that eventually affect the parameters.
    """

    J: np.ndarray  # (m, m)
    B: np.ndarray  # (m, n), the derivative by the gradient


class NoiseFloor(NamedTuple):
    """The stationary state under noise, to second order, in float64."""

    loss: float  # E f - min f = tr(H S) / 2
    second_moment: Params  # E (w - w*)**2, entry by entry
    covariance: np.ndarray  # S, (n, n)


def step_jacobian(
    optimizer: TransformLike,
    f: ScalarFn,
    params: Params,
    *args: Any,
    state: OptState | None = None,
    step: int = numerics.MAX_STEP,
) -> LinearStep:
    r"""Differentiate one (parameters, state) step of an optimizer.

    Integers and keys in the state are held fixed. Variables that never affect the
    parameters are left out: at a minimum these are Adam's second moment and the values
    of ``tunable``, since they multiply a gradient of zero.

    Args:
        optimizer: a transform whose updates are added to the parameters.
        f: ``(params, *args)`` to a scalar.
        params: real arrays: the fixed point, for most rules a minimum of ``f``.
        state: of the optimizer at the fixed point; by default what ``init`` returns.
            A rule that divides by a moment of the gradients needs a state here, since
            its initial moments are zero.
        step: the value of the state's counters, the integers called ``step``. The
            default is the largest: bias corrections are over, schedules at their end.

    Raises:
        TypeError: if a parameter is not a real float.
    """
    with numerics.double_precision():
        params, args = numerics.as_double((params, args))
        tree.check_floats(params)
        advance, at = _step_fn(optimizer, f, params, args, state=state, step=step)
        noise = jnp.zeros(ravel_pytree(params)[0].size)
        J, B = jax.jit(jax.jacfwd(advance, argnums=(0, 1)))(at, noise)
    J, B = np.asarray(J), np.asarray(B)
    kept = _affecting(J, B.shape[1])
    return LinearStep(J[np.ix_(kept, kept)], B[kept])


def local_rate(
    optimizer: TransformLike,
    f: ScalarFn,
    params: Params,
    *args: Any,
    state: OptState | None = None,
    step: int = numerics.MAX_STEP,
) -> float:
    r"""Return the factor by which the distance to a minimum shrinks in one step.

    It is the spectral radius of the step's Jacobian, $\max_i |\lambda_i(J)|$: below 1
    the optimizer converges from nearby points, above 1 it diverges from them.

    A tuned momentum method has double eigenvalues with one eigenvector. Rounding by
    $\epsilon$ splits them by up to about $\sqrt\epsilon$, depending on the processor,
    but preserves their mean. So eigenvalues that are equal up to rounding are replaced
    by their mean.

    Args:
        optimizer: a transform whose updates are added to the parameters.
        f: ``(params, *args)`` to a scalar.
        params: the minimum, see `step_jacobian`.
        state: of the optimizer there, see `step_jacobian`.
        step: the value of the state's counters.

    Raises:
        TypeError: if a parameter is not a real float.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad import curvature
        >>> f = lambda w: (w[0] ** 2 + 9 * w[1] ** 2) / 2
        >>> round(curvature.local_rate(fg.sgd(2 / (1 + 9)), f, jnp.zeros(2)), 12)
        0.8

    References:
        Polyak, Some methods of speeding up the convergence of iteration methods,
        1964, https://doi.org/10.1016/0041-5553(64)90137-5, theorem 1. Bai, Demmel
        and McKenney, On computing condition numbers for the nonsymmetric
        eigenproblem, 1993, https://doi.org/10.1145/152613.152617 (means of clusters).
    """
    J = step_jacobian(optimizer, f, params, *args, state=state, step=step).J
    return float(np.max(np.abs(_settled_eigenvalues(J))))


def noise_floor(
    optimizer: TransformLike,
    f: ScalarFn,
    params: Params,
    *args: Any,
    noise: float | jax.Array | np.ndarray,
    state: OptState | None = None,
    step: int = numerics.MAX_STEP,
) -> NoiseFloor:
    r"""Return the stationary state of an optimizer under noise in the gradients.

    The covariance is the solution of Lyapunov's equation
    $S = J S J^\top + B C B^\top$, exact for linear rules on quadratics. For gradient
    descent on $\lambda w^2 / 2$ with noise of variance $\sigma^2$ it is
    $S = \alpha \sigma^2 / (\lambda (2 - \alpha\lambda))$.

    Args:
        optimizer: a transform whose updates are added to the parameters.
        f: ``(params, *args)`` to a scalar.
        params: the minimum, n entries in all; see `step_jacobian`.
        noise: C, the covariance of the gradient, shape (n, n), or a number: the
            variance of each entry, independently. See `gradient_covariance`.
        state: of the optimizer at the minimum.
        step: the value of the state's counters.

    Raises:
        TypeError: if a parameter is not a real float.
        ValueError: if the step does not converge, so that there is no stationary state,
            or the noise has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad import curvature
        >>> f = lambda w: 2 * w**2 / 2
        >>> floor = curvature.noise_floor(fg.sgd(0.5), f, jnp.array(0.0), noise=1.0)
        >>> print(floor.second_moment)
        0.25

    References:
        Smith, Matrix equation XA + BX = C, 1968, https://doi.org/10.1137/0116017
        (the doubling by which the equation is solved). Mandt, Hoffman and Blei,
        Stochastic gradient descent as approximate Bayesian inference, 2017,
        https://arxiv.org/abs/1704.04289. Differs from it in: discrete time.
    """
    J, B = step_jacobian(optimizer, f, params, *args, state=state, step=step)
    radius = np.max(np.abs(_settled_eigenvalues(J)))
    if not radius < 1:
        raise ValueError(f"need a step that converges, got the local rate {radius}")
    n = B.shape[1]
    C = np.asarray(noise, np.float64)
    if C.shape not in ((), (n, n)):
        raise ValueError(f"need noise of shape () or {(n, n)}, got {C.shape}")
    C = C * np.eye(n) if C.shape == () else C
    S = _stationary_covariance(J, B @ C @ B.T)[:n, :n]
    with numerics.double_precision():
        params, args = numerics.as_double((params, args))
        w, unravel = ravel_pytree(params)
        H = jax.jit(jax.hessian(lambda w: f(unravel(w), *args)))(w)
        moments = jax.tree.map(np.asarray, unravel(jnp.asarray(np.diag(S))))
    return NoiseFloor(float(np.sum(np.asarray(H) * S) / 2), moments, S)


def _step_fn(
    optimizer: TransformLike,
    f: ScalarFn,
    params: Params,
    args: Any,
    *,
    state: OptState | None,
    step: int,
) -> tuple[Any, jax.Array]:
    """Return (z, noise) -> z on vectors, and the z of these parameters and state."""

    def set_counter(path: str, leaf: Any) -> Any:
        is_counter = path.split("/")[-1] == "step" and leaf.dtype == jnp.int32
        return jnp.full_like(leaf, step) if is_counter else leaf

    state = optimizer.init(params) if state is None else numerics.as_double(state)
    moving, rebuild = tree.split(tree.map_with_path(set_counter, state))
    _, unravel_params = ravel_pytree(params)
    at, unravel = ravel_pytree((params, moving))

    def advance(z: jax.Array, noise: jax.Array) -> jax.Array:
        params, moving = unravel(z)
        gradient = tree.add(jax.grad(f)(params, *args), unravel_params(noise))
        updates, state = optimizer.update(gradient, rebuild(moving), params)
        new = apply_updates(params, updates), tree.split(state)[0]
        return ravel_pytree(new)[0]

    return advance, at


def _affecting(J: np.ndarray, n: int) -> np.ndarray:
    """Return the variables that affect the first n, directly or through others."""
    found = np.arange(len(J)) < n
    while True:
        more = found | (J[found] != 0).any(axis=0)
        if (more == found).all():
            return np.flatnonzero(found)
        found = more


def _settled_eigenvalues(J: np.ndarray) -> np.ndarray:
    """Return the eigenvalues; those that rounding may have split get their mean.

    An eigenvalue of condition c lies within about eps ||J|| c of its computed value,
    a double one within about sqrt(eps) ||J||. Discs that overlap, directly or through
    others, form a cluster.

    The variables are scaled by powers of two first, until rows are about as long as
    columns: a state may have units of the gradient, far from those of the parameters.
    """
    import scipy.linalg

    J, _ = scipy.linalg.matrix_balance(J, permute=False)
    eigenvalues, vectors = np.linalg.eig(J)
    U, s, Vh = np.linalg.svd(vectors)
    inverse = (Vh.conj().T / np.maximum(s, EPS * s[0])) @ U.conj().T
    conditions = np.linalg.norm(inverse, axis=1)  # the vectors have length one
    error = 10 * len(J) * EPS
    radii = np.linalg.norm(J, 2) * np.minimum(error * conditions, error**0.5)
    distances = np.abs(eigenvalues[:, None] - eigenvalues)
    same = distances <= radii[:, None] + radii
    for _ in range(len(J).bit_length()):
        same = (same.astype(np.float64) @ same) > 0
    return same @ eigenvalues / same.sum(axis=1)


def _stationary_covariance(J: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Solve S = J S J' + Q for a J of spectral radius below one.

    S = sum_k J^k Q J'^k; each round doubles the number of terms.
    """
    S, power = Q, J
    while True:
        more = power @ S @ power.T
        if not np.max(np.abs(more)) > EPS * np.max(np.abs(S)):
            return (S + S.T) / 2
        S, power = S + more, power @ power

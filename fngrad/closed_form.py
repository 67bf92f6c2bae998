r"""Closed-form solutions of gradient = 0: linear regression and Newton's method.

For a quadratic loss $\nabla L = 0$ is a system of linear equations. For n examples and
d parameters, building it costs $n d^2$ operations, solving it $d^3$ operations and
$d^2$ numbers of memory, and the condition number of $X^\top X$ is the square of that
of X. For other losses only the local quadratic model can be solved, which is Newton's
method.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import matmul
from fngrad.types import Scalar, Tree

__all__ = [
    "LinearFit",
    "linear_regression",
    "newton",
]


def __dir__() -> list[str]:
    return sorted(__all__)


class LinearFit(NamedTuple):
    """A fitted linear map, ``y = x @ weights + intercept``."""

    weights: jax.Array  # shape (features,) or (features, outputs)
    intercept: jax.Array  # shape () or (outputs,); zero if none is fitted
    condition: jax.Array  # shape (); of X if by SVD, else of X'X + ridge I


def linear_regression(
    x: jax.Array,
    y: jax.Array,
    *,
    ridge: Scalar = 0.0,
    intercept: bool = True,
    method: Literal["svd", "normal"] = "svd",
) -> LinearFit:
    r"""Fit least squares, or ridge regression, in closed form.

    $$\min_{W, b}\; \|X W + b - Y\|^2 + \lambda \|W\|^2$$

    The intercept is not penalized: X and Y are centered first. Then

    $$W = (X^\top X + \lambda I)^{-1} X^\top Y
      \quad\text{or}\quad W = V \frac{S}{S^2 + \lambda} U^\top Y,
      \quad X = U S V^\top$$

    Args:
        x: shape (examples, features), float32 or float64.
        y: real, shape (examples,) or (examples, outputs).
        ridge: $\lambda$ >= 0, in squared units of x.
        intercept: whether to fit $b$.
        method: ``"normal"`` solves the normal equations by Cholesky, whose condition
            number is the square of X's, and returns NaN if they are singular;
            ``"svd"`` works on X itself and returns the solution of least norm.

    Returns:
        The fit, in the dtype of x.

    Raises:
        ValueError: if the ridge is negative, the method is unknown, or shapes do not
            match.
        TypeError: if x is not an array of real floats, or y is complex.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.closed_form import linear_regression
        >>> x = jnp.array([[0.0], [1.0], [2.0]])
        >>> fit = jax.jit(linear_regression)(x, jnp.array([1.0, 3.0, 5.0]))
        >>> print(fit.weights.round(4), fit.intercept.round(4))
        [2.] 1.0

    References:
        Hoerl and Kennard, Ridge regression, 1970, equation 2.1,
        https://doi.org/10.1080/00401706.1970.10488634.
    """
    numerics.check_number("ridge", ridge, low=0.0)
    if method not in ("svd", "normal"):
        raise ValueError(f'need method="svd" or "normal", got {method=}')
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.ndim not in (1, 2) or y.shape[0] != x.shape[0]:
        raise ValueError(
            "need x of shape (examples, features) and y of shape (examples,) or "
            f"(examples, outputs), got {x.shape} and {y.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating) or jnp.iscomplexobj(y):
        raise TypeError(
            f"need x of real floats and y of real numbers, got {x.dtype} and {y.dtype}"
        )
    targets = y.astype(x.dtype).reshape(y.shape[0], -1)
    x_mean = jnp.mean(x, axis=0) if intercept else jnp.zeros_like(x[0])
    y_mean = jnp.mean(targets, axis=0) if intercept else jnp.zeros_like(targets[0])
    centered_x, centered_y = x - x_mean[None], targets - y_mean[None]
    solve = _solve_normal if method == "normal" else _solve_svd
    weights, condition = solve(centered_x, centered_y, jnp.asarray(ridge, x.dtype))
    offset = y_mean - matmul(x_mean, weights)
    return LinearFit(
        weights.reshape(x.shape[1], *y.shape[1:]),
        offset.reshape(y.shape[1:]),
        condition,
    )


def newton(
    f: Callable[..., Any],
    params: Tree,
    *args: Any,
    num_steps: int = 1,
    damping: Scalar = 0.0,
) -> tuple[Tree, dict[str, jax.Array]]:
    r"""Solve repeatedly for the critical point of the local quadratic model.

    $$w \leftarrow w - (\nabla^2 f(w) + \lambda I)^{-1}\,\nabla f(w)$$

    One step is exact on a quadratic; near a minimum every step doubles the number of
    correct digits. The Hessian takes $d^2$ numbers of memory, and solving with it $d^3$
    operations. Saddle points and maxima attract the method as minima do.

    Args:
        f: ``f(params, *args)`` -> a real scalar.
        params: where to start, a tree of real float arrays of one dtype.
        args: passed to f.
        num_steps: how many steps to make, a Python int >= 0.
        damping: $\lambda$ >= 0, in units of the Hessian.

    Returns:
        The parameters, and ``value`` and ``gradient_norm`` before each step, each of
        shape (num_steps,).

    Raises:
        ValueError: if the damping or the number of steps is negative.
        TypeError: if a leaf is not a real float array, or f does not return a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.closed_form import newton
        >>> w, _ = newton(lambda w: jnp.sum((w - 3.0) ** 2), jnp.zeros(2))
        >>> print(w)
        [3. 3.]
    """
    numerics.check_number("damping", damping, low=0.0)
    num_steps = numerics.check_count("num_steps", num_steps)
    tree.check_floats(params)
    start, restore = ravel_pytree(params)

    def value(vector: jax.Array) -> jax.Array:
        return f(restore(vector), *args)

    def step(vector: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        at, gradient = jax.value_and_grad(value)(vector)
        hessian = jax.hessian(value)(vector)
        shift = jnp.asarray(damping, vector.dtype) * jnp.eye(
            vector.size, dtype=vector.dtype
        )
        move = jnp.linalg.solve(hessian + shift, gradient)
        seen = {"value": at, "gradient_norm": numerics.norm(gradient)}
        return vector - move, seen

    vector, history = jax.lax.scan(step, start, None, num_steps)
    return restore(vector), history


def _solve_normal(
    x: jax.Array, y: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gram = matmul(x.T, x) + ridge * jnp.eye(x.shape[1], dtype=x.dtype)
    factor = jax.scipy.linalg.cho_factor(gram)
    spectrum = jnp.linalg.eigvalsh(gram)
    weights = jax.scipy.linalg.cho_solve(factor, matmul(x.T, y))
    return weights, spectrum[-1] / jnp.maximum(spectrum[0], 0.0)


def _solve_svd(
    x: jax.Array, y: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    # The pseudo-inverse ignores singular values below the rounding error.
    cut = jnp.finfo(x.dtype).eps * max(x.shape) * s[0]
    kept = jnp.where(s > cut, s, 0.0)
    shrunk = numerics.divide(jnp.ones_like(kept), kept + numerics.divide(ridge, kept))
    weights = matmul(vt.T, shrunk[:, None] * matmul(u.T, y))
    return weights, s[0] / s[-1]

"""What kind of point this is: a minimum, a saddle, or merely a flat place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.curvature.hessian_products import ScalarFn, hessian
from fngrad.types import Params


class CriticalPoint(NamedTuple):
    """What gradient and Hessian say about a point; every field has shape ()."""

    value: jax.Array  # f
    gradient_norm: jax.Array  # Euclidean; small at a critical point
    flatness: jax.Array  # ||Hg|| / (||H|| ||g||) in [0, 1]; small: merely flat
    morse_index: jax.Array  # int32, how many eigenvalues are below zero
    nullity: jax.Array  # int32, how many are zero within the tolerance
    positive: jax.Array  # int32, how many are above zero
    smallest: jax.Array  # eigenvalue
    largest: jax.Array  # eigenvalue

    @property
    def kind(self) -> str:
        """The Hessian's verdict, once the values are known (not under jit).

        "saddle": some directions go up and some down, whatever the others do.
        "minimum" or "maximum": all go one way. "degenerate": the second order does
        not decide, since some eigenvalues are zero and the others have one sign.
        "undefined": the Hessian is not finite.
        """
        if self.morse_index > 0 and self.positive > 0:
            return "saddle"
        if self.nullity > 0:
            return "degenerate"
        if self.positive > 0:
            return "minimum"
        return "maximum" if self.morse_index > 0 else "undefined"


def critical_point(
    f: ScalarFn, params: Params, *args: Any, tolerance: float = 1e-5
) -> CriticalPoint:
    r"""Measure the gradient and count the signs of the Hessian's eigenvalues.

    A search for critical points that minimises $\|g\|^2$ can also end where

    $$\frac{\|H g\|}{\|H\|\,\|g\|}$$

    is small: there $\|g\|$ is stationary because the gradient lies in the Hessian's
    kernel, and not because it vanishes. Such points are *gradient-flat*, and their
    index says nothing. Where the gradient is exactly zero the ratio is taken to be 1.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all. All eigenvalues are computed, by n
            products, n**2 numbers of memory and n**3 operations: a few thousand
            entries at most. For more, `spectral_density` estimates the index.
        tolerance: eigenvalues within this share of the largest modulus count as
            zero. The default suits float32; float64 allows 1e-12.

    Returns:
        The counts and norms. Whether ``gradient_norm`` is small enough for a critical
        point depends on the scale of ``f`` and is left to the caller.

    Raises:
        TypeError: the value of ``f`` is not one float.
        ValueError: a negative tolerance.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad import curvature
        >>> f = lambda w: w[0] * w[1]
        >>> point = jax.jit(lambda w: curvature.critical_point(f, w))(jnp.zeros(2))
        >>> point.kind, int(point.morse_index)
        ('saddle', 1)

    References:
        Dauphin et al., Identifying and attacking the saddle point problem in
        high-dimensional non-convex optimization, 2014,
        https://arxiv.org/abs/1406.2572. Frye et al., Critical point-finding methods
        reveal gradient-flat regions of deep network losses, 2021,
        https://arxiv.org/abs/2003.10397.
    """
    numerics.check_number("tolerance", tolerance, low=0.0)
    wide = tree.widen(params)
    value, gradient = jax.value_and_grad(f)(wide, *args)
    g, _ = ravel_pytree(gradient)
    H = hessian(f, wide, *args)
    eigenvalues = jnp.linalg.eigvalsh(H)
    size, length = jnp.max(jnp.abs(eigenvalues)), numerics.norm(g)
    unit = numerics.divide(g, length)
    image = numerics.norm(jnp.matmul(H, unit, precision="highest"))
    flatness = numerics.divide(image, size)
    is_zero = jnp.abs(eigenvalues) <= tolerance * size
    return CriticalPoint(
        value,
        length,
        jnp.where(length > 0, flatness, 1),
        jnp.sum((eigenvalues < 0) & ~is_zero, dtype=jnp.int32),
        jnp.sum(is_zero, dtype=jnp.int32),
        jnp.sum((eigenvalues > 0) & ~is_zero, dtype=jnp.int32),
        eigenvalues[0],
        eigenvalues[-1],
    )

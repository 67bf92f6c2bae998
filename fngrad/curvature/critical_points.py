"""Classify a point: minimum, maximum, saddle, or merely a flat region."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.curvature.hessian_products import ScalarFn, hessian
from fngrad.numerics.matrix_products import matmul
from fngrad.types import Params


class CriticalPoint(NamedTuple):
    """The gradient and the Hessian's spectrum at a point; every field has shape ()."""

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
        """The kind of the point by its eigenvalues; needs concrete values (not jit).

        "saddle": both signs occur. "minimum" or "maximum": all eigenvalues have one
        sign. "degenerate": some are zero and the others have one sign, so the second
        order does not decide. "undefined": the Hessian is not finite.
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

    A search for critical points that minimizes $\|g\|^2$ can also end where

    $$\frac{\|H g\|}{\|H\|\,\|g\|}$$

    is small: there $\|g\|$ is stationary because the gradient lies in the Hessian's
    kernel, not because it vanishes. Such points are *gradient-flat*, and their index
    is meaningless. If the gradient is exactly zero, the ratio is 1 by definition.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all. All eigenvalues are computed, with n
            products, n**2 numbers of memory and n**3 operations, so n may be a few
            thousand at most. For more, `spectral_density` estimates the index.
        tolerance: eigenvalues within this share of the largest modulus count as
            zero. The default suits float32; float64 allows 1e-12.

    Returns:
        The counts and norms. Whether ``gradient_norm`` is small enough for a critical
        point depends on the scale of ``f``; the caller decides.

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if the tolerance is negative.

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
    image = numerics.norm(matmul(H, numerics.divide(g, length)))
    is_zero = jnp.abs(eigenvalues) <= tolerance * size
    return CriticalPoint(
        value=value,
        gradient_norm=length,
        flatness=jnp.where(length > 0, numerics.divide(image, size), 1),
        morse_index=jnp.sum((eigenvalues < 0) & ~is_zero, dtype=jnp.int32),
        nullity=jnp.sum(is_zero, dtype=jnp.int32),
        positive=jnp.sum((eigenvalues > 0) & ~is_zero, dtype=jnp.int32),
        smallest=eigenvalues[0],
        largest=eigenvalues[-1],
    )

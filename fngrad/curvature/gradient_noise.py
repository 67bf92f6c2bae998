r"""Gradient noise: how much the gradients of single examples differ.

With per-example gradients $g_i$ of mean $G$ and covariance $\Sigma$, the gradient of a
batch of B examples has covariance $\Sigma / B$. The batch size at which noise equals
signal, $\operatorname{tr}\Sigma / |G|^2$, is the *noise scale*.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

import fngrad.tree as tree
from fngrad.curvature.hessian_products import ScalarFn
from fngrad.numerics.matrix_products import matmul
from fngrad.types import Batch, Params


class NoiseScale(NamedTuple):
    """The result of `gradient_noise_scale`; every field has shape ()."""

    scale: jax.Array  # noise / signal, in examples
    noise: jax.Array  # tr Sigma, unbiased
    signal: jax.Array  # |G|**2, unbiased: may be below 0 if the noise dominates


def gradient_noise_scale(
    f: ScalarFn, params: Params, batch: Batch, *args: Any, chunk_size: int = 32
) -> NoiseScale:
    r"""Estimate the simple noise scale from the gradients of single examples.

    With the mean $\bar g$ of n gradients,

    $$S = \frac{1}{n - 1} \sum_i |g_i - \bar g|^2, \qquad
    |G|^2 \approx |\bar g|^2 - S / n, \qquad \mathcal{B} = S / |G|^2$$

    $S$ and $|G|^2$ are unbiased; their ratio is only consistent. With batches much
    smaller than $\mathcal{B}$ the progress per example is nearly the best possible.

    Args:
        f: ``(params, batch, *args)`` to the mean loss of a batch.
        params: real arrays.
        batch: arrays whose first axis counts n >= 2 examples.
        chunk_size: how many examples are differentiated at a time.

    Returns:
        The scale in examples, infinite if the signal is not positive.

    Raises:
        ValueError: if there are fewer than two examples, or arrays differ in their
            number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad import curvature
        >>> loss_fn = lambda w, x: jnp.mean((w - x) ** 2) / 2  # gradients w - x
        >>> w, examples = jnp.array(3.0), jnp.array([0.0, 2.0])
        >>> measure = jax.jit(curvature.gradient_noise_scale, static_argnums=0)
        >>> found = measure(loss_fn, w, examples)
        >>> print(found.noise, found.signal)
        2.0 3.0

    References:
        McCandlish et al., An empirical model of large-batch training, 2018,
        https://arxiv.org/abs/1812.06162, equation 2.9 and appendix A.1. Differs from
        it in: both parts come from per-example gradients, not from two batch sizes.
    """
    n = _count_examples(batch)
    mean = _gradient(f, params, batch, *args)

    def distance(example: Batch) -> jax.Array:
        deviation = tree.sub(_alone(f, params, example, *args), mean)
        return tree.vdot(deviation, deviation)

    noise = jnp.sum(lax.map(distance, batch, batch_size=chunk_size)) / (n - 1)
    signal = tree.vdot(mean, mean) - noise / n
    is_visible = signal > 0
    scale = jnp.where(is_visible, noise / jnp.where(is_visible, signal, 1), jnp.inf)
    return NoiseScale(scale, noise, signal)


def gradient_covariance(
    f: ScalarFn, params: Params, batch: Batch, *args: Any, chunk_size: int = 32
) -> jax.Array:
    r"""Estimate the covariance $\Sigma$ of the gradients of single examples.

    Args:
        f: ``(params, batch, *args)`` to the mean loss of a batch.
        params: real arrays with p entries in all.
        batch: arrays whose first axis counts n >= 2 examples.
        chunk_size: how many examples are differentiated at a time.

    Returns:
        Shape (p, p), unbiased. Divided by B it is the covariance of the gradient of B
        examples drawn with replacement, for `noise_floor`. All n gradients are held in
        memory.

    Raises:
        ValueError: if there are fewer than two examples, or arrays differ in their
            number.
    """
    n = _count_examples(batch)

    def flat(example: Batch) -> jax.Array:
        return ravel_pytree(_alone(f, params, example, *args))[0]

    gradients = lax.map(flat, batch, batch_size=chunk_size)
    centered = gradients - jnp.mean(gradients, axis=0, keepdims=True)
    return matmul(centered.T, centered) / (n - 1)


def _gradient(f: ScalarFn, params: Params, *args: Any) -> Params:
    return jax.grad(f)(tree.widen(params), *args)


def _alone(f: ScalarFn, params: Params, example: Batch, *args: Any) -> Params:
    return _gradient(f, params, jax.tree.map(lambda x: x[None], example), *args)


def _count_examples(batch: Batch) -> int:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            "need arrays whose first axes count the same examples, two or more, "
            f"got {shapes=}"
        )
    return min(counts)

"""Objectives with known minima, and gradients chosen to be hard on optimizers."""

import numpy as np

Array = np.ndarray


def quadratic(spectrum: Array, seed: int = 0) -> Array:
    """Return A with this spectrum: x'Ax/2 has its minimum 0 at 0."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))
    return (basis * np.asarray(spectrum)) @ basis.T


def rosenbrock(x):
    """Rosenbrock 1960: minimum 0 at (1, ..., 1); takes NumPy and JAX arrays."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def noise_floor(curvature: float, variance: float, learning_rate: float) -> float:
    """Return the stationary E x**2 of gradient descent on curvature x**2 / 2.

    The gradients carry noise of this variance:
    x' = (1 - a c) x - a e, so E x**2 = a**2 v / (1 - (1 - a c)**2).
    """
    return learning_rate * variance / (curvature * (2 - learning_rate * curvature))


def hard_gradients(
    steps: int = 25, huge: float = 1e3, tiny: float = 1e-4, seed: int = 0
) -> Array:
    """Return gradients of shape (steps, 6), with one difficulty per column.

    They are generic, always zero, sparse, zero until half the steps are over, huge,
    and tiny.
    """
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(steps, 6))
    gradients[:, 1] = 0
    gradients[:, 2] *= rng.uniform(size=steps) < 0.2
    gradients[: steps // 2, 3] = 0
    return gradients * np.array([1, 1, 1, 1, huge, tiny])


def decaying(learning_rate: float = 0.1, steps: int = 25) -> Array:
    """Return a learning rate for each step, falling by a tenth each time."""
    return learning_rate * 0.9 ** np.arange(steps)

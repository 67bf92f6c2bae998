"""Sign rules and rules with their own step sizes, in float64 NumPy.

As in `oracles`: gradients and parameters (steps, size), learning rates (steps,), to
updates (steps, size).
"""

import numpy as np
from oracles import decoupled

Array = np.ndarray


@decoupled
def sign_sgd(gradients: Array, params: Array, learning_rates: Array) -> Array:
    """Bernstein et al. 2018, algorithm 1."""
    return -learning_rates[:, None] * np.sign(gradients)


@decoupled
def signum(
    gradients: Array, params: Array, learning_rates: Array, beta: float = 0.9
) -> Array:
    """Bernstein et al. 2018, algorithm 2 without decay."""
    m, updates = np.zeros_like(gradients[0]), []
    for lr, g in zip(learning_rates, gradients, strict=True):
        m = beta * m + (1 - beta) * g
        updates.append(-lr * np.sign(m))
    return np.array(updates)


def lion(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 1e-3,
) -> Array:
    """Chen et al. 2023, algorithm 2."""
    m, updates = np.zeros_like(gradients[0]), []
    for lr, g, w in zip(learning_rates, gradients, params, strict=True):
        c = b1 * m + (1 - b1) * g
        updates.append(-lr * (np.sign(c) + weight_decay * w))
        m = b2 * m + (1 - b2) * g
    return np.array(updates)


@decoupled
def rprop(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> Array:
    """Riedmiller and Braun 1993, without backtracking: a loop over coordinates."""
    updates = np.zeros_like(gradients)
    for i in range(gradients.shape[1]):
        size, previous = learning_rates[0], 0.0
        for t, g in enumerate(gradients[:, i]):
            slope = g
            if previous * g > 0:
                size = size * eta_plus
            elif previous * g < 0:
                size = size * eta_minus
                slope = 0.0
            size = min(max(size, min_step_size), max_step_size)
            if slope > 0:
                updates[t, i] = -size
            elif slope < 0:
                updates[t, i] = size
            previous = slope
    return updates


def adadelta(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Array:
    """Zeiler 2012, algorithm 1; the decay is L2 regularisation."""
    squares = np.zeros(gradients[0].shape)
    squared_steps = np.zeros(gradients[0].shape)
    updates = []
    for lr, g, w in zip(learning_rates, gradients, params, strict=True):
        g = g + weight_decay * w
        squares = rho * squares + (1 - rho) * np.abs(g) ** 2
        denominator = np.sqrt(squares + eps)
        denominator[denominator == 0] = np.inf
        step = -np.sqrt(squared_steps + eps) / denominator * g
        squared_steps = rho * squared_steps + (1 - rho) * np.abs(step) ** 2
        updates.append(lr * step)
    return np.array(updates)


def madgrad(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
) -> Array:
    """Defazio and Jelassi 2021, algorithm 1, with the authors' epsilon."""
    s, v = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    updates = []
    for k in range(len(gradients)):
        weight = (learning_rates[k] + eps) * np.sqrt(k + 1)
        g = gradients[k] + weight_decay * params[k]
        s = s + weight * g
        v = v + weight * np.abs(g) ** 2
        denominator = v ** (1 / 3) + eps
        denominator[denominator == 0] = np.inf
        travelled = params[k] - params[0]  # apart from z, where it would be rounded
        updates.append(-(1 - momentum) * (s / denominator + travelled))
    return np.array(updates)

"""AdamW's kin since 2020 in float64 NumPy, written from their papers.

The signatures are those of `oracles_moments`. A row is a leaf: norms are over it.
"""

import numpy as np
from oracles import Array, quotient
from oracles_moments import adam_moments, descend


def laprop(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-15,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Array:
    """Ziyin, Wang and Ueda 2020, algorithm 1."""
    _, squares = adam_moments(gradients, 0.0, b2)
    t = np.arange(1, len(gradients) + 1)[:, None]
    denominators = np.sqrt(squares / (1 - b2**t) + eps_root) + eps
    sums, _ = adam_moments(quotient(gradients, denominators), b1, 0.0)
    return descend(sums / (1 - b1**t), params, learning_rates, weight_decay)


def simplified_ademamix(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: float = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Array:
    """Morwani et al. 2025, algorithm 1."""
    m, v, directions = 0 * gradients[0], np.zeros(gradients[0].shape), []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        root = np.sqrt(v / (1 - b2**t) + eps_root) + eps
        directions.append(quotient(m + alpha * g, root))
    return descend(directions, params, learning_rates, weight_decay)


def mars(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.95,
    b2: float = 0.99,
    gamma: float = 0.025,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_norm: float = 1.0,
) -> Array:
    """Yuan et al. 2024, algorithm 2, the approximate form."""
    clipped, last = [], gradients[0]
    for g in gradients:
        c = g + gamma * b1 / (1 - b1) * (g - last)
        length = np.sqrt(np.sum(np.abs(c) ** 2))
        clipped.append(c / length * max_norm if length > max_norm else c)
        last = g
    averages, squares = adam_moments(np.array(clipped), b1, b2)
    t = np.arange(1, len(gradients) + 1)[:, None]
    root = np.sqrt(squares / (1 - b2**t)) + eps
    directions = quotient(averages / (1 - b1**t), root)
    return descend(directions, params, learning_rates, weight_decay)


def stable_adamw(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    clipping_threshold: float = 1.0,
) -> Array:
    """Wortsman et al. 2023, algorithm 2, with its debiased decays."""
    v, u, updates = 0 * gradients[0], np.zeros(gradients[0].shape), []
    for t, (rate, g, w) in enumerate(
        zip(learning_rates, gradients, params, strict=True), start=1
    ):
        first = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
        second = b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        v = first * v + (1 - first) * g
        u = second * u + (1 - second) * np.abs(g) ** 2
        excess = quotient(np.abs(g) ** 2, np.maximum(u, eps**2))
        rate = rate / max(1.0, np.sqrt(np.mean(excess)) / clipping_threshold)
        updates.append(-rate * (weight_decay * w + quotient(v, np.sqrt(u) + eps)))
    return np.array(updates)


def came(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    eps: float = 1e-30,
    eps_residual: float = 1e-16,
    weight_decay: float = 0.0,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 1,
) -> Array:
    """Luo et al. 2023, algorithm 2; leaves of shape (..., rows, columns)."""
    is_factored = min(gradients.shape[-2:]) >= min_dim_size_to_factor
    m, averages, residuals, updates = 0.0, 0.0, 0.0, []
    for rate, g, w in zip(learning_rates, gradients, params, strict=True):
        averages = b2 * averages + (1 - b2) * (np.abs(g) ** 2 + eps)
        u = quotient(g, np.sqrt(rank_one(averages) if is_factored else averages))
        u = u / max(1.0, np.sqrt(np.mean(np.abs(u) ** 2)) / clipping_threshold)
        m = b1 * m + (1 - b1) * u
        apart = np.abs(u - m) ** 2 + eps_residual
        residuals = b3 * residuals + (1 - b3) * apart
        u = quotient(m, np.sqrt(rank_one(residuals))) if is_factored else m
        updates.append(-rate * (u + weight_decay * w))
    return np.array(updates)


def rank_one(x: Array) -> Array:
    """Return rows times columns over their sum: means are linear, so of averages."""
    rows, columns = (np.sum(x, axis, keepdims=True) for axis in (-1, -2))
    return quotient(rows * columns, np.sum(rows, -2, keepdims=True))


def adam_mini(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    blocks: tuple = (("**", "output"),),
) -> Array:
    """Zhang et al. 2024, algorithm 1, for matrices (steps, rows, columns)."""
    ((_, kind),) = blocks
    squares = np.abs(gradients) ** 2
    if kind == "leaf":
        squares = np.mean(squares, (1, 2), keepdims=True)
    elif kind == "output":
        squares = np.mean(squares, 1, keepdims=True)
    elif kind == "input":
        squares = np.mean(squares, 2, keepdims=True)
    elif kind != "entry":
        heads = np.split(squares, kind, axis=2)
        means = [np.mean(h, (1, 2), keepdims=True) + 0 * h for h in heads]
        squares = np.concatenate(means, axis=2)
    m, v, updates = 0.0, 0.0, []
    for t, (rate, g, square, w) in enumerate(
        zip(learning_rates, gradients, squares, params, strict=True), start=1
    ):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * square
        u = quotient(m / (1 - b1**t), np.sqrt(v / (1 - b2**t)) + eps)
        updates.append(-rate * (u + weight_decay * w))
    return np.array(updates)

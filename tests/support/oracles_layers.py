"""Layerwise and factored rules in float64 NumPy, written from their papers.

As in `oracles`, but a leaf may have any shape: gradients and parameters are
(steps, *shape), learning rates (steps,), updates (steps, *shape).
"""

import itertools
from collections.abc import Callable

import numpy as np
from oracles import decoupled

Array = np.ndarray


def norm(x: Array) -> float:
    """Return the Euclidean norm of all entries."""
    return float(np.sqrt(np.sum(np.abs(x) ** 2)))


def rms(x: Array) -> float:
    """Return the root mean square of all entries."""
    return norm(x) / np.sqrt(x.size)


def ratio(numerator: float, denominator: float, eps: float = 0.0) -> float:
    """Return the trust ratio: 1 where either norm is zero."""
    if numerator == 0 or denominator == 0:
        return 1.0
    return numerator / (denominator + eps)


def lars(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    trust_ratio_mask: Callable | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    separate_norms: bool = False,
) -> Array:
    """You, Gitman and Ginsburg 2017, algorithm 1; a mask selects nothing."""
    buffer, updates = np.zeros_like(gradients[0]), []
    for lr, g, w in zip(learning_rates, gradients, params, strict=True):
        decayed = g + weight_decay * w
        length = norm(g) + weight_decay * norm(w) if separate_norms else norm(decayed)
        rate = lr
        if trust_ratio_mask is None:
            both = norm(w) > 0 and length > 0
            rate = lr * (trust_coefficient * ratio(norm(w), length, eps) if both else 1)
        buffer = momentum * buffer + rate * decayed
        updates.append(-(momentum * buffer + rate * decayed) if nesterov else -buffer)
    return np.array(updates)


def lamb(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decay_outside: bool = False,
    max_ratio: float | None = None,
) -> Array:
    """You et al. 2020, algorithm 2 with phi the identity; Fong et al. 2020."""
    bound = np.inf if max_ratio is None else max_ratio
    m, v = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    updates = []
    for t, (lr, g, w) in enumerate(
        zip(learning_rates, gradients, params, strict=True), start=1
    ):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        root = np.sqrt(v / (1 - b2**t) + eps_root) + eps
        r = m / (1 - b1**t) / np.where(root == 0, np.inf, root)
        if decay_outside:
            u = min(bound, ratio(norm(w), norm(r))) * r + weight_decay * w
        else:
            u = r + weight_decay * w
            u = min(bound, ratio(norm(w), norm(u))) * u
        updates.append(-lr * u)
    return np.array(updates)


def novograd(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Array:
    """Ginsburg et al. 2019, algorithm 1."""
    updates, m, v = [], None, None
    for lr, g, w in zip(learning_rates, gradients, params, strict=True):
        v = norm(g) ** 2 if v is None else b2 * v + (1 - b2) * norm(g) ** 2
        root = np.sqrt(v + eps_root) + eps
        direction = (g / root if root > 0 else 0 * g) + weight_decay * w
        m = direction if m is None else b1 * m + direction
        updates.append(-lr * m)
    return np.array(updates)


def adafactor(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    weight_decay_rate: float | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    min_scale: float = 1e-3,
    relative_step: bool = False,
    factored_dims: str = "largest",
    weight_decay: float | None = None,
) -> Array:
    """Shazeer and Stern 2018, algorithm 6, with the paper's row and column sums.

    The last argument stands in for weight_decay_rate on a leaf that does not decay.
    """
    decay = weight_decay_rate if weight_decay is None else weight_decay
    axes = factored_axes(gradients[0].shape, factored_dims)
    is_factored = factored and len(axes) == 2
    if is_factored:
        sizes = [gradients[0].shape[axis] for axis in axes]
        is_factored = min(sizes) >= min_dim_size_to_factor
    row = column = full = mean = 0.0
    updates = []
    for k, (g, w) in enumerate(zip(gradients, params, strict=True)):
        t = max(k - decay_offset, 0) + 1
        beta = 1 - t**-decay_rate
        square = np.abs(g) ** 2 + eps
        if is_factored:
            row = beta * row + (1 - beta) * square.sum(axes[1], keepdims=True)
            column = beta * column + (1 - beta) * square.sum(axes[0], keepdims=True)
            full = row * column / row.sum(axes[0], keepdims=True)
        else:
            full = beta * full + (1 - beta) * square
        u = g / np.sqrt(full)
        if clipping_threshold is not None:
            u = u / max(1.0, rms(u) / clipping_threshold)
        lr = learning_rates[k]
        if relative_step:
            lr = min(lr, 1 / np.sqrt(k + 1))
        u = lr * u
        if multiply_by_parameter_scale:
            u = max(min_scale, rms(w)) * u
        if momentum is not None:
            mean = momentum * mean + (1 - momentum) * u
            u = mean
        updates.append(-u - (decay or 0.0) * w)
    return np.array(updates)


def factored_axes(shape: tuple[int, ...], kind: str) -> list[int]:
    """Return the two longest axes (the later of equal ones), or the last two."""
    if kind == "last":
        return list(range(len(shape)))[-2:]
    by_length = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
    return by_length[-2:]


@decoupled
def sm3(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    momentum: float | None = 0.9,
    eps: float = 1e-8,
    variant: str = "II",
) -> Array:
    """Anil et al. 2019, SM3-I and SM3-II entry by entry; a slice per axis and index."""
    shape = gradients[0].shape
    entries = list(itertools.product(*map(range, shape)))
    slices_of = {entry: list(enumerate(entry)) for entry in entries}
    mu = {r: 0.0 for slices in slices_of.values() for r in slices}
    average, updates = np.zeros_like(gradients[0]), []
    for lr, g in zip(learning_rates, gradients, strict=True):
        square = np.abs(g) ** 2
        total = np.zeros(shape)
        if variant == "I":
            for r in mu:
                mu[r] += max(square[i] for i in entries if r in slices_of[i])
            for i in entries:
                total[i] = min(mu[r] for r in slices_of[i])
        else:
            for i in entries:
                total[i] = min(mu[r] for r in slices_of[i]) + square[i]
            for r in mu:
                mu[r] = max(total[i] for i in entries if r in slices_of[i])
        root = np.sqrt(total + eps)
        direction = g / np.where(root == 0, np.inf, root)
        if momentum is not None:
            average = momentum * average + (1 - momentum) * direction
            direction = average
        updates.append(-lr * direction)
    return np.array(updates)

"""Muon's relatives in float64 NumPy, written from their papers.

Each oracle takes one leaf: gradients and parameters of shape (steps, *shape), the
parameters as they were when each gradient was taken, and learning rates of shape
(steps,). It returns the updates, shape (steps, *shape), that are to be added.
"""

import math

import jax
import numpy as np
import oracles
from oracles_matrix import newton_schulz

Array = np.ndarray
QUINTIC = (3.4445, -4.7750, 2.0315)


def for_the_rest(gradients: Array, params: Array, rates: Array, **more: float) -> Array:
    """Adam on a leaf of any shape."""
    flat = [x.reshape(len(x), -1) for x in (gradients, params)]
    return oracles.adam(*flat, rates, **more).reshape(params.shape)


def size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of a leaf of (..., in, out)."""
    return math.prod(shape[:-1]), shape[-1]


def momenta(gradients: Array, beta: float, nesterov: bool) -> Array:
    """Averages of the gradients as matrices, one step ahead or not."""
    matrices = gradients.reshape(len(gradients), *size_of(gradients.shape[1:]))
    m, seen = np.zeros_like(matrices[0]), []
    for g in matrices:
        m = beta * m + (1 - beta) * g
        seen.append(beta * m + (1 - beta) * g if nesterov else m)
    return np.array(seen)


def descend(
    directions: list[Array], params: Array, rates: Array, weight_decay: float
) -> Array:
    """Step along directions, with decoupled decay."""
    u = np.array(directions).reshape(params.shape)
    return -rates.reshape(-1, *[1] * (params.ndim - 1)) * (u + weight_decay * params)


def normuon(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    ns_coeffs: tuple = QUINTIC,
    ns_steps: int = 5,
    beta: float = 0.95,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    consistent_rms: float | None = 0.2,
    is_matrix: bool = True,
) -> Array:
    """Li et al. 2025, algorithm 1; without an rms, the scale of the authors' code."""
    if not is_matrix:
        return for_the_rest(gradients, params, learning_rates)
    rows, columns = size_of(params.shape[1:])
    v, directions = np.zeros(columns), []
    for m in momenta(gradients, beta, nesterov):
        o = newton_schulz(m, ns_coeffs, ns_steps, eps)
        v = beta2 * v + (1 - beta2) * np.mean(o**2, axis=0)
        u = o / (np.sqrt(v) + eps)
        length = math.sqrt(max(1, columns / rows)) * np.linalg.norm(o)
        if consistent_rms is not None:
            length = consistent_rms * math.sqrt(rows * columns)
        directions.append(length * u / np.linalg.norm(u))
    return descend(directions, params, learning_rates, weight_decay)


def adamuon(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    ns_coeffs: tuple = QUINTIC,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    consistent_rms: float = 0.2,
    is_matrix: bool = True,
) -> Array:
    """Si et al. 2025, algorithm 1."""
    if not is_matrix:
        return for_the_rest(gradients, params, learning_rates)
    v, directions = 0.0, []
    for m in momenta(gradients, beta, nesterov):
        o = newton_schulz(np.sign(m), ns_coeffs, ns_steps, eps)
        v = beta * v + (1 - beta) * o**2
        u = o / (np.sqrt(v) + eps)
        directions.append(consistent_rms * math.sqrt(u.size) * u / np.linalg.norm(u))
    return descend(directions, params, learning_rates, weight_decay)


def on_sphere(directions: Array, params: Array, rates: Array) -> Array:
    """Wen et al. 2025: normalize the step, then the weights."""
    radius, updates = np.linalg.norm(params[0]), []
    for u, w, rate in zip(directions, params, rates, strict=True):
        moved = w - rate * radius * u / np.linalg.norm(u)
        updates.append(radius * moved / np.linalg.norm(moved) - w)
    return np.array(updates)


def muonh(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    ns_coeffs: tuple = QUINTIC,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    nesterov: bool = True,
    is_matrix: bool = True,
) -> Array:
    """Muon with debiased averages, on the sphere."""
    if not is_matrix:
        return for_the_rest(gradients, params, learning_rates)
    shape = size_of(params.shape[1:])
    m, directions = np.zeros(shape), []
    for t, g in enumerate(gradients.reshape(-1, *shape), start=1):
        m = beta * m + (1 - beta) * g
        ahead = m / (1 - beta**t)
        if nesterov:
            debiased = m / (1 - beta ** (t + 1))
            ahead = beta * debiased + (1 - beta) * g / (1 - beta**t)
        directions.append(newton_schulz(ahead, ns_coeffs, ns_steps, eps))
    return on_sphere(np.reshape(directions, params.shape), params, learning_rates)


def adamh(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    is_matrix: bool = True,
    **arguments: float,
) -> Array:
    """Adam, on the sphere."""
    if not is_matrix:
        return for_the_rest(gradients, params, learning_rates, **arguments)
    ones = np.ones_like(learning_rates)
    directions = -for_the_rest(gradients, params, ones, **arguments)
    return on_sphere(directions, params, learning_rates)


def scion(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    balls: tuple = (("**", "auto", 1.0),),
    ns_coeffs: tuple = QUINTIC,
    ns_steps: int = 5,
    beta: float = 0.9,
    eps: float = 1e-8,
    constrained: bool = True,
) -> Array:
    """Pethick et al. 2025, algorithms 1 and 2, tables 2 and 3.

    Vectors are in the first ball, all others in the last.
    """
    shape = params.shape[1:]
    _, norm, radius = balls[0 if len(shape) < 2 else -1]
    directions = []
    for m in momenta(gradients, beta, nesterov=False):
        a = m.T  # (out, in), as in the paper
        outputs, inputs = a.shape
        if norm == "rms" or len(shape) < 2:
            u = a * math.sqrt(a.size) / np.linalg.norm(a)
        elif norm in ("auto", "spectral", "image"):
            area = math.prod(shape[:-2])
            ratio = math.sqrt(outputs * area / inputs)
            u = newton_schulz(a, ns_coeffs, ns_steps, eps) / area
            u = u * (max(1, ratio) if norm == "image" else ratio)
        elif norm == "column":
            u = math.sqrt(outputs) * a / np.linalg.norm(a, axis=0, keepdims=True)
        elif norm == "row":
            u = a / np.linalg.norm(a, axis=1, keepdims=True) / math.sqrt(inputs)
        else:
            u = np.sign(a) / (inputs if norm == "sign" else 1)
        directions.append(radius * u.T)
    return descend(directions, params, learning_rates, float(constrained))


def dion(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    rank_fraction: float = 1,
    beta: float = 0.95,
    weight_decay: float = 0.0,
    key: int = 0,
    is_matrix: bool = True,
) -> Array:
    """Ahn et al. 2025, algorithm 1, from the same first basis."""
    if not is_matrix:
        return for_the_rest(gradients, params, learning_rates)
    inputs, outputs = size_of(params.shape[1:])
    rank = math.ceil(rank_fraction * min(inputs, outputs))
    q = jax.random.normal(jax.random.key(key), (inputs, rank), "float32")
    q = np.asarray(q, np.float64)
    m, directions = np.zeros((outputs, inputs)), []
    for g in gradients.reshape(-1, inputs, outputs):
        b = m + g.T
        p, _ = np.linalg.qr(b @ q)
        r = b.T @ p
        m = b - (1 - beta) * p @ r.T
        q = r / np.linalg.norm(r, axis=0)
        directions.append((math.sqrt(outputs / inputs) * p @ q.T).T)
    return descend(directions, params, learning_rates, weight_decay)


def polar_express(count: int, low: float = 1e-3, cushion: float = 0.0240732743) -> list:
    """Amsel et al. 2025, algorithm 1 and appendix G: the best odd quintics in turn.

    Each minimizes the largest distance from 1 on [low, high], by Remez's exchange of
    the points between which the error alternates, and maps them to another interval.
    """
    high, triples = 1.0, []
    for _ in range(count):
        start = max(low, cushion * high)
        points = start + (high - start) * np.array([0.0, 0.25, 0.75, 1.0])
        for _ in range(100):
            signs = [1, -1, 1, -1]
            system = np.stack([points, points**3, points**5, signs], axis=1)
            a, b, c, _ = np.linalg.solve(system, np.ones(4))
            extrema = np.sort(np.roots([5 * c, 3 * b, a]).real)  # of the squares
            points = np.array([start, *np.sqrt(np.maximum(extrema, 0)), high])
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        scale = 2 / sum(ends)
        triples.append((scale * a, scale * b, scale * c))
        low = scale * ends[0]
        high = 2 - low
    return triples

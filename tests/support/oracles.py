"""Optimizers in float64 NumPy, written from their papers.

Each oracle takes gradients and parameters of shape (steps, size), the parameters as
they were when each gradient was taken, and learning rates of shape (steps,). It
returns the updates, shape (steps, size), that are to be added to the parameters.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray
Oracle = Callable[..., Array]


def decoupled(oracle: Oracle) -> Oracle:
    """Give the oracle of a rule without decay that of Loshchilov and Hutter 2019."""

    @functools.wraps(oracle)
    def decaying(
        gradients: Array,
        params: Array,
        learning_rates: Array,
        *arguments: Any,
        weight_decay: float | None = None,
        **others: Any,
    ) -> Array:
        updates = oracle(gradients, params, learning_rates, *arguments, **others)
        rates = learning_rates.reshape(-1, *[1] * (params.ndim - 1))
        return updates - rates * (weight_decay or 0.0) * params

    return decaying


def heavy_ball(
    directions: Array,
    decay: float,
    nesterov: bool = False,
    dampening: float = 0.0,
    damp_first: bool = True,
) -> Iterator[Array]:
    """Polyak 1964; with Nesterov's look-ahead as Sutskever et al. 2013 put it.

    PyTorch's dampening leaves the first direction undamped (damp_first=False).
    """
    buffer = np.zeros_like(directions[0])
    for t, g in enumerate(directions):
        weight = 1.0 if t == 0 and not damp_first else 1.0 - dampening
        buffer = decay * buffer + weight * g
        yield decay * buffer + weight * g if nesterov else buffer


def with_momentum(
    directions: Array,
    learning_rates: Array,
    momentum: float | None,
    nesterov: bool,
    learning_rate_first: bool,
) -> Array:
    """Descend along directions, with the learning rate inside or outside the buffer."""
    lr = learning_rates[:, None]
    if momentum is None:
        return -lr * directions
    if learning_rate_first:
        return -np.array(list(heavy_ball(lr * directions, momentum, nesterov)))
    return -lr * np.array(list(heavy_ball(directions, momentum, nesterov)))


@decoupled
def sgd(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    momentum: float | None = None,
    nesterov: bool = False,
    learning_rate_first: bool = False,
) -> Array:
    """Robbins and Monro 1951."""
    return with_momentum(
        gradients, learning_rates, momentum, nesterov, learning_rate_first
    )


@decoupled
def momentum(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    momentum: float = 0.9,
    nesterov: bool = False,
    learning_rate_first: bool = False,
) -> Array:
    """Polyak 1964."""
    return with_momentum(
        gradients, learning_rates, momentum, nesterov, learning_rate_first
    )


@decoupled
def rmsprop(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    learning_rate_first: bool = True,
) -> Array:
    """Tieleman and Hinton 2012; centered: Graves 2013, equations 38 to 41."""
    mean = np.zeros_like(gradients[0])
    square = np.full(gradients[0].shape, initial_scale)
    directions = []
    for t, g in enumerate(gradients, start=1):
        mean = decay * mean + (1 - decay) * g
        square = decay * square + (1 - decay) * np.abs(g) ** 2
        seen = 1 - decay**t if bias_correction else 1.0
        spread = square / seen
        if centered:
            spread = np.maximum(spread - np.abs(mean / seen) ** 2, 0.0)
        directions.append(divide_by_root(g, spread, eps, eps_in_sqrt))
    return with_momentum(
        np.array(directions), learning_rates, momentum, nesterov, learning_rate_first
    )


@decoupled
def adagrad(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    eps_in_sqrt: bool = True,
) -> Array:
    """Duchi, Hazan and Singer 2011, the diagonal rule."""
    squares = initial_accumulator_value + np.cumsum(np.abs(gradients) ** 2, axis=0)
    directions = divide_by_root(gradients, squares, eps, eps_in_sqrt)
    return -learning_rates[:, None] * directions


@decoupled
def adam(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
) -> Array:
    """Kingma and Ba 2015, algorithm 1; the look-ahead: Dozat 2016, algorithm 2."""
    m, v = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    updates = []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        denominator = np.sqrt(v_hat + eps_root) + eps
        updates.append(-learning_rates[t - 1] * quotient(m_hat, denominator))
    return np.array(updates)


def adamw(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
) -> Array:
    """Loshchilov and Hutter 2019, algorithm 2, the decay times the learning rate."""
    arguments = (b1, b2, eps, eps_root, nesterov)
    return adam(
        gradients, params, learning_rates, *arguments, weight_decay=weight_decay
    )


def divide_by_root(g: Array, square: Array, eps: float, eps_in_sqrt: bool) -> Array:
    """Divide by the root, with epsilon inside or outside it; 0 / 0 is 0."""
    root = np.sqrt(square + eps) if eps_in_sqrt else np.sqrt(square) + eps
    return quotient(g, root)


def quotient(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 for 0 / 0."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, 0.0, numerator / safe)

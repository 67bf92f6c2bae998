"""Adam's relatives in float64 NumPy, written from their papers.

The signatures are those of `oracles`: gradients and parameters of shape (steps, size),
learning rates of shape (steps,), updates of shape (steps, size).
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from oracles import Array, adam, decoupled, quotient


def adamax(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_in_max: bool = True,
    decoupled_weight_decay: bool = True,
) -> Array:
    """Kingma and Ba 2015, algorithm 2; epsilon as in PyTorch, or as in Keras."""
    if not decoupled_weight_decay:
        gradients = gradients + weight_decay * params
    m, u = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    directions = []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, np.abs(g) + eps if eps_in_max else np.abs(g))
        denominator = (1 - b1**t) * (u if eps_in_max else u + eps)
        directions.append(quotient(m, denominator))
    decoupled = weight_decay if decoupled_weight_decay else 0.0
    return descend(directions, params, learning_rates, decoupled)


@decoupled
def amsgrad(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    debias: str = "before_max",
) -> Array:
    """Reddi, Kale and Kumar 2018, algorithm 2, with one of two corrections."""
    averages, squares = adam_moments(gradients, b1, b2)
    t = np.arange(1, len(gradients) + 1)[:, None]
    if debias == "never":
        numerators, largest = averages, np.maximum.accumulate(squares)
    else:
        numerators = averages / (1 - b1**t)
        if debias == "before_max":
            largest = np.maximum.accumulate(squares / (1 - b2**t))
        else:
            largest = np.maximum.accumulate(squares) / (1 - b2**t)
    directions = quotient(numerators, np.sqrt(largest + eps_root) + eps)
    return descend(directions, params, learning_rates)


def nadam(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    momentum_decay: float | None = None,
    debias_ahead: bool = True,
    decoupled_weight_decay: bool = True,
) -> Array:
    """Dozat 2016, algorithm 2, as PyTorch has it; NAdamW: Choi et al. 2019, table 1."""

    def momentum(t: int) -> float:
        rise = 0.0 if momentum_decay is None else 0.5 * 0.96 ** (t * momentum_decay)
        return b1 * (1 - rise)

    if not decoupled_weight_decay:
        gradients = gradients + weight_decay * params
    averages, squares = adam_moments(gradients, b1, b2)
    directions = []
    for t, (g, m, v) in enumerate(
        zip(gradients, averages, squares, strict=True), start=1
    ):
        product = math.prod(momentum(s) for s in range(1, t + 1))
        seen = 1 - product
        will_see = 1 - product * momentum(t + 1) if debias_ahead else seen
        m_bar = momentum(t + 1) * m / will_see + (1 - momentum(t)) * g / seen
        denominator = np.sqrt(v / (1 - b2**t) + eps_root) + eps
        directions.append(quotient(m_bar, denominator))
    decoupled = weight_decay if decoupled_weight_decay else 0.0
    return descend(directions, params, learning_rates, decoupled)


def radam(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    unrectified: str = "momentum",
    decoupled_weight_decay: bool = True,
) -> Array:
    """Liu et al. 2020, algorithm 2."""
    if not decoupled_weight_decay:
        gradients = gradients + weight_decay * params
    averages, squares = adam_moments(gradients, b1, b2)
    decay = Fraction(b2)  # in floats the two halves of the length cancel to 1e-12
    longest = 2 / (1 - decay) - 1
    directions = []
    for t, (g, m, v) in enumerate(
        zip(gradients, averages, squares, strict=True), start=1
    ):
        m_hat = looking_ahead(m, g, b1, t) if nesterov else m / (1 - b1**t)
        length = longest - 2 * t * decay**t / (1 - decay**t)
        if length >= threshold:
            square = (length - 4) * (length - 2) * longest
            square /= (longest - 4) * (longest - 2) * length
            denominator = np.sqrt(v / (1 - b2**t) + eps_root) + eps
            directions.append(math.sqrt(square) * quotient(m_hat, denominator))
        else:
            directions.append(m_hat if unrectified == "momentum" else 0 * m_hat)
    decoupled = weight_decay if decoupled_weight_decay else 0.0
    return descend(directions, params, learning_rates, decoupled)


@decoupled
def adabelief(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    nesterov: bool = False,
    accumulate_eps: bool = True,
) -> Array:
    """Zhuang et al. 2020, algorithm 2, with its two epsilons as separate arguments."""
    m, s = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    directions = []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * np.abs(g - m) ** 2
        if accumulate_eps:
            s = s + eps_root
            s_hat = s / (1 - b2**t)
        else:
            s_hat = (s + eps_root) / (1 - b2**t)
        m_hat = looking_ahead(m, g, b1, t) if nesterov else m / (1 - b1**t)
        directions.append(quotient(m_hat, np.sqrt(s_hat) + eps))
    return descend(directions, params, learning_rates)


def adan(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    proximal: bool = True,
) -> Array:
    """Xie et al. 2022, algorithm 1, in the paper's betas: one minus these."""
    beta1, beta2, beta3 = 1 - b1, 1 - b2, 1 - b3
    m, v, n = (np.zeros_like(gradients[0]) for _ in range(3))
    directions = []
    for k, g in enumerate(gradients):
        change = g - gradients[k - 1] if k > 0 else 0 * g
        m = (1 - beta1) * m + beta1 * g
        v = (1 - beta2) * v + beta2 * change
        n = (1 - beta3) * n + beta3 * np.abs(g + (1 - beta2) * change) ** 2
        seen = [1 - (1 - beta) ** (k + 1) for beta in (beta1, beta2, beta3)]
        denominator = np.sqrt(n.real / seen[2] + eps_root) + eps
        numerator = m / seen[0] + (1 - beta2) * v / seen[1]
        directions.append(quotient(numerator, denominator))
    beside = descend(directions, params, learning_rates, weight_decay)
    # w' = (w - lr d) / (1 + lr l), less w, is the other decay's step over 1 + lr l.
    return beside / (1 + learning_rates[:, None] * weight_decay * proximal)


@decoupled
def adopt(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: float | Callable[[int], float] = lambda t: t**0.25,
) -> Array:
    """Taniguchi et al. 2024, with the clipping of the authors' later code."""
    m, v = np.zeros_like(gradients[0]), np.abs(gradients[0]) ** 2
    directions = [m]
    for t, g in enumerate(gradients[1:], start=1):
        normal = quotient(g, np.maximum(np.sqrt(v), eps))
        if use_clipping:
            bound = clip_value_fn(t) if callable(clip_value_fn) else clip_value_fn
            size = np.abs(normal)
            normal = normal * quotient(np.minimum(size, bound), size)
        m = b1 * m + (1 - b1) * normal
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        directions.append(b1 * m + (1 - b1) * normal if nesterov else m)
    return descend(directions, params, learning_rates)


def ademamix(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float | Callable[[int], float] = 0.9999,
    alpha: float | Callable[[int], float] = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Array:
    """Pagliardini, Ablin and Grangier 2024, algorithm 1."""
    averages, squares = adam_moments(gradients, b1, b2)
    slow = np.zeros_like(gradients[0])
    directions = []
    for t, (g, m, v) in enumerate(
        zip(gradients, averages, squares, strict=True), start=1
    ):
        beta = b3(t - 1) if callable(b3) else b3
        share = alpha(t - 1) if callable(alpha) else alpha
        slow = beta * slow + (1 - beta) * g
        denominator = np.sqrt(v / (1 - b2**t) + eps_root) + eps
        directions.append(quotient(m / (1 - b1**t) + share * slow, denominator))
    return descend(directions, params, learning_rates, weight_decay)


@decoupled
def yogi(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    initial_accumulator_value: float = 1e-6,
    debias: bool = True,
) -> Array:
    """Zaheer et al. 2018, algorithm 2; bias correction: the authors' code."""
    m = np.full_like(gradients[0], initial_accumulator_value)
    v = np.full(gradients[0].shape, initial_accumulator_value)
    directions = []
    for t, g in enumerate(gradients, start=1):
        square = np.abs(g) ** 2
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - square) * square
        m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if debias else (m, v)
        directions.append(quotient(m_hat, np.sqrt(v_hat + eps_root) + eps))
    return descend(directions, params, learning_rates)


def half_life_warmup(first: float, last: float, steps: int, step: int) -> float:
    """Pagliardini, Ablin and Grangier 2024, section 3, as their code computes it."""

    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta)

    share = min(step / steps, 1.0)
    wanted = (1 - share) * half_life(first) + share * half_life(last)
    return 0.5 ** (1 / wanted)


def adam_moments(gradients: Array, b1: float, b2: float) -> tuple[Array, Array]:
    """Return the averages of g and |g|**2 after each step, as their sums."""
    t = np.arange(len(gradients))
    age = np.tril(t[:, None] - t[None, :])
    weights = [(1 - b) * np.tril(b**age) for b in (b1, b2)]
    return weights[0] @ gradients, weights[1] @ np.abs(gradients) ** 2


def looking_ahead(m: Array, g: Array, b1: float, t: int) -> Array:
    """Return Dozat's debiased look-ahead with a constant momentum."""
    return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)


def descend(
    directions: Array | list[Array],
    params: Array,
    learning_rates: Array,
    weight_decay: float = 0.0,
) -> Array:
    """Step against the directions, with decoupled weight decay."""
    return -learning_rates[:, None] * (np.array(directions) + weight_decay * params)


def adamc(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    weight_decay: float = 1e-4,
    max_learning_rate: float | None = None,
    **arguments: float,
) -> Array:
    """Defazio 2025, algorithm 2; otherwise with the largest rate so far."""
    largest = np.maximum.accumulate(learning_rates)
    if max_learning_rate is not None:
        largest = max_learning_rate
    plain = adam(gradients, params, learning_rates, **arguments)
    return plain - (learning_rates**2 / largest)[:, None] * weight_decay * params

"""Rules with iterates and with estimates of distance, in float64 NumPy.

Each takes gradients and parameters of shape (steps, size), all leaves in one row, the
parameters as they were when each gradient was taken, and learning rates of shape
(steps,). It returns the updates, and either the evaluation point after each step or the
estimate used at each step.

``weight_decay`` may be a row, for a mask; ``blocks`` are the leaves' columns.
"""

from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray
Outcome = tuple[Array, Array]


def warmed_up(learning_rates: Array, warmup_steps: int | None) -> Array:
    """Defazio et al. 2024, algorithm 1, line 4: t counts from 1."""
    t = np.arange(1, len(learning_rates) + 1)
    return learning_rates * (
        1 if warmup_steps is None else np.minimum(1, t / warmup_steps)
    )


def schedule_free(
    steps: Array, params: Array, learning_rates: Array, b1: float, power: float
) -> Outcome:
    """Defazio et al. 2024, equations 2 to 4; the steps are subtracted from z."""
    z = x = params[0]
    updates, points, total = [], [], 0.0
    for t, y in enumerate(params):
        weight = np.max(learning_rates[: t + 1]) ** power
        total += weight
        share = weight / total if total > 0 else 0.0
        z = z - steps[t]
        x = (1 - share) * x + share * z
        updates.append((1 - b1) * z + b1 * x - y)
        points.append(x)
    return np.array(updates), np.array(points)


def schedule_free_sgd(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: Any = 0.0,
    weight_lr_power: float = 2.0,
) -> Outcome:
    """Defazio et al. 2024, decay at y."""
    rates = warmed_up(learning_rates, warmup_steps)
    steps = rates[:, None] * (gradients + weight_decay * params)
    return schedule_free(steps, params, rates, b1, weight_lr_power)


def schedule_free_adamw(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: float = 2.0,
) -> Outcome:
    """Defazio et al. 2024, algorithm 1 with the correction inside the root."""
    rates = warmed_up(learning_rates, warmup_steps)
    v, directions = np.zeros(gradients.shape[1]), []
    for t, g in enumerate(gradients, start=1):
        v = b2 * v + (1 - b2) * g * g
        directions.append(quotient(g, np.sqrt(v / (1 - b2**t)) + eps))
    steps = rates[:, None] * (np.array(directions) + weight_decay * params)
    return schedule_free(steps, params, rates, b1, weight_lr_power)


def schedule_free_radam(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: float = 2.0,
    silent_sgd_phase: bool = True,
) -> Outcome:
    """Defazio et al. 2024, RAdamScheduleFree of their code."""
    v, longest = np.zeros(gradients.shape[1]), 2 / (1 - Fraction(b2)) - 1
    rates, directions = [], []
    for t, g in enumerate(gradients, start=1):
        v = b2 * v + (1 - b2) * g * g
        power = Fraction(b2) ** t
        rho = longest - 2 * t * power / (1 - power)
        rect, direction = float(not silent_sgd_phase), g
        if rho > 4:
            top = (rho - 4) * (rho - 2) * longest
            rect = float(top / ((longest - 4) * (longest - 2) * rho)) ** 0.5
            direction = quotient(g, np.sqrt(v / (1 - b2**t)) + eps)
        rates.append(learning_rates[t - 1] * rect)
        directions.append(direction)
    steps = np.array(rates)[:, None] * (np.array(directions) + weight_decay * params)
    return schedule_free(steps, params, np.array(rates), b1, weight_lr_power)


def adam_factor(betas: tuple[float, float], t: int, is_on: bool) -> float:
    """sqrt(1 - b2**t) / (1 - b1**t), with t from 1."""
    return (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t) if is_on else 1.0


def prodigy(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    use_bias_correction: bool = True,
    growth_rate: float = np.inf,
) -> Outcome:
    """Mishchenko and Defazio 2024, the Adam version, and the options of their code."""
    b3 = betas[1] ** 0.5 if beta3 is None else beta3
    m = v = s = np.zeros(gradients.shape[1])
    r, d, d_max = 0.0, estim_lr0, estim_lr0
    updates, estimates = [], []
    for t, (g, w) in enumerate(zip(gradients, params, strict=True), start=1):
        estimates.append(d)
        rate = d * learning_rates[t - 1] * adam_factor(betas, t, use_bias_correction)
        m = betas[0] * m + (1 - betas[0]) * d * g
        v = betas[1] * v + (1 - betas[1]) * d * d * g * g
        r = b3 * r + d * rate * np.dot(g, params[0] - w)
        s = b3 * s + d * (d if safeguard_warmup else rate) * g
        total = np.sum(np.abs(s))
        d_hat = estim_lr_coef * r / total if total > 0 else 0.0
        if d == estim_lr0:
            d = max(d, d_hat)
        d_max = max(d_max, d_hat)
        d = min(d_max, d * growth_rate)
        step = quotient(m, np.sqrt(v) + d * eps)
        updates.append(-rate * (step + weight_decay * w))
    return np.array(updates), np.array(estimates)


def dadapt_adamw(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    weight_decay: Any = 0.0,
    use_bias_correction: bool = True,
    growth_rate: float = np.inf,
) -> Outcome:
    """Defazio and Mishchenko 2023, Adam with D-Adaptation."""
    root = betas[1] ** 0.5
    m = v = s = np.zeros(gradients.shape[1])
    r, d = 0.0, estim_lr0
    updates, estimates = [], []
    for t, (g, w) in enumerate(zip(gradients, params, strict=True), start=1):
        estimates.append(d)
        rate = d * learning_rates[t - 1] * adam_factor(betas, t, use_bias_correction)
        product = np.dot(g, quotient(s, np.sqrt(v) + eps))
        m = betas[0] * m + (1 - betas[0]) * rate * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        s = root * s + (1 - root) * rate * g
        r = root * r + (1 - root) * rate * product
        total = (1 - root) * np.sum(np.abs(s))
        d_hat = r / total if total > 0 else 0.0
        d = max(d, min(d_hat, d * growth_rate))
        step = quotient(m, np.sqrt(v) + eps)
        updates.append(-step - rate * weight_decay * w)
    return np.array(updates), np.array(estimates)


def dadapt_sgd(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    momentum: float = 0.0,
    estim_lr0: float = 1e-6,
    weight_decay: Any = 0.0,
    growth_rate: float = np.inf,
) -> Outcome:
    """Defazio and Mishchenko 2023, SGD with D-Adaptation.

    The bound is written with squares, as the paper's first form has it.
    """
    s, squares, d = np.zeros(gradients.shape[1]), 0.0, estim_lr0
    first, updates, estimates = 0.0, [], []
    for t, w in enumerate(params):
        g = gradients[t] + weight_decay * w
        estimates.append(d)
        first = first or np.linalg.norm(g)
        rate = d * learning_rates[t] / first if first > 0 else 0.0
        s = s + rate * g
        squares += rate**2 * np.dot(g, g)
        size = np.linalg.norm(s)
        d_hat = (size**2 - squares) / size if size > 0 else 0.0
        d = max(d, min(d_hat, d * growth_rate))
        z = params[0] - s
        updates.append((1 - momentum) * (z - w))
    return np.array(updates), np.array(estimates)


def dog(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: float = 1e-8,
    weight_decay: Any = 0.0,
    averaging: float | None = None,
    blocks: tuple[slice, ...] = (slice(None),),
) -> Outcome:
    """Ivgi, Hinder and Carmon 2023; the average is Shamir and Zhang's 2013."""
    gradients = gradients + weight_decay * params
    updates = np.concatenate(
        [
            _dog(gradients[:, b], params[:, b], learning_rates, init_step, eps)
            for b in blocks
        ],
        axis=1,
    )
    if averaging is None:
        return updates, params + updates
    average, averages = params[0], []
    for t, w in enumerate(params + updates, start=1):
        share = (averaging + 1) / (averaging + t)
        average = (1 - share) * average + share * w
        averages.append(average)
    return updates, np.array(averages)


def _dog(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    init_step: tuple[str, float],
    eps: float,
) -> Array:
    kind, value = init_step
    begin = {
        "heuristic": value * (1 + np.linalg.norm(params[0])),
        "distance": value,
        "learning_rate": 0.0,
    }[kind]
    distances = np.linalg.norm(params - params[0], axis=1)
    farthest = np.maximum(begin, np.maximum.accumulate(distances))
    squares = np.cumsum(np.sum(gradients**2, axis=1))
    sizes = quotient(farthest, np.sqrt(squares + eps))
    if kind == "learning_rate":
        sizes[0] = value
    return -(learning_rates * sizes)[:, None] * gradients


def quotient(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 for 0 / 0."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, 0.0, numerator / safe)

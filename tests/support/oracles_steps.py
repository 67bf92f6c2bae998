"""Rules that use the loss, in float64 NumPy and plain Python."""

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


def inverse_hessian(pairs: Sequence[tuple[Array, Array]], first: float, n: int):
    """Nocedal and Wright 2006, equation 7.16: the matrix itself, oldest pair first."""
    P = first * np.eye(n)
    for s, y in pairs:
        rho = 1 / (s @ y)
        V = np.eye(n) - rho * np.outer(y, s)
        P = V.T @ P @ V + rho * np.outer(s, s)
    return P


def lbfgs(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    memory_size: int = 10,
    scale_init_precond: bool = True,
) -> Array:
    """Liu and Nocedal 1989; pairs without positive curvature are left out."""
    pairs: list[tuple[Array, Array]] = []
    updates = []
    for t, (g, lr) in enumerate(zip(gradients, learning_rates, strict=True)):
        if t > 0:
            s, y = params[t] - params[t - 1], g - gradients[t - 1]
            if s @ y > 2.3e-16 * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory_size:]
        first = min(1.0, 1 / np.linalg.norm(g))
        if pairs:
            s, y = pairs[-1]
            first = (s @ y) / (y @ y)
        first = first if scale_init_precond else 1.0
        updates.append(-lr * inverse_hessian(pairs, first, len(g)) @ g)
    return np.array(updates)


def sam_point(w: Array, g: Array, rho: float, adaptive: bool) -> Array:
    """Foret et al. 2021, equation 2; Kwon et al. 2021, equation 7 without eta."""
    T = np.diag(np.abs(w)) if adaptive else np.eye(len(w))
    return w + rho * T @ T @ g / np.linalg.norm(T @ g)


def polyak_length(
    loss: float,
    g: Array,
    f_min: float = 0.0,
    max_learning_rate: float = 1.0,
    eps: float = 0.0,
    variant: str = "sps",
) -> float:
    """Loizou et al. 2021, equation 3."""
    gap = loss - f_min if variant == "sps" else max(loss - f_min, 0.0)
    return min(float(gap / (g @ g + eps)), max_learning_rate)


def armijo_length(
    phi: Callable[[float], float],
    slope: float,
    first: float,
    c1: float,
    factor: float,
    max_evaluations: int,
) -> float:
    """Nocedal and Wright 2006, algorithm 3.1; 0 if no trial is accepted."""
    start, a = phi(0.0), first
    for _ in range(max_evaluations):
        if np.isfinite(phi(a)) and phi(a) <= start + c1 * a * slope:
            return a
        a *= factor
    return 0.0


def plateau_scales(
    values: Sequence[float],
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> list[float]:
    """PyTorch's ReduceLROnPlateau, its patience plus one, and a margin rtol |best|."""
    scale, best, bad, cooling, seen, scales = 1.0, np.inf, 0, 0, [], []
    for value in values:
        seen.append(value)
        if len(seen) == accumulation_size:
            mean, seen = sum(seen) / len(seen), []
            margin = 0.0 if best == np.inf else rtol * abs(best) + atol
            bad += 1
            if mean < best - margin:
                best, bad = mean, 0
            if cooling > 0:
                cooling, bad = cooling - 1, 0
            if bad >= patience:
                scale, bad, cooling = max(scale * factor, min_scale), 0, cooldown
        scales.append(scale)
    return scales


def sophia(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    estimates: dict[int, Array],
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    gamma: float = 0.01,
    clip_threshold: float = 1.0,
) -> Array:
    """Liu et al. 2023, algorithm 3; an estimate precedes the step that uses it."""
    m = h = np.zeros_like(params[0])
    updates = []
    for t, (g, w) in enumerate(zip(gradients, params, strict=True)):
        m = b1 * m + (1 - b1) * g
        if t in estimates:
            h = b2 * h + (1 - b2) * estimates[t]
        u = np.clip(m / np.maximum(gamma * h, eps), -clip_threshold, clip_threshold)
        updates.append(-learning_rates[t] * (u + weight_decay * w))
    return np.array(updates)


def levenberg_marquardt(
    residuals: Callable[[Array], Array],
    jacobian: Callable[[Array], Array],
    w: Array,
    tau: float,
    steps: int,
) -> tuple[list[Array], list[float], list[bool]]:
    """Madsen, Nielsen and Tingleff 2004, algorithm 3.16, by the normal equations.

    The first damping is tau |J g|**2 / |g|**2. Returns points, dampings, acceptances.
    """
    J = jacobian(w)
    g = J.T @ residuals(w)
    mu, nu = tau * (J @ g) @ (J @ g) / (g @ g), 2.0
    points, dampings, accepted = [], [], []
    for _ in range(steps):
        r, J = residuals(w), jacobian(w)
        h = -np.linalg.solve(J.T @ J + mu * np.eye(len(w)), J.T @ r)
        won = 0.5 * (r @ r - residuals(w + h) @ residuals(w + h))
        ratio = won / (0.5 * h @ (mu * h - J.T @ r))
        dampings.append(mu)
        accepted.append(bool(ratio > 0))
        if ratio > 0:
            w, mu, nu = w + h, mu * max(1 / 3, 1 - (2 * ratio - 1) ** 3), 2.0
        else:
            mu, nu = mu * nu, 2 * nu
        points.append(w)
    return points, dampings, accepted


def clipped_mean(gradients: Sequence[Array], bound: float) -> tuple[Array, float]:
    """Abadi et al. 2016, algorithm 1, without noise; and the share that is clipped."""
    total, clipped = np.zeros_like(gradients[0]), 0
    for g in gradients:
        total = total + g / max(1.0, np.linalg.norm(g) / bound)
        clipped += np.linalg.norm(g) > bound
    return total / len(gradients), clipped / len(gradients)

"""Muon, Shampoo, SOAP and Kron in float64 NumPy, written from their papers.

Each oracle takes one leaf: gradients and parameters of shape (steps, *shape), the
parameters as they were when each gradient was taken, and learning rates of shape
(steps,). It returns the updates, shape (steps, *shape), that are to be added.
"""

import math

import jax
import numpy as np
import oracles

Array = np.ndarray


def muon(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    ns_coeffs: tuple = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    debias: bool = True,
    adaptive: bool = False,
    consistent_rms: float | None = None,
    is_matrix: bool = True,
    adam_learning_rate: float | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: float = 0.0,
    cautious_weight_decay: bool = False,
) -> Array:
    """Jordan et al. 2024; the scale of Liu et al. 2025, equation 4."""
    if not is_matrix:
        if adam_learning_rate is not None:
            learning_rates = adam_learning_rate * np.ones_like(learning_rates)
        flat = [x.reshape(len(x), -1) for x in (gradients, params)]
        adam = (adam_b1, adam_b2, eps, adam_eps_root, adam_weight_decay, nesterov)
        return oracles.adamw(*flat, learning_rates, *adam).reshape(params.shape)
    shape = params.shape[1:]
    rows, columns = math.prod(shape[:-1]), shape[-1]
    scale = math.sqrt(max(1, columns / rows))
    if consistent_rms is not None:
        scale = consistent_rms * math.sqrt(max(rows, columns))
    buffer, updates = np.zeros((rows, columns)), []
    for t, (g, w) in enumerate(zip(gradients, params, strict=True), start=1):
        g = g.reshape(rows, columns)
        buffer = beta * buffer + (1 - beta) * g
        seen, seen_next = (1 - beta**t, 1 - beta ** (t + 1)) if debias else (1, 1)
        m = buffer / seen
        if nesterov:
            m = beta * buffer / seen_next + (1 - beta) * g / seen
        direction = newton_schulz(m, ns_coeffs, ns_steps, eps)
        if adaptive:
            direction = np.sum(m * direction) * direction
        direction = (scale * direction).reshape(shape)
        decayed = direction * w >= 0 if cautious_weight_decay else 1
        direction = direction + weight_decay * decayed * w
        updates.append(-learning_rates[t - 1] * direction)
    return np.array(updates)


def newton_schulz(x: Array, coefficients: tuple, steps: int, eps: float) -> Array:
    """Map the singular values: each step is an odd polynomial of them."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2)) + eps)
    table = coefficients if np.ndim(coefficients) == 2 else [coefficients] * steps
    for a, b, c in table[len(table) - steps :]:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def shampoo(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b2: float = 1.0,
    eps: float = 1e-12,
    weight_decay: float = 0.0,
    update_every: int = 1,
    max_size: int = 1024,
    momentum: float | None = None,
    nesterov: bool = False,
    full_vectors: bool = False,
    exponent: float | None = None,
    bias_correction: bool = True,
    graft: str | None = None,
) -> Array:
    """Gupta, Koren and Singer 2018, algorithm 2; averages and grafts: Anil 2020."""
    shape = params.shape[1:] or (1,)
    order = len(shape)
    power = 1 / (2 * order) if exponent is None else exponent
    statistics = [np.zeros((n, n)) for n in shape]
    roots = list(statistics)
    nu, directions = np.zeros(shape), []
    for t, g in enumerate(gradients.reshape(-1, *shape)):
        seen = 1.0 if b2 == 1 or not bias_correction else 1 - b2 ** (t + 1)
        weight = 1.0 if b2 == 1 else 1 - b2
        nu = b2 * nu + weight * g**2
        for i, n in enumerate(shape):
            rest = [j for j in range(order) if j != i]
            outer = np.tensordot(g, g, axes=(rest, rest))
            if n > max_size or (order == 1 and not full_vectors):
                outer = np.diag(np.diag(outer))
            statistics[i] = b2 * statistics[i] + weight * outer
            if t % update_every == 0:
                ridged = statistics[i] / seen + eps * np.eye(n)
                roots[i] = inverse_power(ridged, power)
        u = g
        for i, root in enumerate(roots):
            u = np.moveaxis(np.tensordot(root, u, axes=(1, i)), 0, i)
        if graft is not None:
            target = g if graft == "sgd" else g / np.sqrt(nu / seen + eps)
            u = u * np.linalg.norm(target) / np.linalg.norm(u)
        directions.append(u.reshape(params.shape[1:]))
    directions = np.array(directions)
    if momentum is not None:
        directions = np.array(list(oracles.heavy_ball(directions, momentum, nesterov)))
    lr = learning_rates.reshape(-1, *[1] * (params.ndim - 1))
    return -lr * (directions + weight_decay * params)


def inverse_power(matrix: Array, power: float) -> Array:
    """Take the power of the singular values, none below the level of rounding."""
    u, s, _ = np.linalg.svd(matrix, hermitian=True)
    s = np.maximum(s, len(s) * np.finfo(float).eps * np.max(s))
    return (u * s**-power) @ u.T


def soap(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    precondition_1d: bool = False,
    skip_first: bool = True,
) -> Array:
    """Vyas et al. 2024, algorithms 3 and 4; the first step as in their code."""
    shape = params.shape[1:]
    beta = b2 if shampoo_beta is None else shampoo_beta
    is_turned = len(shape) > 1 or precondition_1d
    axes = [i for i, n in enumerate(shape) if is_turned and n <= max_precond_dim]
    statistics = {i: np.zeros((shape[i],) * 2) for i in axes}
    bases: dict[int, Array] = {}
    m, v, count, directions = np.zeros(shape), np.zeros(shape), 0, []
    for g in gradients:
        if not directions:
            statistics = {i: (1 - beta) * outer_of(g, i) for i in axes}
            bases = {i: np.linalg.eigh(statistics[i])[1] for i in axes}
        if not directions and skip_first:
            directions.append(np.zeros(shape))
            continue
        count += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * turn(g, bases) ** 2
        m_hat, v_hat = turn(m, bases) / (1 - b1**count), v / (1 - b2**count)
        directions.append(turn(m_hat / (np.sqrt(v_hat) + eps), bases, back=True))
        if len(directions) == 1:
            continue  # the first gradient is in the statistics already
        for i in axes:
            statistics[i] = beta * statistics[i] + (1 - beta) * outer_of(g, i)
            if count % precondition_frequency == 0:
                product = statistics[i] @ bases[i]
                order = np.argsort(-np.diag(bases[i].T @ product))
                bases[i] = np.linalg.qr(product[:, order])[0]
                v = np.take(v, order, axis=i)
    lr = learning_rates.reshape(-1, *[1] * (params.ndim - 1))
    return -lr * (np.array(directions) + weight_decay * params)


def outer_of(g: Array, axis: int) -> Array:
    """G G' of the unfolding along an axis."""
    rest = [j for j in range(g.ndim) if j != axis]
    return np.tensordot(g, g, axes=(rest, rest))


def turn(x: Array, bases: dict[int, Array], back: bool = False) -> Array:
    """Multiply by Q' along each axis that has a basis, or by Q.

    A gradient is diagonal in its own singular vectors: entries beside the diagonal are
    rounding, and are removed.
    """
    for i, q in bases.items():
        x = np.moveaxis(np.tensordot(q if back else q.T, x, axes=(1, i)), 0, i)
    return np.where(np.abs(x) < 1e-14 * np.max(np.abs(x)), 0, x) if bases else x


def kron(
    gradients: Array,
    params: Array,
    learning_rates: Array,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    preconditioner_update_probability: float | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    precond_lr: float = 0.1,
    precond_init_scale: float = 1.0,
    key: int = 0,
) -> Array:
    """The code of kron_torch, for at most 100 steps, from the same noise."""
    shape = gradients.shape[1:]
    diagonal = [
        memory_save_mode == "all_diag"
        or len(shape) < min_ndim_triangular
        or n > max_size_triangular
        or (memory_save_mode == "one_diag" and i == int(np.argmax(shape)))
        for i, n in enumerate(shape)
    ]
    factors = [precond_init_scale ** (1 / len(shape)) * np.eye(n) for n in shape]
    m, waited, updates = np.zeros(shape), 0, []
    for t, (rate, g, w) in enumerate(
        zip(learning_rates, gradients, params, strict=True)
    ):
        m = b1 * m + (1 - b1) * g
        m_hat = m / (1 - b1 ** (t + 1))
        waited += 1
        if waited * (preconditioner_update_probability or 1.0) >= 1:
            waited = 0
            k = jax.random.fold_in(jax.random.key(key), t)
            v = np.asarray(jax.random.normal(k, shape, "float32"), np.float64)
            x = m_hat if momentum_into_precond_update else g
            factors = whitened(x, v, factors, diagonal, precond_lr)
        u = m_hat
        for axis, q in enumerate(factors):
            u = mode_product(q.T @ q, u, axis)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / 1.1)
        updates.append(-rate * (u + weight_decay * w))
    return np.array(updates)


def whitened(
    g: Array, noise: Array, factors: list, diagonal: list, rate: float
) -> list:
    """Return the factors after one step of the whitening criterion."""
    a = g + np.sqrt(np.finfo(np.float32).eps) * np.mean(np.abs(g)) * noise
    b = noise
    for axis, q in enumerate(factors):
        a = mode_product(q, a, axis)
        b = mode_product(np.linalg.inv(q).T, b, axis)
    renewed = []
    for axis, (q, is_diagonal) in enumerate(zip(factors, diagonal, strict=True)):
        rows = [np.moveaxis(x, axis, 0).reshape(len(q), -1) for x in (a, b)]
        first, second = (x @ x.T for x in rows)
        if is_diagonal:
            first, second = (np.diag(np.diag(x)) for x in (first, second))
        total = first + second
        longest = total[:, np.argmax(np.sum(total**2, axis=0))] @ total
        length = np.linalg.norm(longest / np.linalg.norm(longest) @ total)
        if is_diagonal:
            length = np.max(total)
        renewed.append(q - rate * np.triu(first - second) / length @ q)
    return renewed


def mode_product(matrix: Array, x: Array, axis: int) -> Array:
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)

"""Projections of vectors in float64, thresholds by bisection from KKT conditions."""

import numpy as np


def _threshold(sizes, total):
    """Return the t at which max(sizes - t, 0) sums to the total."""
    low, high = np.min(sizes) - total, np.max(sizes)
    for _ in range(200):
        middle = (low + high) / 2
        too_much = np.sum(np.maximum(sizes - middle, 0)) > total
        low, high = (middle, high) if too_much else (low, middle)
    return (low + high) / 2


def non_negative(x):
    return np.where(x < 0, 0, x)


def box(x, lower, upper):
    return np.minimum(np.maximum(x, lower), upper)


def linf_ball(x, radius):
    size = np.abs(x)
    return np.where(size > radius, x / np.where(size == 0, 1, size) * radius, x)


def simplex(x, scale):
    return np.maximum(x - _threshold(x, scale), 0)


def l1_ball(x, radius):
    """Each entry's modulus falls by the multiplier of the constraint, down to 0."""
    size = np.abs(x)
    if np.sum(size) <= radius:
        return x
    return x / np.where(size == 0, 1, size) * simplex(size, radius)


def l2_ball(x, radius):
    norm = np.sqrt(np.sum(np.abs(x) ** 2))
    return x if norm <= radius else x * radius / norm


def l2_sphere(x, radius):
    return x * radius / np.sqrt(np.sum(np.abs(x) ** 2))


def along(project, x, axis):
    """Apply a projection of vectors to every slice of x along axes."""
    axes = tuple(range(x.ndim)) if axis is None else np.atleast_1d(axis) % x.ndim
    rest = [a for a in range(x.ndim) if a not in axes]
    order = [*rest, *axes]
    turned = np.transpose(x, order)
    rows = turned.reshape(*(x.shape[a] for a in rest), -1)
    done = np.apply_along_axis(project, -1, rows).reshape(turned.shape)
    return np.transpose(done, np.argsort(order))

"""Losses of one number beside their values and slopes in float64."""

import functools

import jax.numpy as jnp
import numpy as np
from scipy import special

from fngrad import losses

L = losses
INTEGER = L.softmax_cross_entropy_with_integer_labels


def softplus(x):
    return np.logaddexp(0, x)


def huber(d):
    def value(x):
        r = np.abs(x)
        with np.errstate(invalid="ignore"):
            return np.where(r <= d, r**2 / 2, d * (r - d / 2))

    return value, lambda x: np.clip(x, -d, d)


def log_cosh(x):
    r = np.abs(x)
    small = np.log1p(2 * np.sinh(np.minimum(r, 1) / 2) ** 2)
    return np.where(r < 1, small, r + np.log1p(np.exp(-2 * r)) - np.log(2))


def focal(gamma, a, y):
    """Return the value and slope for label 1, mirrored for label 0."""
    sign, a = (1, a) if y else (-1, 1 - a)

    def value(x):
        x = sign * x
        return a * np.exp(-gamma * softplus(x)) * softplus(-x)

    def slope(x):
        x = sign * x
        inner = gamma * special.expit(x) * softplus(-x) + special.expit(-x)
        return -sign * a * np.exp(-gamma * softplus(x)) * inner

    return value, slope


def binary(y):
    slopes = {
        0: special.expit,
        0.5: lambda x: np.tanh(x / 2) / 2,
        1: lambda x: -special.expit(-x),
    }
    return lambda x: y * softplus(-x) + (1 - y) * softplus(x), slopes[y]


def pinball(q):
    q = float(np.float32(q))
    return (
        lambda x: np.where(x > 0, (1 - q) * x, -q * x),
        lambda x: np.where(x > 0, 1 - q, -q),
    )


def poisson(y):
    return lambda x: np.exp(x) - y * x, lambda x: np.exp(x) - y


def with_target(loss, y, **keywords):
    return functools.partial(lambda x, y: loss(x, y, **keywords), y=np.float32(y))


def two_classes(loss, y):
    def call(x):
        return loss(jnp.stack([x, jnp.zeros_like(x)]), y)

    sign = -1 if np.ndim(y) == 0 else 1 - 2 * y[0]
    return call, (
        lambda x: softplus(sign * x),
        lambda x: sign * special.expit(sign * x),
    )


def plain(loss, **keywords):
    return functools.partial(loss, **keywords)


# name: (loss of one number, its value and its slope in float64)
CASES = {
    "squared_error": (L.squared_error, (lambda x: x**2, lambda x: 2 * x)),
    "absolute_error": (L.absolute_error, (np.abs, np.sign)),
    "log_cosh": (L.log_cosh, (log_cosh, np.tanh)),
    "poisson_nll 0": (with_target(L.poisson_nll, 0), poisson(0)),
    "poisson_nll 3": (with_target(L.poisson_nll, 3), poisson(3)),
    "hinge": (
        with_target(L.hinge, 1),
        (lambda x: np.maximum(1 - x, 0), lambda x: -1.0 * (x < 1) - 0.5 * (x == 1)),
    ),
    "integer labels": two_classes(INTEGER, 0),
    "dense labels": two_classes(L.softmax_cross_entropy, np.float32([1, 0])),
    "dense other labels": two_classes(L.softmax_cross_entropy, np.float32([0, 1])),
}
CASES |= {
    f"huber {d:g}": (plain(L.huber, delta=d), huber(float(np.float32(d))))
    for d in (1e-20, 1e-4, 1.0, 1e4, 1e19, 2.2e19, 1e30, np.inf)
}
CASES |= {
    f"quantile {q:g}": (with_target(L.quantile, 0, level=q), pinball(q))
    for q in (0.0, 1e-10, 0.2, 1.0)
}
CASES |= {
    f"binary {y:g}": (with_target(L.sigmoid_binary_cross_entropy, y), binary(y))
    for y in (0, 0.5, 1)
}
CASES |= {
    f"focal {gamma:g} {a:g} {y}": (
        with_target(L.focal, y, gamma=gamma, alpha=a),
        focal(gamma, a, y),
    )
    for gamma in (0.0, 0.5, 2.0, 1e6)
    for a in (0.25, 1.0)
    for y in (0, 1)
}


def smooth_l1(b):
    value, slope = huber(b)
    return lambda x: value(x) / b, lambda x: slope(x) / b


def pseudo_huber(d):
    def value(x):
        root = np.hypot(1, x / d)
        return x * (x / (1 + root))

    return value, lambda x: x / np.hypot(1, x / d)


def normal(s):
    """Return the likelihood's halved square, and its slope, at a logarithm."""
    s = float(np.float32(s))
    return lambda x: 0.5 * (s + x**2 * np.exp(-s)), lambda x: x * np.exp(-s)


def poly(epsilon):
    def value(x):
        return softplus(-x) + epsilon * special.expit(-x)

    return value, lambda x: -special.expit(-x) * (1 + epsilon * special.expit(x))


def sparsemax(x):
    return np.where(x <= -1, -x, np.maximum(1 - x, 0) ** 2 / 4)


def tversky(miss, gamma):
    """Return a power of the loss of one pixel that is there, and its slope.

    Its probability is 1 - q; the loss is (1 - miss) q / (1 + s - miss q).
    """

    def base(x):
        return (1 - miss) * special.expit(-x) / (1 - miss * special.expit(-x))

    def slope(x):
        p, q = special.expit(x), special.expit(-x)
        powered = np.power(base(x), gamma, where=q > 0, out=np.zeros_like(x))
        return -gamma * powered * p / (1 - miss * q)

    return lambda x: base(x) ** gamma, slope


def pixel(loss, **keywords):
    return lambda x: loss(x[None], jnp.ones(1), smooth=0.0, **keywords)


CASES |= {
    f"smooth_l1 {b:g}": (
        with_target(L.smooth_l1, 0, beta=b),
        smooth_l1(float(np.float32(b))),
    )
    for b in (1e-20, 1.0, 1e4)
}
CASES |= {
    f"pseudo_huber {d:g}": (
        with_target(L.pseudo_huber, 0, delta=d),
        pseudo_huber(float(np.float32(d))),
    )
    for d in (1e-20, 1.0, 1e4, 1e30)
}
CASES |= {
    f"gaussian_nll {s:g}": (
        lambda x, s=s: L.gaussian_nll(x, jnp.zeros(()), jnp.float32(s)),
        normal(s),
    )
    for s in (0.0, 1.5, 60.0)
}
CASES |= {
    "poly_cross_entropy": (
        two_classes(L.poly_cross_entropy, np.float32([1, 0]))[0],
        poly(2.0),
    ),
    "ranking_softmax": two_classes(L.ranking_softmax, np.float32([1, 0])),
    "sparsemax": (
        two_classes(L.sparsemax, np.float32([1, 0]))[0],
        (sparsemax, lambda x: np.clip((x - 1) / 2, -1, 0)),
    ),
    "dice": (pixel(L.dice), tversky(0.5, 1.0)),
    "focal_tversky": (
        pixel(L.focal_tversky, alpha=0.75, gamma=0.5),
        tversky(0.25, 0.5),
    ),
}

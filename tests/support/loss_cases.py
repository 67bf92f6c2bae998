"""Losses beside their values by definition, in float64."""

import numpy as np
from scipy import special

from fngrad import losses

RNG = np.random.default_rng(0)
SHAPE = (3, 4)
REAL = RNG.normal(size=SHAPE) * 2
OTHER = RNG.normal(size=SHAPE) * 2
UNIT = RNG.uniform(0.1, 0.9, size=SHAPE)
SIMPLEX = UNIT / UNIT.sum(-1, keepdims=True)
SIGNS = np.where(OTHER > 0, 1.0, -1.0)
COUNTS = RNG.poisson(2.0, size=SHAPE)
LABELS = np.array([1, 0, 2])
ONE_HOT = np.eye(4)[LABELS]


def log_softmax(x):
    return x - special.logsumexp(x, axis=-1, keepdims=True)


def sigmoid_focal(x, y, alpha, gamma):
    p = special.expit(x)
    p_t = p * y + (1 - p) * (1 - y)
    bce = -y * np.log(p) - (1 - y) * np.log1p(-p)
    weight = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return weight * (1 - p_t) ** gamma * bce


def huber(x, y, d):
    r = np.abs(x - y)
    return np.where(r <= d, r**2 / 2, d * (r - d / 2))


def smooth(y, a):
    return (1 - a) * y + a / y.shape[-1]


def cosine(x, y, epsilon):
    norms = [np.sqrt(np.maximum((v**2).sum(-1), epsilon)) for v in (x, y)]
    return 1 - (x * y).sum(-1) / (norms[0] * norms[1])


def crammer_singer(x, y):
    return (x + 1 - y).max(-1) - (x * y).sum(-1)


L = losses
INTEGER = L.softmax_cross_entropy_with_integer_labels

# name: (loss, predictions, targets, keywords, the losses by definition)


def pseudo_huber(r, d):
    return d**2 * (np.sqrt(1 + (r / d) ** 2) - 1)


def normal(x, y, s):
    return 0.5 * (s + (x - y) ** 2 / np.exp(s))


def with_spread(x, y, **keywords):
    """Give each entry a variance that its target tells, so that masks hold for both."""
    return L.gaussian_nll(x, y, 0.5 * y, **keywords)


def with_negatives(x, y, **keywords):
    return L.triplet(x, y, -0.5 * y, **keywords)


def triplet(a, p, n, margin):
    near, far = (np.sqrt(((a - b) ** 2).sum(-1)) for b in (p, n))
    return np.maximum(near - far + margin, 0)


def tversky(x, y, of_fn, of_fp, smooth):
    p = special.expit(x)
    tp, fn, fp = ((a * b).sum(-1) for a, b in ((p, y), (1 - p, y), (p, 1 - y)))
    return 1 - (tp + smooth) / (tp + of_fn * fn + of_fp * fp + smooth)


def sparsemax(x, y):
    """Return the largest of <p, x - y> - |p|**2 / 2 over the simplex, and |y|**2 / 2.

    The maximum is at one of the points that are 0 outside of a set of classes.
    """
    losses = []
    for x_i, y_i in zip(x, y, strict=True):
        values = []
        for bits in range(1, 2 ** len(x_i)):
            chosen = (bits >> np.arange(len(x_i))) % 2 == 1
            tau = (x_i[chosen].sum() - 1) / chosen.sum()
            p = np.where(chosen, x_i - tau, 0)
            values += [p @ x_i - p @ p / 2] if np.all(p >= 0) else []
        losses.append(max(values) - x_i @ y_i + y_i @ y_i / 2)
    return np.array(losses)


ENTRYWISE = {
    "squared_error": (L.squared_error, REAL, OTHER, {}, (REAL - OTHER) ** 2),
    "absolute_error": (L.absolute_error, REAL, OTHER, {}, abs(REAL - OTHER)),
    "huber": (L.huber, REAL, OTHER, {}, huber(REAL, OTHER, 1.0)),
    "huber delta": (L.huber, REAL, OTHER, {"delta": 2.5}, huber(REAL, OTHER, 2.5)),
    "log_cosh": (L.log_cosh, REAL, OTHER, {}, np.log(np.cosh(REAL - OTHER))),
    "quantile": (
        L.quantile,
        REAL,
        OTHER,
        {"level": 0.2},
        np.where(OTHER > REAL, 0.2, 0.8) * abs(REAL - OTHER),
    ),
    "poisson_nll": (L.poisson_nll, REAL, COUNTS, {}, np.exp(REAL) - COUNTS * REAL),
    "poisson_nll full": (
        L.poisson_nll,
        REAL,
        COUNTS,
        {"full": True},
        np.exp(REAL) - COUNTS * REAL + np.log(special.factorial(COUNTS)),
    ),
    "sigmoid_binary_cross_entropy": (
        L.sigmoid_binary_cross_entropy,
        REAL,
        UNIT,
        {},
        sigmoid_focal(REAL, UNIT, None, 0),
    ),
    "sigmoid_binary_cross_entropy smooth": (
        L.sigmoid_binary_cross_entropy,
        REAL,
        UNIT > 0.5,
        {"label_smoothing": 0.2},
        sigmoid_focal(REAL, 0.8 * (UNIT > 0.5) + 0.1, None, 0),
    ),
    "focal": (L.focal, REAL, UNIT, {}, sigmoid_focal(REAL, UNIT, None, 2.0)),
    "focal gamma alpha smooth": (
        L.focal,
        REAL,
        UNIT,
        {"alpha": 0.3, "gamma": 0.5, "label_smoothing": 0.2},
        sigmoid_focal(REAL, 0.8 * UNIT + 0.1, 0.3, 0.5),
    ),
    "smooth_l1": (
        L.smooth_l1,
        REAL,
        OTHER,
        {"beta": 2.5},
        huber(REAL, OTHER, 2.5) / 2.5,
    ),
    "pseudo_huber": (
        L.pseudo_huber,
        REAL,
        OTHER,
        {"delta": 2.5},
        pseudo_huber(REAL - OTHER, 2.5),
    ),
    "gaussian_nll": (with_spread, REAL, OTHER, {}, normal(REAL, OTHER, 0.5 * OTHER)),
    "gaussian_nll full": (
        with_spread,
        REAL,
        OTHER,
        {"full": True},
        normal(REAL, OTHER, 0.5 * OTHER) + 0.5 * np.log(2 * np.pi),
    ),
    "hinge": (L.hinge, REAL, SIGNS, {}, np.maximum(0, 1 - REAL * SIGNS)),
}
CLASSWISE = {
    "softmax_cross_entropy": (
        L.softmax_cross_entropy,
        REAL,
        SIMPLEX,
        {},
        -(SIMPLEX * log_softmax(REAL)).sum(-1),
    ),
    "softmax_cross_entropy smooth": (
        L.softmax_cross_entropy,
        REAL,
        SIMPLEX,
        {"label_smoothing": 0.2},
        -(smooth(SIMPLEX, 0.2) * log_softmax(REAL)).sum(-1),
    ),
    "kl_divergence": (
        L.kl_divergence,
        log_softmax(REAL),
        SIMPLEX,
        {},
        (SIMPLEX * (np.log(SIMPLEX) - log_softmax(REAL))).sum(-1),
    ),
    "kl_divergence_with_log_targets": (
        L.kl_divergence_with_log_targets,
        log_softmax(REAL),
        np.log(SIMPLEX),
        {},
        (SIMPLEX * (np.log(SIMPLEX) - log_softmax(REAL))).sum(-1),
    ),
    "poly_cross_entropy": (
        L.poly_cross_entropy,
        REAL,
        SIMPLEX,
        {"epsilon": 1.5},
        (SIMPLEX * (1.5 - 1.5 * special.softmax(REAL, -1) - log_softmax(REAL))).sum(-1),
    ),
    "ranking_softmax": (
        L.ranking_softmax,
        REAL,
        3 * UNIT,
        {},
        -(3 * UNIT * log_softmax(REAL)).sum(-1),
    ),
    "sparsemax": (L.sparsemax, REAL, SIMPLEX, {}, sparsemax(REAL, SIMPLEX)),
    "dice": (L.dice, REAL, UNIT, {}, tversky(REAL, UNIT, 0.5, 0.5, 0.5)),
    "focal_tversky": (
        L.focal_tversky,
        REAL,
        UNIT,
        {"alpha": 0.8, "gamma": 0.6, "smooth": 0.1},
        tversky(REAL, UNIT, 0.8, 0.2, 0.1) ** 0.6,
    ),
    "triplet": (
        with_negatives,
        REAL,
        OTHER,
        {"margin": 2.0},
        triplet(REAL, OTHER, -0.5 * OTHER, 2.0),
    ),
    "cosine_distance": (L.cosine_distance, REAL, OTHER, {}, cosine(REAL, OTHER, 0)),
    "cosine_distance epsilon": (
        L.cosine_distance,
        REAL,
        OTHER,
        {"epsilon": 20.0},
        cosine(REAL, OTHER, 20.0),
    ),
}
LABELLED = {
    "integer labels": (
        INTEGER,
        REAL,
        LABELS,
        {},
        -(ONE_HOT * log_softmax(REAL)).sum(-1),
    ),
    "integer labels smooth": (
        INTEGER,
        REAL,
        LABELS,
        {"label_smoothing": 0.2},
        -(smooth(ONE_HOT, 0.2) * log_softmax(REAL)).sum(-1),
    ),
    "multiclass_hinge": (
        L.multiclass_hinge,
        REAL,
        LABELS,
        {},
        crammer_singer(REAL, ONE_HOT),
    ),
}
ALL = ENTRYWISE | CLASSWISE | LABELLED
WHOLE = CLASSWISE | LABELLED

SMOOTH = [
    *("squared_error", "log_cosh", "poisson_nll", "sigmoid_binary_cross_entropy"),
    *("focal", "focal gamma alpha smooth", "softmax_cross_entropy", "kl_divergence"),
    *("cosine_distance", "integer labels", "integer labels smooth"),
    *("pseudo_huber", "gaussian_nll", "poly_cross_entropy", "ranking_softmax"),
    *("dice", "focal_tversky", "sparsemax"),
]

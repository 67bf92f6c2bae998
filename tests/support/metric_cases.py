"""Metrics beside what another library, or float64, gives for the whole data."""

import functools
from itertools import pairwise

import numpy as np
from scipy import special
from sklearn import metrics as reference

from fngrad import metrics

M = metrics
RNG = np.random.default_rng(0)
N, CLASSES = 37, 5
LOGITS = RNG.normal(size=(N, CLASSES)).astype(np.float32) * 2
LABELS = RNG.integers(0, CLASSES, size=N)
LABELS[:20] = LOGITS[:20].argmax(-1)
TARGETS = RNG.normal(size=(N, 2)).astype(np.float32)
PREDICTIONS = TARGETS + 0.5 * RNG.normal(size=(N, 2)).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 2.0, size=N).astype(np.float32)
KEPT = RNG.uniform(size=N) > 0.3
TIED = np.round(LOGITS)  # scores with ties
IS_FIRST = (LABELS == 0).astype(np.int64)
RELEVANCE = RNG.integers(0, 4, size=(N, CLASSES)).astype(np.float32)


def calibration_gaps(x, y, w, bins=15):
    """Return the summed gap and weight of each bin that is not empty."""
    p = special.softmax(x.astype(np.float64), axis=-1)
    confidence, right = p.max(-1), p.argmax(-1) == y
    edges = np.linspace(0, 1, bins + 1)
    masks = [(confidence > a) & (confidence <= b) for a, b in pairwise(edges)]
    masks = [inside for inside in masks if inside.any()]
    gaps = [abs((w * (right - confidence))[inside].sum()) for inside in masks]
    return np.array(gaps), np.array([w[inside].sum() for inside in masks])


def calibration(x, y, w, bins=15):
    return calibration_gaps(x, y, w, bins)[0].sum() / w.sum()


def maximum_calibration(x, y, w):
    gaps, weights = calibration_gaps(x, y, w)
    return np.max(gaps / weights)


def log_loss(x, y, w):
    p = special.softmax(x.astype(np.float64), axis=-1)
    return reference.log_loss(y, p, sample_weight=w, labels=range(CLASSES))


def top_2(x, y, w):
    return reference.top_k_accuracy_score(y, x, k=2, sample_weight=w)


def of_classes(score, **keywords):
    """Return a function of logits for one of scikit-learn's of predicted classes."""

    def whole(x, y, w):
        return score(y, x.argmax(-1), sample_weight=w, **keywords)

    return whole


def of_predictions(score):
    return lambda x, y, w: score(y, x, sample_weight=w)


def one_against_the_rest(score):
    def whole(x, y, w):
        columns = range(x.shape[1])
        return [score(y == k, x[:, k], sample_weight=w) for k in columns]

    return whole


def pearson(x, y, w):
    columns = zip(np.float64(x).T, np.float64(y).T, strict=True)
    matrices = [np.cov(a, b, aweights=w, ddof=0) for a, b in columns]
    return np.mean([c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in matrices])


def psnr(x, y, w):
    error = np.mean((np.float64(x) - y) ** 2, axis=1)
    return np.average(10 * np.log10(4.0 / error), weights=w)


# name: (metric, predictions, targets, the whole by another library)
CASES = {
    "accuracy": (M.accuracy, LOGITS, LABELS, of_classes(reference.accuracy_score)),
    "top_k_accuracy": (
        lambda x, y, **kw: M.top_k_accuracy(x, y, 2, **kw),
        LOGITS,
        LABELS,
        top_2,
    ),
    "log_loss": (M.log_loss, LOGITS, LABELS, log_loss),
    "calibration_error": (M.calibration_error, LOGITS, LABELS, calibration),
    "calibration_error of 4 bins": (
        functools.partial(M.calibration_error, num_bins=4),
        LOGITS,
        LABELS,
        functools.partial(calibration, bins=4),
    ),
    "confusion_matrix": (
        M.confusion_matrix,
        LOGITS,
        LABELS,
        of_classes(reference.confusion_matrix),
    ),
    "mean_squared_error": (
        M.mean_squared_error,
        PREDICTIONS,
        TARGETS,
        of_predictions(reference.mean_squared_error),
    ),
    "mean_absolute_error": (
        M.mean_absolute_error,
        PREDICTIONS,
        TARGETS,
        of_predictions(reference.mean_absolute_error),
    ),
    "r2": (M.r2, PREDICTIONS, TARGETS, of_predictions(reference.r2_score)),
    "maximum_calibration_error": (
        M.maximum_calibration_error,
        LOGITS,
        LABELS,
        maximum_calibration,
    ),
    "perplexity": (
        M.perplexity,
        LOGITS,
        LABELS,
        lambda *args: np.exp(log_loss(*args)),
    ),
    "bits_per_character": (
        M.bits_per_character,
        LOGITS,
        LABELS,
        lambda *args: log_loss(*args) / np.log(2),
    ),
    "f_beta": (
        functools.partial(M.f_beta, beta=2.0, average="none"),
        LOGITS,
        LABELS,
        of_classes(reference.fbeta_score, beta=2.0, average=None),
    ),
    "matthews": (
        M.matthews,
        LOGITS,
        LABELS,
        of_classes(reference.matthews_corrcoef),
    ),
    "cohen_kappa": (
        functools.partial(M.cohen_kappa, disagreement="linear"),
        LOGITS,
        LABELS,
        of_classes(reference.cohen_kappa_score, weights="linear"),
    ),
    "roc_auc": (
        functools.partial(M.roc_auc, average="none"),
        TIED,
        LABELS,
        one_against_the_rest(reference.roc_auc_score),
    ),
    "average_precision": (
        functools.partial(M.average_precision, average="none"),
        TIED,
        LABELS,
        one_against_the_rest(reference.average_precision_score),
    ),
    "roc_auc of bins": (  # of width 1, so that TIED is binned without loss
        functools.partial(M.roc_auc, average="none", num_bins=20, bounds=(-10, 10)),
        TIED,
        LABELS,
        one_against_the_rest(reference.roc_auc_score),
    ),
    "mean_absolute_percentage_error": (
        M.mean_absolute_percentage_error,
        PREDICTIONS,
        TARGETS,
        of_predictions(reference.mean_absolute_percentage_error),
    ),
    "pearson": (M.pearson, PREDICTIONS, TARGETS, pearson),
    "ndcg": (
        functools.partial(M.ndcg, k=3),
        TIED,
        RELEVANCE,
        lambda x, y, w: reference.ndcg_score(y, x, k=3, sample_weight=w),
    ),
    "psnr": (functools.partial(M.psnr, max_value=2.0), PREDICTIONS, TARGETS, psnr),
}

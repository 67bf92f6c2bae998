"""Metrics of the confusion matrix against scikit-learn, with absent classes."""

import functools

import jax
import numpy as np
import pytest
from metric_cases import LABELS, LOGITS, WEIGHTS
from sklearn import metrics as reference

from fngrad import metrics

M = metrics
ABSENT = 3
NO_LABEL = np.where(LABELS == ABSENT, 0, LABELS)
NEVER = np.where(np.arange(5) == ABSENT, -9, LOGITS).astype(np.float32)
SCORES = {
    "precision": (M.precision, reference.precision_score),
    "recall": (M.recall, reference.recall_score),
    "f_beta": (M.f_beta, functools.partial(reference.fbeta_score, beta=1.0)),
    "dice": (M.dice, reference.f1_score),
    "iou": (M.iou, reference.jaccard_score),
}
AVERAGES = ("macro", "micro", "weighted")


@pytest.mark.parametrize("name", SCORES)
def test_averages_are_those_of_scikit_learn_also_with_absent_classes(name):
    metric, score = SCORES[name]

    @jax.jit
    def measured(x, y):
        return [metric(x, y, average=a, weights=WEIGHTS).value() for a in AVERAGES]

    for x in (LOGITS, NEVER):  # 3 is never predicted
        for y in (LABELS, NO_LABEL):  # 3 is no label: with NEVER it is absent
            options = {"sample_weight": WEIGHTS, "zero_division": 0}
            want = [score(y, x.argmax(-1), average=a, **options) for a in AVERAGES]
            np.testing.assert_allclose(measured(x, y), want, rtol=1e-5)


def test_an_absent_class_is_nan_by_itself_and_an_unpredicted_one_0():
    absent = M.precision(NEVER, NO_LABEL, average="none").value()
    np.testing.assert_array_equal(np.isnan(absent), np.arange(5) == ABSENT)
    assert M.precision(NEVER, LABELS, average="none").value()[ABSENT] == 0
    assert M.recall(NEVER, LABELS, average="none").value()[ABSENT] == 0


def test_the_binary_average_is_that_of_class_1():
    x, y = LOGITS[:, :2], LABELS % 2
    want = reference.fbeta_score(y, x.argmax(-1), beta=0.5)
    got = M.f_beta(x, y, beta=0.5, average="binary").value()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    with pytest.raises(ValueError, match=r'two classes for average="binary", got 5'):
        M.iou(LOGITS, LABELS, average="binary")


@pytest.mark.parametrize("disagreement", ["nominal", "linear", "quadratic"])
def test_kappa_with_each_disagreement_is_that_of_scikit_learn(disagreement):
    weights = None if disagreement == "nominal" else disagreement
    want = reference.cohen_kappa_score(LABELS, LOGITS.argmax(-1), weights=weights)
    got = M.cohen_kappa(LOGITS, LABELS, disagreement=disagreement).value()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_labels_of_one_class_have_no_correlation_and_no_kappa():
    x = np.eye(3, dtype=np.float32)[[1, 1, 1, 1]]
    y = np.array([1, 1, 1, 1])
    assert M.matthews(x, y).value() == 0
    assert np.isnan(M.cohen_kappa(x, y).value())
    assert M.iou(x, y).value() == M.f_beta(x, y).value() == 1


def test_scores_of_many_or_few_examples_are_those_of_their_shares():
    counts = np.float32([[3, 1], [2, 4]])
    for of in (M.matthews, M.iou):

        @jax.jit
        def score(counts, of=of):
            metric = of(LOGITS, LABELS)
            return M.Derived(
                M.ConfusionMatrix(counts), metric.measure, metric.settings
            ).value()

        for size in (1e-30, 1e30):
            scaled = score(counts * np.float32(size))
            np.testing.assert_allclose(scaled, score(counts), rtol=1e-6)


def test_parts_of_different_metrics_do_not_merge():
    part = M.precision(LOGITS, LABELS)
    with pytest.raises(ValueError, match=r"got _average\('macro',|got _precision"):
        part.merge(M.recall(LOGITS, LABELS))


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="need average to be one of"):
        M.recall(LOGITS, LABELS, average="samples")  # pyright: ignore
    with pytest.raises(ValueError, match="need disagreement to be one of"):
        M.cohen_kappa(LOGITS, LABELS, disagreement="cubic")  # pyright: ignore
    with pytest.raises(ValueError, match="need beta > 0, got beta=0"):
        M.f_beta(LOGITS, LABELS, beta=0)

"""Metrics of the order of scores against scikit-learn and scipy: ties, absent classes.

Those that keep every example are the same however the data is cut into batches.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_cases import IS_FIRST, KEPT, LABELS, LOGITS, TIED, WEIGHTS, N
from scipy import stats
from sklearn import metrics as reference

import fngrad as fg
from fngrad import metrics
from fngrad.training.evaluation import evaluate

M = metrics
X = TIED[:, 0]
PAIRS = {
    "roc_auc": (M.roc_auc, reference.roc_auc_score),
    "average_precision": (M.average_precision, reference.average_precision_score),
}


@pytest.mark.parametrize("name", PAIRS)
def test_binary_scores_with_ties_are_those_of_scikit_learn(name):
    metric, score = PAIRS[name]
    measure = jax.jit(lambda x, y: metric(x, y, weights=WEIGHTS, where=KEPT).value())
    want = score(IS_FIRST[KEPT], X[KEPT], sample_weight=WEIGHTS[KEPT])
    for y in (IS_FIRST, IS_FIRST == 1):
        np.testing.assert_allclose(measure(X, y), want, rtol=1e-6)
    equal = metric(np.zeros(N, np.float32), IS_FIRST).value()
    np.testing.assert_allclose(equal, score(IS_FIRST, np.zeros(N)), rtol=1e-6)
    assert metric(IS_FIRST.astype(np.float32), IS_FIRST).value() == 1


def test_averages_over_classes_leave_out_an_absent_one():
    y = np.where(LABELS == 3, 0, LABELS)
    present = [0, 1, 2, 4]
    each = [reference.roc_auc_score(y == k, TIED[:, k]) for k in present]
    support = [np.sum(y == k) for k in present]
    got = M.roc_auc(TIED, y, average="none").value()
    np.testing.assert_array_equal(np.isnan(got), np.arange(5) == 3)
    macro, weighted = (
        M.roc_auc(TIED, y, average=average).value() for average in ("macro", "weighted")
    )
    np.testing.assert_allclose(macro, np.mean(each), rtol=1e-6)
    np.testing.assert_allclose(weighted, np.average(each, weights=support), rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_bins_are_scores_rounded_down_within_their_bounds(name):
    metric, score = PAIRS[name]
    x = LOGITS[:, 0]
    bins = np.clip(np.floor((x + 1) / 2 * 8), 0, 7)
    for weights in (None, WEIGHTS):
        want = score(IS_FIRST, bins, sample_weight=weights)
        got = metric(x, IS_FIRST, num_bins=8, bounds=(-1, 1), weights=weights)
        np.testing.assert_allclose(got.value(), want, rtol=1e-6)
    far = metric(np.float32([-1e30, -np.inf, 1e30, np.inf]), np.array([0, 0, 1, 1]))
    assert far.value() == 1


def test_one_kind_of_example_has_no_area():
    ones = np.ones(N, int)
    assert np.isnan(M.roc_auc(X, ones).value())
    assert np.isnan(M.roc_auc(X, 0 * ones).value())
    assert M.average_precision(X, ones).value() == 1
    assert np.isnan(M.average_precision(X, 0 * ones).value())
    assert np.isnan(M.roc_auc(X, 0 * ones, num_bins=4).value())
    nothing = np.zeros(0, np.float32), np.zeros(0, int)
    for metric in (M.roc_auc, M.average_precision):
        assert np.isnan(metric(*nothing).value())
    assert np.isnan(M.spearman(nothing[0], nothing[0]).value())


def test_a_score_of_nan_or_a_wrong_label_makes_the_metric_nan_unless_left_out():
    x, y, kept = X.copy(), IS_FIRST.copy(), np.arange(N) > 1
    x[0], y[1] = np.nan, 2
    for options in ({}, {"num_bins": 4}):
        assert np.isnan(M.roc_auc(x, IS_FIRST, **options).value())
        assert np.isnan(M.roc_auc(X, y, **options).value())
        assert np.isfinite(M.roc_auc(x, y, where=kept, **options).value())


def rank_fn(params, batch):
    x, y = batch["x"] * params, batch["y"]
    return {
        "auc": M.roc_auc(x[:, 0], y == 0),
        "binned": M.roc_auc(x[:, 0], y == 0, num_bins=50, bounds=(-20, 20)),
        "classes": M.average_precision(x, y, average="none"),
        "spearman": M.spearman(x[:, 0], x[:, 1]),
        "pearson": M.pearson(x[:, 0], x[:, 1]),
        "accuracy": M.accuracy(x, y),
    }


def ranked():
    x, y = LOGITS.astype(np.float64), LABELS
    return {
        "auc": reference.roc_auc_score(y == 0, x[:, 0]),
        "classes": [
            reference.average_precision_score(y == k, x[:, k]) for k in range(5)
        ],
        "spearman": stats.spearmanr(x[:, 0], x[:, 1])[0],
        "pearson": stats.pearsonr(x[:, 0], x[:, 1])[0],
        "accuracy": np.mean(x.argmax(-1) == y),
    }


@pytest.mark.parametrize("batch_size", [5, N])
def test_evaluation_in_batches_is_that_of_the_whole(batch_size):
    data = {"x": LOGITS, "y": LABELS}
    got = evaluate(rank_fn, jnp.float32(1), data, batch_size=batch_size)
    for name, want in ranked().items():
        np.testing.assert_allclose(got[name], want, rtol=1e-5, err_msg=name)
    whole = reference.roc_auc_score(LABELS == 0, np.floor(LOGITS[:, 0] / 0.8))
    np.testing.assert_allclose(got["binned"], whole, rtol=1e-6)


def test_evaluation_of_a_source_keeps_the_examples_of_all_batches():
    source = fg.data.from_source(
        lambda rows: {"x": LOGITS[rows], "y": LABELS[rows]}, N, 8, fingerprint="x"
    )
    got = evaluate(rank_fn, jnp.float32(1), source, batch_size=10)
    for name, want in ranked().items():
        np.testing.assert_allclose(got[name], want, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_lanes_are_added_where_sums_are_kept_and_gathered_where_rows_are():
    x, y = LOGITS[:36].reshape(4, 9, 5), LABELS[:36].reshape(4, 9)
    options = {"num_bins": 40, "bounds": (-10, 10)}

    def measured(x, y):
        sums = [M.matthews(x, y), M.roc_auc(x, y, **options)]
        rows = jax.lax.all_gather(M.roc_auc(x, y), "lanes", tiled=True)
        return [part.value() for part in (*jax.lax.psum(sums, "lanes"), rows)]

    def of_all(x, y):
        parts = [M.matthews(x, y), M.roc_auc(x, y, **options), M.roc_auc(x, y)]
        return [part.value() for part in parts]

    got = jax.jit(jax.vmap(measured, axis_name="lanes"))(x, y)
    want = jax.jit(of_all)(LOGITS[:36], LABELS[:36])
    for lanes, one in zip(got, want, strict=True):
        np.testing.assert_allclose(lanes, [one] * 4, rtol=1e-6)


@pytest.mark.slow
def test_fit_chooses_the_best_state_by_a_metric_that_keeps_its_examples():
    optimizer = fg.sgd(1.0)
    step = fg.make_step(lambda w, batch: -w, optimizer)
    result = fg.fit(
        step,
        fg.init_state(jnp.float32(-1.5), optimizer, 0),
        lambda step: (),
        num_steps=3,
        metric_fn=lambda w, batch: {"roc_auc": M.roc_auc(w * batch[0], batch[1])},
        eval_data=(X, IS_FIRST),
        eval_every=1,
        early_stopping=fg.EarlyStopping("val/roc_auc", patience=5),
        progress=False,
    )
    area = reference.roc_auc_score(IS_FIRST, X)
    want = [1 - area, area, area]
    np.testing.assert_allclose(result.history["val/roc_auc"], want, rtol=1e-6)


def test_spearman_with_ties_and_a_mask_is_that_of_scipy():
    x, y = TIED[:, :2].copy(), np.round(LOGITS[:, 2:4] / 2)
    want = [stats.spearmanr(x[KEPT, i], y[KEPT, i])[0] for i in (0, 1)]
    x[~KEPT] = np.nan
    got = M.spearman(x, y, where=KEPT)
    np.testing.assert_allclose(got.value(), np.mean(want), rtol=1e-5)
    assert np.isnan(M.spearman(x, y).value())
    assert np.isnan(M.spearman(np.zeros(3), np.arange(3.0)).value())
    assert M.spearman(np.exp(LOGITS[:, 0]), LOGITS[:, 0]).value() == 1


def test_spearman_of_thousands_of_examples_keeps_its_digits():
    n = 5000
    x = np.arange(n, dtype=np.float32)
    y = np.concatenate([x[n // 2 :], x[: n // 2]])
    want = stats.spearmanr(x, y)[0]
    np.testing.assert_allclose(M.spearman(x, y).value(), want, rtol=1e-6)


def test_pearson_of_values_far_from_zero_keeps_its_digits():
    x = (1e4 + LOGITS[:, 0]).astype(np.float32)
    y = (1e4 + LOGITS[:, 0] + LOGITS[:, 1]).astype(np.float32)
    want = stats.pearsonr(np.float64(x), np.float64(y))[0]
    part = M.pearson(x[:7], y[:7]).merge(M.pearson(x[7:], y[7:]))
    for measured in (M.pearson(x, y), part):
        np.testing.assert_allclose(measured.value(), want, rtol=1e-6)
    assert np.isnan(M.pearson(np.full(9, 0.1, np.float32), x[:9]).value())


BAD = [
    (lambda: M.roc_auc(LOGITS, LABELS[:3]), ValueError, "scores (37, 5) and labels (3"),
    (lambda: M.roc_auc(LOGITS[:, :1], LABELS), ValueError, "an axis of two or more"),
    (lambda: M.roc_auc(X, X), TypeError, "integer labels, got dtype float32"),
    (lambda: M.roc_auc(X, LABELS, num_bins=0), ValueError, "need an int num_bins >= 1"),
    (
        lambda: M.roc_auc(X, LABELS, num_bins=3, bounds=(1, 1)),
        ValueError,
        "need finite bounds (low, high), low < high, got bounds=(1, 1)",
    ),
    (lambda: M.roc_auc(X, LABELS, average="micro"), ValueError, "average to be one"),  # pyright: ignore
    (lambda: M.pearson(X, X[:3]), ValueError, "got (37,) and (3,)"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[b[2] for b in BAD])
def test_what_cannot_be_ordered_is_refused(call, kind, message):
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)


def test_integers_of_64_bits_are_labels_too(x64):
    x, y = np.float64([0.1, 0.7, 0.4, 0.9]), np.array([0, 1, 1, 0])
    by_class = np.stack([1 - x, x], axis=1)
    areas = jax.jit(lambda x: M.roc_auc(x, y, average="none").value())
    np.testing.assert_allclose(areas(by_class), reference.roc_auc_score(y, x))

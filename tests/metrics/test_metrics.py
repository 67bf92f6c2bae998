"""Metrics against scikit-learn on the whole data; merged parts against the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_cases import (
    CASES,
    KEPT,
    LABELS,
    LOGITS,
    PREDICTIONS,
    RNG,
    TARGETS,
    WEIGHTS,
    M,
    N,
)
from sklearn import metrics as reference

ONES = np.ones(N, np.float32)


@functools.cache
def value_of(name):
    """Return the metric's value as a function that is compiled per form of call."""
    metric = CASES[name][0]

    @jax.jit
    def value(x, y, where=None, weights=None):
        return metric(x, y, where=where, weights=weights).value()

    return value


@pytest.mark.parametrize("name", CASES)
def test_metric_of_the_whole_equals_the_reference(name):
    _, x, y, whole = CASES[name]
    value = value_of(name)
    x_kept, y_kept = x.copy(), y.copy()
    x_kept[~KEPT] = np.nan
    y_kept[~KEPT] = -1 if y.dtype != np.float32 else np.nan
    for w in (ONES, WEIGHTS):
        weights = None if w is ONES else w
        got = value(x, y, weights=weights)
        np.testing.assert_allclose(got, whole(x, y, w), rtol=1e-5)
        got = value(x_kept, y_kept, KEPT, weights)
        np.testing.assert_allclose(got, whole(x[KEPT], y[KEPT], w[KEPT]), rtol=1e-5)


def sums(accumulator):
    """Return its sums to every digit: each field and its rest; or its rows."""
    accumulator = getattr(accumulator, "parts", accumulator)
    if isinstance(accumulator, M.Rows):
        return list(accumulator)
    *totals, rest = (jax.tree.map(np.float64, part) for part in accumulator)
    return [total + lost for total, lost in zip(totals, rest, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_merged_parts_equal_the_whole(name):
    metric, x, y, _ = CASES[name]
    cuts = [slice(0, 0), slice(0, 16), slice(16, 33), slice(33, 37)]

    @jax.jit
    def measured(x, y, w):
        return [metric(x[c], y[c], weights=w[c]) for c in (*cuts, slice(None))]

    *parts, whole = measured(x, y, WEIGHTS)
    merge, value = jax.jit(type(whole).merge), jax.jit(type(whole).value)
    left = functools.reduce(merge, parts)
    empty, *parts = parts
    right = merge(parts[0], merge(parts[1], merge(parts[2], empty)))
    for merged in (left, right):
        for a, b in zip(sums(merged), sums(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(value(merged), value(whole), rtol=2e-6)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"confusion_matrix"}))
def test_nothing_measured_is_nan(name):
    _, x, y, _ = CASES[name]
    assert np.isnan(value_of(name)(x, y, np.zeros(N, bool))).all()


def test_merging_r2_does_not_cancel_in_float32():
    y = (1e4 + RNG.normal(size=512)).astype(np.float32)
    x = y + np.float32(0.5)
    measured = jax.jit(M.r2)
    parts = [measured(x[i : i + 8], y[i : i + 8]) for i in range(0, 512, 8)]
    merged = functools.reduce(jax.jit(M.R2.merge), parts)
    want = reference.r2_score(y.astype(np.float64), x.astype(np.float64))
    np.testing.assert_allclose(merged.value(), want, rtol=1e-4)


def test_r2_of_constant_targets():
    y = np.ones(4, np.float32)
    assert M.r2(y, y).value() == reference.r2_score(y, y) == 1
    x = np.arange(4, dtype=np.float32)
    assert M.r2(x, y).value() == reference.r2_score(y, x) == 0


@pytest.mark.parametrize("level", [0.1, 100.1, 1e5 + 0.3, -1e17])
def test_constant_targets_are_never_explained_by_rounding(level):
    y = np.full(1000, level, np.float32)
    x = y * np.float32(1.5)
    w = RNG.uniform(0.5, 2, size=1000).astype(np.float32)
    parts = [M.r2(x[c], y[c], weights=w[c]) for c in (slice(0, 300), slice(300, 1000))]
    whole = M.r2(x, y, weights=w)
    hidden = M.r2(np.append(x, 0), np.append(y, 7), where=np.arange(1001) < 1000)
    for measured in (whole, parts[0].merge(parts[1]), hidden):
        np.testing.assert_array_equal(measured.m2, 0)
        assert measured.value() == 0
    assert M.r2(y, y).value() == 1


def test_r2_of_targets_far_from_zero_keeps_its_digits():
    y = (1e4 + RNG.normal(size=1000)).astype(np.float32)
    x = (y + 0.1 * RNG.normal(size=1000)).astype(np.float32)
    want = reference.r2_score(y.astype(np.float64), x.astype(np.float64))
    np.testing.assert_allclose(M.r2(x, y).value(), want, rtol=1e-6)


def test_log_loss_of_a_certain_class_keeps_its_digits():
    x = np.float32([[20, 0]])
    value = M.log_loss(x, np.array([0])).value()
    np.testing.assert_allclose(value, np.log1p(np.exp(-20.0)), rtol=1e-6)


def test_complex_predictions_keep_their_imaginary_part():
    x, y = np.array([1 + 1j, 2 - 3j], np.complex64), np.float32([1, 2])
    assert M.mean_squared_error([1 + 1j, 2 - 3j], [1, 2]).value() == 5
    for a, b in ((x, y), (y, x)):
        assert M.mean_squared_error(a, b).value() == 5
        assert M.mean_absolute_error(a, b).value() == 2
    x[1] = np.nan
    kept = np.array([True, False])
    for keywords in ({"where": kept}, {"weights": np.float32(kept)}):
        assert M.mean_squared_error(x, y, **keywords).value() == 1
    for call in (
        lambda: M.r2(x, y),
        lambda: M.r2(y, x),
        lambda: M.accuracy(LOGITS * np.complex64(1), LABELS),
        lambda: M.log_loss(LOGITS * np.complex64(1), LABELS),
        lambda: M.accuracy(LOGITS, LABELS, weights=WEIGHTS * np.complex64(1)),
        lambda: M.mean_squared_error(y, y, weights=x),
    ):
        with pytest.raises(TypeError, match=r"need real \w+, got dtype complex64"):
            call()


@functools.cache
def value_and_slopes(name):
    """Return a compiled program of x, y, where and weights."""
    metric = CASES[name][0]

    def value(x, y, where, w):
        return jnp.sum(metric(x, y, where=where, weights=w).value())

    return jax.jit(jax.value_and_grad(value, (0, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CASES)
def test_masked_entries_do_not_affect_value_or_gradient(name, bad):
    _, x, y, _ = CASES[name]
    x_bad, y_bad, w_bad = x.copy(), y.copy(), WEIGHTS.copy()
    x_bad[~KEPT], w_bad[~KEPT] = bad, bad
    y_bad[~KEPT] = -1 if y.dtype != np.float32 else bad
    zero = np.where(KEPT, WEIGHTS, 0)
    measure = value_and_slopes(name)
    everywhere = np.ones(N, bool)
    want = measure(x, y, KEPT, WEIGHTS)
    for got in (
        measure(x_bad, y_bad, KEPT, w_bad),
        measure(x_bad, y_bad, everywhere, zero),
    ):
        np.testing.assert_array_equal(got[0], want[0])
        for slope in got[1]:
            assert np.all(np.isfinite(slope))
        np.testing.assert_array_equal(got[1][0], want[1][0])
    np.testing.assert_array_equal(want[1][0][~KEPT], 0)


def test_of_equal_logits_the_first_is_the_prediction():
    x = np.zeros((3, 3), np.float32)
    right = [M.accuracy(x[:1], np.array([c])).value() for c in range(3)]
    assert right == [1, 0, 0]
    assert M.top_k_accuracy(x, np.arange(3), 2).value() == pytest.approx(2 / 3)


def test_logits_of_nan_are_never_right():
    x = np.full((2, 3), np.nan, np.float32)
    x[1, 1:] = 0
    assert M.accuracy(x, np.array([0, 2])).value() == 0
    assert M.top_k_accuracy(x[:1], np.array([0]), 2).value() == 0
    assert np.isnan(M.confusion_matrix(x, np.array([0, 2])).value()).any()


@pytest.mark.parametrize("label", [-1, 5, 99])
@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][2] is LABELS])
def test_label_out_of_range_makes_the_metric_nan(name, label):
    _, x, y, _ = CASES[name]
    y = y.copy()
    y[3] = label
    assert np.isnan(value_of(name)(x, y)).any()
    kept = np.arange(N) != 3
    assert np.isfinite(value_of(name)(x, y, kept)).all()


DERIVED = [  # from an accumulator of another case, which reads the labels
    *("maximum_calibration_error", "perplexity", "bits_per_character"),
    *("f_beta", "matthews", "cohen_kappa"),
]
READERS = [n for n in CASES if CASES[n][2] is LABELS and n not in DERIVED]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32])
@pytest.mark.parametrize("name", READERS)
def test_labels_in_any_integer_dtype_are_read(name, dtype):
    metric = CASES[name][0]
    x = RNG.normal(size=(3, 200 if dtype == np.int8 else 256)).astype(np.float32)
    y = np.argmax(x, axis=-1) % 128
    want = metric(x, y).value()
    assert np.isfinite(want).any()
    np.testing.assert_array_equal(metric(x, y.astype(dtype)).value(), want)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int64])
@pytest.mark.parametrize("name", READERS)
def test_unsigned_label_out_of_range_makes_the_metric_nan(name, dtype):
    metric, x, y, _ = CASES[name]
    y = y.astype(dtype)
    y[3] = min(np.iinfo(dtype).max, 2**32)
    runs = [metric] if dtype == np.int64 else [metric, jax.jit(metric)]
    for run in runs:
        assert np.isnan(run(x, y).value()).any()


@pytest.mark.parametrize("name", CASES)
def test_zero_weight_leaves_out_like_where(name):
    _, x, y, _ = CASES[name]
    x, y, w = x.copy(), y.copy(), WEIGHTS.copy()
    kept = np.arange(N) != 3
    w[3], x[3], y[3] = 0, np.inf, -1
    want = value_of(name)(x, y, kept, w)
    assert np.isfinite(want).all()
    np.testing.assert_array_equal(value_of(name)(x, y, weights=w), want)


def test_confusion_with_a_label_out_of_range_counts_nothing():
    y = LABELS.copy()
    y[3] = 99
    assert np.isnan(M.confusion_matrix(LOGITS, y).value()).all()


def test_calibration_bins_close_on_the_right():
    # One example of confidence 1/2, right: it belongs to the first of two bins, with
    # one of confidence 1/2 that is wrong, so both together are calibrated.
    x, y = np.zeros((2, 2), np.float32), np.array([0, 1])
    bins = M.calibration_error(x, y, num_bins=2)
    np.testing.assert_array_equal(bins.weight, [2, 0])
    assert bins.value() == 0


def test_metrics_of_narrow_inputs_are_summed_in_float32():
    x = jnp.zeros((2000, 2), jnp.bfloat16)
    mean = M.accuracy(x, jnp.zeros(2000, jnp.int32))
    assert mean.total.dtype == jnp.float32
    assert (mean.total, mean.weight) == (2000, 2000)


def test_accumulators_are_pytrees_that_pass_through_jit():
    part = jax.jit(M.r2)(PREDICTIONS, TARGETS)
    twice = jax.jit(lambda a, b: a.merge(b))(part, part)
    assert isinstance(twice, M.R2)
    np.testing.assert_allclose(twice.value(), part.value(), rtol=1e-6)


BAD = [
    (lambda: M.accuracy(LOGITS, LABELS[:3]), ValueError, "got (37, 5) and (3,)"),
    (lambda: M.accuracy(LOGITS, WEIGHTS), TypeError, "integer labels, got dtype float"),
    (lambda: M.top_k_accuracy(LOGITS, LABELS, 6), ValueError, "need 1 <= k <= 5"),
    (
        lambda: M.calibration_error(LOGITS, LABELS, num_bins=0),
        ValueError,
        "need an int num_bins >= 1, got num_bins=0",
    ),
    (
        lambda: M.accuracy(LOGITS, LABELS, weights=ONES[:3]),
        ValueError,
        "need weights of shape (37,), got shape (3,)",
    ),
    (
        lambda: M.accuracy(LOGITS, LABELS, where=KEPT[:3]),
        ValueError,
        "need where of shape (37,), got shape (3,)",
    ),
    (lambda: M.accuracy(LOGITS, LABELS, where=ONES), TypeError, "a mask of bools"),
    (lambda: M.r2(TARGETS, TARGETS[:, 0]), ValueError, "got (37, 2) and (37,)"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[b[2] for b in BAD])
def test_shapes_that_do_not_fit_raise(call, kind, message):
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)


def test_an_accumulator_explains_where_its_number_is():
    found = M.accuracy(jnp.eye(2), jnp.array([0, 1]))
    with pytest.raises(AttributeError, match=r"Mean, got 'mean': \.value\(\) gives"):
        found.mean()  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(found, "shape")

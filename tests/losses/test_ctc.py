"""The loss of unaligned sequences against the sum over all alignments."""

import functools
import itertools

import jax
import numpy as np
import pytest

from fngrad import losses

ctc = jax.jit(losses.ctc, static_argnames=("blank_id", "axis", "reduction"))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def collapse(path, blank):
    merged = [c for c, _ in itertools.groupby(path)]
    return [c for c in merged if c != blank]


def brute_force_ctc(x, labels, blank):
    log_p = log_softmax(x)
    frames, classes = x.shape
    paths = itertools.product(range(classes), repeat=frames)
    scores = [
        sum(log_p[t, c] for t, c in enumerate(path))
        for path in paths
        if collapse(path, blank) == list(labels)
    ]
    return -np.logaddexp.reduce(scores) if scores else np.inf


CTC_LABELS = [[1, 1, 2], [2, 1], [2], []]
CTC_FRAMES = [5, 5, 4, 3]


def padded(blank=0):
    """Return logits, paddings and labels of four sequences, with NaN as padding."""
    swap = {0: blank, blank: 0}
    rows = [[swap.get(c, c) for c in row] for row in CTC_LABELS]
    x = np.random.default_rng(3).normal(size=(4, 5, 3))
    frame_padding = np.array([[t >= n for t in range(5)] for n in CTC_FRAMES])
    labels = np.array([row + [-9] * (3 - len(row)) for row in rows])
    label_padding = np.array([[n >= len(row) for n in range(3)] for row in rows])
    want = [brute_force_ctc(x[i, :n], rows[i], blank) for i, n in enumerate(CTC_FRAMES)]
    x[frame_padding] = np.nan
    return (
        x.astype(np.float32),
        frame_padding.astype(np.float32),
        labels,
        label_padding.astype(np.float32),
        np.array(want),
    )


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_is_the_sum_over_all_alignments(blank):
    *inputs, want = padded(blank)
    got = ctc(*inputs, blank_id=blank)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    x, *rest = inputs
    moved = ctc(np.moveaxis(x, 1, 2), *rest, blank_id=blank, axis=(2, 1))
    np.testing.assert_allclose(moved, want, rtol=1e-5)
    alone = ctc(*(a[0] for a in inputs), blank_id=blank)
    np.testing.assert_allclose(alone, want[0], rtol=1e-5)


def test_ctc_takes_the_keywords_of_all_losses():
    *inputs, want = padded()
    kept = np.array([True, False, True, True])
    w = np.array([1.0, np.nan, 2.0, 3.0], np.float32)
    inputs[0][1], inputs[2][1] = np.nan, 77
    terms = np.where(kept, want * np.nan_to_num(w), 0)
    for reduction, value in (
        ("none", terms),
        ("sum", terms.sum()),
        ("mean", terms.sum() / 6),
    ):
        got = ctc(*inputs, where=kept, weights=w, reduction=reduction)
        np.testing.assert_allclose(got, value, rtol=1e-5)

    def total(x):
        return ctc(x, *inputs[1:], where=kept, reduction="sum")

    gradient = jax.grad(total)(inputs[0])
    assert np.all(np.isfinite(gradient))
    left_out = np.isnan(inputs[0])
    np.testing.assert_array_equal(gradient[left_out], 0)


def test_ctc_gradient_is_the_finite_difference(x64):
    x, *rest, _ = padded()
    x = np.nan_to_num(x.astype(np.float64))
    direction = np.random.default_rng(1).normal(size=x.shape)

    def total(x):
        return ctc(x, *rest, reduction="sum")

    h = 1e-6
    slope = (total(x + h * direction) - total(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(np.vdot(jax.grad(total)(x), direction), slope, rtol=1e-7)
    _, tangent = jax.jvp(total, (x,), (direction,))
    np.testing.assert_allclose(tangent, slope, rtol=1e-7)


def test_ctc_at_extreme_and_impossible_logits():
    zeros = np.zeros
    x = np.array([[0.0, 1e4], [0.0, -1e4]], np.float32)
    call = functools.partial(ctc, label_paddings=zeros(1))
    args = (zeros(2), np.array([1]))
    value, gradient = jax.value_and_grad(lambda x: call(x, *args))(x)
    np.testing.assert_allclose(value, 0, atol=1e-6)  # label, then blank
    assert np.all(np.isfinite(gradient))
    x = np.array([[0.0, -np.inf, 0.0], [0.0, 0.0, -np.inf]], np.float32)
    value, gradient = jax.value_and_grad(lambda x: call(x, *args))(x)
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)  # only blank, label
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5], [0.5, -0.5, 0]], atol=1e-6)


def test_ctc_without_an_alignment_is_infinite_with_zero_gradient():
    x, labels = np.zeros((2, 3), np.float32), np.array([1, 1])  # needs three frames
    value, gradient = jax.value_and_grad(
        lambda x: ctc(x, np.zeros(2), labels, np.zeros(2))
    )(x)
    assert value == np.inf
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_ctc_refuses_wrong_labels_and_makes_them_nan_when_traced():
    x, free = np.zeros((4, 3), np.float32), np.zeros(4)
    gap = np.array([1, 0])
    for labels, paddings, message in (
        ([1, 3], [0, 0], r"need labels in \[0, 3\), got 3"),
        ([1, -1], [0, 0], "got -1"),
        ([1, 0], [0, 0], "labels without the blank, got blank_id=0"),
        ([1, 2], gap, "padding at the end"),
    ):
        arguments = free, np.array(labels), np.array(paddings)
        with pytest.raises(ValueError, match=message):
            losses.ctc(x, *arguments)
        value, gradient = jax.value_and_grad(ctc)(x, *arguments)
        assert np.isnan(value)
        assert np.isnan(gradient).any()


def test_ctc_reads_labels_of_one_byte():
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    free = np.zeros(4)
    labels, paddings = np.array([1, 2]), np.zeros(2)
    want = losses.ctc(x, free, labels, paddings)
    narrow = labels.astype(np.uint8)
    np.testing.assert_array_equal(losses.ctc(x, free, narrow, paddings), want)
    assert np.isfinite(want)
    np.testing.assert_allclose(ctc(x, free, narrow, paddings), want, rtol=1e-6)


def test_ctc_of_zero_weight_is_left_out():
    x = np.zeros((2, 4, 3), np.float32)
    labels, free = np.array([[1, 2], [0, 7]]), np.zeros((2, 4))
    w = np.array([1.0, 0.0], np.float32)
    got = losses.ctc(x, free, labels, np.zeros((2, 2)), weights=w)
    assert np.isfinite(got[0])
    assert got[1] == 0

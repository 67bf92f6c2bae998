"""Losses at extreme and impossible inputs, labels out of range, and bad arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad import losses

L = losses
INTEGER = L.softmax_cross_entropy_with_integer_labels
RNG = np.random.default_rng(0)
SHAPE = (3, 4)
X, Y = (RNG.normal(size=SHAPE).astype(np.float32) for _ in range(2))
LABELS = np.array([1, 0, 2])
ONE_HOT = np.eye(4)[LABELS]


BIG = [1e4, 1e30]


@pytest.mark.parametrize("big", BIG)
def test_softmax_losses_at_extreme_logits(big):
    x = np.array([[big, -big, 0.0], [big, big, -big]], np.float32)
    dense = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
    p = np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32)
    want = [2 * big, np.log(2)]
    for loss, y in ((L.softmax_cross_entropy, dense), (INTEGER, np.array([1, 0]))):
        np.testing.assert_allclose(loss(x, y), want, rtol=1e-6)
        gradient = jax.grad(lambda x, f=loss, y=y: f(x, y, reduction="sum"))(x)
        np.testing.assert_allclose(gradient, p - dense, atol=1e-7)
        _, tangent = jax.jvp(lambda x, f=loss, y=y: f(x, y), (x,), (np.ones_like(x),))
        np.testing.assert_allclose(tangent, [0, 0], atol=1e-7)


def test_softmax_keeps_small_differences_of_large_logits():
    x = np.array([[1e4, 1e4 - 1.0]], np.float32)
    np.testing.assert_allclose(
        INTEGER(x, np.array([0])), [np.log1p(np.exp(-1.0))], rtol=1e-6
    )


def test_examples_whose_logits_are_far_apart_keep_their_losses():
    logits = jnp.array([[1e4, 1e4 - 2], [0.0, -2.0]])
    got = L.softmax_cross_entropy_with_integer_labels(logits, jnp.array([1, 1]))
    np.testing.assert_allclose(got, 2 + np.log1p(np.exp(-2.0)), rtol=1e-5)


def test_impossible_class_with_zero_label_costs_nothing():
    x = np.array([[0.0, -np.inf, 0.0]], np.float32)
    dense = np.array([[1.0, 0.0, 0.0]], np.float32)
    direction = np.array([[1.0, 5.0, 2.0]], np.float32)
    for loss, y in ((L.softmax_cross_entropy, dense), (INTEGER, np.array([0]))):
        call = functools.partial(loss, reduction="sum")
        np.testing.assert_allclose(call(x, y), np.log(2), rtol=1e-6)
        gradient = jax.grad(call)(x, y)
        np.testing.assert_allclose(gradient, [[-0.5, 0.0, 0.5]], atol=1e-7)
        _, tangent = jax.jvp(lambda x, f=call, y=y: f(x, y), (x,), (direction,))
        np.testing.assert_allclose(tangent, 0.5, rtol=1e-6)
        smooth = jax.jit(call)(x, y, label_smoothing=0.0)
        np.testing.assert_allclose(smooth, np.log(2), rtol=1e-6)
        assert call(x, y, label_smoothing=0.1) == np.inf
    by_label = jax.grad(lambda y: L.softmax_cross_entropy(x, y, reduction="sum"))(dense)
    np.testing.assert_allclose(by_label[0, [0, 2]], [np.log(2)] * 2, rtol=1e-6)
    assert np.isfinite(by_label[0, 1])
    assert INTEGER(x, np.array([1]))[0] == np.inf
    gradient = jax.grad(lambda x: INTEGER(x, np.array([1]))[0])(x)
    np.testing.assert_allclose(gradient, [[0.5, -1.0, 0.5]], atol=1e-7)


@pytest.mark.parametrize("big", [*BIG, np.inf])
@pytest.mark.parametrize("gamma", [None, 0.5, 2.0])
def test_binary_losses_at_extreme_logits(big, gamma):
    x = np.array([big, -big, big, -big], np.float32)
    y = np.array([1.0, 0.0, 0.0, 1.0], np.float32)
    loss = (
        L.sigmoid_binary_cross_entropy
        if gamma is None
        else functools.partial(L.focal, gamma=gamma)
    )
    values, tangent = jax.jvp(lambda x: loss(x, y), (x,), (np.ones_like(x),))
    gradient = jax.grad(lambda x: jnp.sum(loss(x, y)))(x)
    np.testing.assert_allclose(values, [0, 0, big, big])
    count = 2 if gamma and big == np.inf else 4  # no slope of focal's infinite loss
    for slope in (gradient, tangent):
        np.testing.assert_allclose(slope[:count], [0, 0, 1, -1][:count], atol=1e-30)


@pytest.mark.parametrize("x", [100.0, 50.0, 1e-30, -100.0])
def test_focal_gradient_is_finite_where_its_weight_underflows(x):
    for y in (0.0, 1.0):
        for gamma in (0.0, 0.1, 1.0):
            d = jax.grad(lambda x, y=y, g=gamma: L.focal(x, y, gamma=g))(x)
            assert np.isfinite(d), (x, y, gamma)


def test_errors_at_extreme_predictions_keep_their_slopes():
    x = np.array([1e30, -1e30, 1e4, 0.0], np.float32)
    for loss, slopes in (
        (L.absolute_error, [1, -1, 1, 0]),
        (L.log_cosh, [1, -1, 1, 0]),
        (functools.partial(L.huber, delta=2.0), [2, -2, 2, 0]),
    ):
        values = loss(x)
        np.testing.assert_allclose(values, np.abs(slopes) * np.abs(x), rtol=4e-4)
        gradient = jax.grad(lambda x, f=loss: jnp.sum(f(x)))(x)
        np.testing.assert_allclose(gradient, slopes)


def test_log_cosh_of_a_small_error_is_half_its_square():
    x = np.array([1e-3, 1e-5, -1e-8], np.float32)
    np.testing.assert_allclose(L.log_cosh(x), x.astype(np.float64) ** 2 / 2, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_cosine_distance_does_not_overflow(size):
    x = size * np.array([[3.0, 4.0]], np.float32)
    y = np.array([[4.0, 3.0]], np.float32)
    np.testing.assert_allclose(L.cosine_distance(x, y), [0.04], rtol=1e-5)
    gradient = jax.grad(lambda x: L.cosine_distance(x, y)[0])(x)
    # (cos x / |x| - y / |y|) / |x|
    want = (0.96 * np.array([[0.6, 0.8]]) - np.array([[0.8, 0.6]])) / (5 * size)
    np.testing.assert_allclose(gradient, want, rtol=1e-4)


def test_cosine_distance_of_a_zero_vector_is_one_with_zero_gradient():
    zero, y = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    value, gradient = jax.value_and_grad(lambda x: L.cosine_distance(x, y)[0])(zero)
    assert value == 1
    np.testing.assert_array_equal(gradient, zero)


def test_zero_targets_cost_nothing_against_impossible_predictions():
    log_p = np.array([[0.0, -np.inf]], np.float32)
    q = np.array([[1.0, 0.0]], np.float32)
    value, gradient = jax.value_and_grad(lambda p: L.kl_divergence(p, q)[0])(log_p)
    assert value == 0
    np.testing.assert_array_equal(gradient, -q)
    value, slope = jax.value_and_grad(L.poisson_nll)(-jnp.inf, 0.0)
    assert (value, slope) == (0, 0)


@pytest.mark.parametrize("loss", [INTEGER, L.multiclass_hinge])
@pytest.mark.parametrize("label", [-1, 4, 100])
def test_label_out_of_range_raises_or_is_nan_when_traced(loss, label):
    x, y = X, np.array([2, label, 3])
    with pytest.raises(
        ValueError, match=rf"need labels in \[0, 4\), got {label} \(1 of"
    ):
        loss(x, y)
    with pytest.raises(ValueError, match=rf"got {label}"):
        jax.grad(lambda x: loss(x, y, reduction="mean"))(x)
    traced = jax.jit(loss)(x, y)
    np.testing.assert_array_equal(np.isnan(traced), [False, True, False])
    gradient = jax.jit(jax.grad(lambda x, y: loss(x, y, reduction="sum")))(x, y)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), [False, True, False])
    kept = np.array([True, False, True])
    masked = loss(x, y, where=kept), jax.jit(loss)(x, y, where=kept)
    for got in masked:
        want = np.where(kept, loss(x, np.array([2, 0, 3])), 0)
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("loss", [INTEGER, L.multiclass_hinge])
def test_label_whose_class_is_left_out_is_nan(loss):
    kept = np.ones(SHAPE, bool)
    kept[1, LABELS[1]] = False
    got = loss(X, LABELS, where=kept)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])


def test_smooth_l1_without_a_rounded_tip_is_the_absolute_error():
    x = np.float32([-2, 0, 3])
    value = functools.partial(L.smooth_l1, beta=0.0, reduction="sum")
    got = jax.value_and_grad(value)(x, np.zeros(3, np.float32))
    assert got[0] == 5
    np.testing.assert_array_equal(got[1], [-1, 0, 1])


def test_overlaps_of_empty_sets():
    x, y = np.full(4, -200, np.float32), np.zeros(4, np.float32)
    for smooth, want in ((1.0, 0), (0.0, 0)):
        value, slope = jax.value_and_grad(L.dice)(x, y, smooth=smooth)
        assert value == want
        assert np.all(np.isfinite(slope))
    np.testing.assert_allclose(L.dice(-x, y, smooth=1.0), 4 / 5)
    value, slope = jax.value_and_grad(L.focal_tversky)(x, y)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_sparsemax_of_ties_and_impossible_classes():
    y = np.float32([1, 0, 0])
    tied = np.zeros(3, np.float32)  # p is 1/3: half of 4/9 + 1/9 + 1/9
    np.testing.assert_allclose(L.sparsemax(tied, y), 1 / 3, rtol=1e-6)
    x = np.float32([0, 0, -np.inf])
    value, slope = jax.value_and_grad(L.sparsemax)(x, y)
    assert value == 0.25
    np.testing.assert_array_equal(slope, [-0.5, 0.5, 0])
    assert L.sparsemax(x, np.float32([0, 0, 1])) == np.inf


def test_smooth_labels_keeps_a_distribution():
    got = L.smooth_labels(np.float32(ONE_HOT), 0.2)
    np.testing.assert_allclose(got, 0.8 * ONE_HOT + 0.05, rtol=1e-6)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        L.smooth_labels(np.float32(ONE_HOT), 0.2, axis=0), 0.8 * ONE_HOT + 0.2 / 3, 1e-6
    )


def test_hard_targets_may_be_integers_or_bools():
    x = X
    want = L.sigmoid_binary_cross_entropy(x, np.float32(Y > 0.5))
    for y in (Y > 0.5, (Y > 0.5).astype(np.int32)):
        np.testing.assert_array_equal(L.sigmoid_binary_cross_entropy(x, y), want)


THREE = np.zeros(3)
BAD = [
    (lambda: L.squared_error(X, Y[:2]), "predictions (3, 4) and targets (2, 4)"),
    (lambda: L.squared_error(X, Y[0]), "need targets shaped like predictions"),
    (lambda: L.huber(X, delta=0.0), "need delta > 0, got delta=0.0"),
    (lambda: L.huber(X, delta=np.float32(-1)), "need delta > 0, got delta=-1.0"),
    (lambda: L.quantile(X, Y, level=1.5), "level=1.5"),
    (lambda: L.focal(X, Y, gamma=-1.0), "gamma=-1.0"),
    (lambda: L.focal(X, Y, alpha=2.0), "alpha=2.0"),
    (lambda: L.cosine_distance(X, Y, epsilon=-1.0), "epsilon=-1.0"),
    (lambda: L.smooth_l1(X, Y, beta=-1.0), "beta=-1.0"),
    (lambda: L.pseudo_huber(X, Y, delta=0.0), "need delta > 0, got delta=0.0"),
    (lambda: L.pseudo_huber(X, Y, delta=np.inf), "delta=inf"),
    (lambda: L.dice(X, Y, smooth=-1.0), "smooth=-1.0"),
    (lambda: L.dice(X, Y, axis=None), "need an axis of classes"),
    (lambda: L.focal_tversky(X, Y, alpha=2.0), "alpha=2.0"),
    (lambda: L.focal_tversky(X, Y, gamma=0.0), "need gamma > 0, got gamma=0.0"),
    (lambda: L.poly_cross_entropy(X, Y, epsilon=-2.0), "epsilon=-2.0"),
    (lambda: L.gaussian_nll(X, Y, Y[:2]), "predictions (3, 4) and log_variances (2"),
    (lambda: L.squared_error(X, Y, axis=2), "got axis=2"),
    (lambda: L.squared_error(X, Y, axis=(0, -2)), "need different axes"),
    (lambda: L.softmax_cross_entropy(X, Y, axis=None), "need an axis of classes"),
    (lambda: L.kl_divergence(X, Y, axis=()), "need an axis of classes"),
    (lambda: INTEGER(X, LABELS, axis=(0, 1)), "need one axis of classes"),
    (lambda: INTEGER(X, LABELS[:2]), "need labels of shape (3,), got shape (2,)"),
    (lambda: L.softmax_cross_entropy(X, Y[:, :2]), "labels (3, 2)"),
    (
        lambda: L.softmax_cross_entropy(X, Y, label_smoothing=1.0),
        "need 0 <= label_smoothing < 1, got label_smoothing=1.0",
    ),
    (lambda: L.smooth_labels(Y, -0.1), "label_smoothing=-0.1"),
    (lambda: L.smooth_labels(Y, np.float32(2)), "got label_smoothing=2.0"),
    (lambda: L.hinge(X, Y, reduction="max"), "got reduction='max'"),  # pyright: ignore
    (
        lambda: L.hinge(X, Y, where=np.ones(3, bool), reduction="mean"),
        "predictions (3, 4) or of the loss (3, 4), got (3,)",
    ),
    (
        lambda: INTEGER(X, LABELS, weights=np.ones(4)),
        "need weights with the shape of the loss (3,), got shape (4,)",
    ),
    (lambda: L.ctc(X, THREE, LABELS, THREE, axis=(0,)), "need two axes"),
    (
        lambda: L.ctc(X, np.zeros(2), LABELS, THREE),
        "logit_paddings of shape (3,)",
    ),
    (
        lambda: L.ctc(X, THREE, LABELS, np.zeros(2)),
        "label_paddings of shape (3,)",
    ),
    (
        lambda: L.ctc(X, THREE, LABELS, THREE, blank_id=4),
        "need 0 <= blank_id < 4, got blank_id=4",
    ),
]
BAD_TYPES = [
    (lambda: L.squared_error(LABELS), "need floating predictions, got dtype int"),
    (lambda: L.squared_error(X, Y * 1j), "need real targets, got dtype complex64"),
    (lambda: INTEGER(np.ones(SHAPE, int), LABELS), "need floating logits"),
    (lambda: INTEGER(X, Y[:, 0]), "need integer labels, got dtype float32"),
    (lambda: L.hinge(X, Y, where=np.ones(SHAPE)), "need a mask of bools as where"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_shapes_that_do_not_fit_raise(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(("call", "message"), BAD_TYPES, ids=[m for _, m in BAD_TYPES])
def test_wrong_dtype_raises(call, message):
    with pytest.raises(TypeError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32])
def test_labels_in_any_integer_dtype_are_read(dtype):
    classes = 200 if dtype == np.int8 else 256
    x = RNG.normal(size=(3, classes)).astype(np.float32)
    y = np.array([2, 0, 127])
    for loss in (INTEGER, L.multiclass_hinge):
        want = loss(x, y)
        for run in (loss, jax.jit(loss)):
            np.testing.assert_array_equal(run(x, y.astype(dtype)), want)
            np.testing.assert_array_equal(run(x, jnp.asarray(y, dtype)), want)


@pytest.mark.parametrize("label", [2**31, 2**32 - 1])
def test_label_beyond_int32_is_out_of_range_and_never_wraps(label, x64):
    for dtype in (np.uint32, np.int64, np.uint64):
        y = np.array([0, label, 1], dtype)
        with pytest.raises(ValueError, match=f"got {label} "):
            INTEGER(X, y)
        traced = jax.jit(INTEGER)(X, y)
        np.testing.assert_array_equal(np.isnan(traced), [False, True, False])


def test_wide_label_is_out_of_range_where_jax_has_no_wide_integers():
    with pytest.raises(ValueError, match=f"got {2**32 + 1} "):
        INTEGER(X, np.array([0, 2**32 + 1, 1]))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_zero_weight_leaves_out_like_where(bad):
    x, w = X.copy(), np.array([1.0, 0.0, 2.0], np.float32)
    x[1] = bad
    kept = w != 0

    def both(fn):
        def of(**keywords):
            total = functools.partial(fn, reduction="mean", **keywords)
            return jax.value_and_grad(total)(jnp.asarray(x))

        return of(weights=w), of(where=kept, weights=w)

    for loss, y in (
        (INTEGER, np.array([1, -100, 2])),
        (L.multiclass_hinge, np.array([1, 99, 2])),
        (L.softmax_cross_entropy, np.float32(ONE_HOT)),
        (L.cosine_distance, Y),
        (functools.partial(L.squared_error, axis=-1), Y),
        (functools.partial(L.poisson_nll, axis=-1), np.abs(Y)),
    ):
        got, want = both(lambda x, loss=loss, y=y, **k: loss(x, y, **k))
        assert np.isfinite(got[0])
        assert got[0] == want[0]
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(got[1][1], np.zeros(4))
    each = L.squared_error(x, Y, axis=-1, weights=w)
    assert each[1] == 0


def test_the_mean_of_an_infinite_loss_is_infinite_whatever_its_weight():
    logits, labels = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]]), jnp.array([1, 0])
    loss = losses.softmax_cross_entropy_with_integer_labels(
        logits, labels, weights=jnp.array([2e-38, 0.0]), reduction="mean"
    )
    assert loss == jnp.inf


def test_the_mean_with_weights_whose_sum_overflows_is_finite():
    loss = losses.squared_error(
        jnp.ones(8), jnp.zeros(8), weights=jnp.full(8, 3e38), reduction="mean"
    )
    np.testing.assert_allclose(loss, losses.squared_error(1.0, 0.0), rtol=1e-6)

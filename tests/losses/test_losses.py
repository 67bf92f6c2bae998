"""Losses against float64 formulas, at extreme inputs, under masks, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import (
    ALL,
    CLASSWISE,
    ENTRYWISE,
    INTEGER,
    LABELLED,
    LABELS,
    REAL,
    RNG,
    SMOOTH,
    UNIT,
    WHOLE,
    L,
)


def single(*arrays):
    """Copy arrays, float ones as float32."""
    return [a.astype(np.float32 if a.dtype == np.float64 else a.dtype) for a in arrays]


@pytest.mark.parametrize("name", ALL)
def test_loss_equals_its_formula(name):
    loss, x, y, keywords, expected = ALL[name]
    got = jax.jit(functools.partial(loss, **keywords))(*single(x, y))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_loss_equals_its_formula_in_float64(name, x64):
    loss, x, y, keywords, expected = ALL[name]
    got = jax.jit(functools.partial(loss, **keywords))(x, y)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ALL)
def test_narrow_inputs_are_computed_in_float32(name, dtype):
    loss, x, y, keywords, _ = ALL[name]
    x, y = jnp.asarray(x, dtype), jnp.asarray(y)
    y = y.astype(dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y
    wide = [a.astype(jnp.float32) if a.dtype == dtype else a for a in (x, y)]
    got = loss(x, y, **keywords)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, loss(*wide, **keywords))


@pytest.mark.parametrize("name", ENTRYWISE)
def test_axis_of_an_entrywise_loss_is_summed_over(name):
    loss, x, y, keywords, expected = ENTRYWISE[name]
    x, y = single(x, y)
    for axis in (-1, 0, (0, 1), ()):
        want = expected.sum(axis) if axis != () else expected
        got = loss(x, y, axis=axis, **keywords)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_axis_of_a_whole_loss_says_where_the_classes_are(name):
    loss, x, y, keywords, expected = WHOLE[name]
    y = y.T if y.shape == x.shape else y
    got = loss(*single(x.T, y), axis=0, **keywords)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLASSWISE)
def test_axes_of_a_whole_loss_count_as_one(name):
    loss, x, y, keywords, expected = CLASSWISE[name]
    x, y = (a.reshape(3, 2, 2) for a in single(x, y))
    got = loss(x, y, axis=(1, -1), **keywords)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_reduction_weighs_the_examples_that_where_keeps(name):
    loss, x, y, keywords, expected = ALL[name]
    loss = functools.partial(loss, *single(x, y), **keywords)
    kept = RNG.uniform(size=expected.shape) > 0.4
    kept.flat[0] = True
    w = RNG.uniform(0.5, 2, size=expected.shape).astype(np.float32)
    left = np.where(kept, w * expected, 0)
    want = {"none": left, "sum": left.sum(), "mean": left.sum() / w[kept].sum()}
    for reduction, value in want.items():
        got = loss(where=kept, weights=w, reduction=reduction)
        np.testing.assert_allclose(got, value, rtol=3e-5, atol=1e-6)
    plain = loss(reduction="mean"), loss(where=kept, reduction="mean")
    np.testing.assert_allclose(plain[0], expected.mean(), rtol=3e-5)
    np.testing.assert_allclose(plain[1], expected[kept].mean(), rtol=3e-5)
    assert loss(where=np.zeros_like(kept), reduction="mean") == 0
    np.testing.assert_allclose(
        loss(weights=2.0, reduction="mean"), expected.mean(), rtol=3e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_what_where_leaves_out_is_exactly_zero_with_zero_gradient(name):
    loss, x, y, keywords, expected = ALL[name]
    x, y = single(x, y)
    is_soft = y.dtype == np.float32
    kept, w = np.ones(expected.shape, bool), np.ones(expected.shape, np.float32)
    kept[1], w[1] = False, np.nan

    def total(x, y, w):
        return loss(x, y, where=kept, weights=w, reduction="mean", **keywords)

    @jax.jit
    def both_modes(x, y, w):
        backward = jax.value_and_grad(total, (0, 1, 2) if is_soft else (0, 2))(x, y, w)
        forward = jax.jvp(lambda x: total(x, y, w), (x,), (jnp.ones_like(x),))
        return backward, forward

    for bad in (np.nan, np.inf, -np.inf):
        x[1], y[1] = bad, bad if is_soft else (y[1] if y.dtype == bool else -7)
        (value, gradients), (_, tangent) = both_modes(x, y, w)
        np.testing.assert_allclose(value, expected[kept].mean(), rtol=3e-5)
        for gradient in gradients:
            assert np.all(np.isfinite(gradient))
            np.testing.assert_array_equal(gradient[1], np.zeros_like(gradient[1]))
        np.testing.assert_allclose(tangent, gradients[0].sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ENTRYWISE)
def test_where_by_entry_leaves_entries_out_of_the_sum(name):
    loss, x, y, keywords, expected = ENTRYWISE[name]
    x, y = single(x, y)
    kept = RNG.uniform(size=x.shape) > 0.4
    kept[0], x[~kept] = False, np.nan
    got = loss(x, y, axis=-1, where=kept, **keywords)
    want = np.where(kept, expected, 0).sum(-1)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    mean = loss(x, y, axis=-1, where=kept, reduction="mean", **keywords)
    np.testing.assert_allclose(mean, want[1:].mean(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_where_by_entry_leaves_classes_out(name):
    loss, x, y, keywords, _ = WHOLE[name]
    x, y = single(x, y)
    kept = np.array([True, True, True, False])
    fewer = y if name in LABELLED else y[:, kept]
    loss = functools.partial(loss, **keywords)
    want = jax.jit(loss)(x[:, kept], fewer)
    x[:, 3] = np.nan
    left = functools.partial(loss, where=kept[None], reduction="sum")
    got, gradient = jax.jit(jax.value_and_grad(left))(x, y)
    np.testing.assert_allclose(got, want.sum(), rtol=2e-5)
    np.testing.assert_array_equal(gradient[:, 3], np.zeros(3))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_finite_difference_in_both_modes(name, x64):
    loss, x, y, keywords, _ = ALL[name]
    weights = np.arange(1.0, 1 + ALL[name][4].size).reshape(ALL[name][4].shape)
    total = functools.partial(loss, weights=weights, reduction="sum", **keywords)

    @jax.jit
    def both_modes(x, y, direction):
        _, tangent = jax.jvp(lambda x: total(x, y), (x,), (direction,))
        return total(x, y), tangent, jax.grad(total)(x, y)

    direction = np.random.default_rng(1).normal(size=x.shape)
    h = 1e-6
    above, below = (both_modes(x + s * direction, y, direction)[0] for s in (h, -h))
    slope = (above - below) / (2 * h)
    _, tangent, gradient = both_modes(x, y, direction)
    np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-7)
    np.testing.assert_allclose(tangent, slope, rtol=1e-7)


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivative_is_the_difference_of_gradients(name, x64):
    loss, x, y, keywords, _ = ALL[name]
    gradient = jax.grad(functools.partial(loss, reduction="sum", **keywords))

    @jax.jit
    def along(x, y, direction):
        _, tangent = jax.jvp(lambda x: gradient(x, y), (x,), (direction,))
        return gradient(x, y), tangent

    direction = np.random.default_rng(1).normal(size=x.shape)
    h = 1e-6
    above, below = (along(x + s * direction, y, direction)[0] for s in (h, -h))
    want = (above - below) / (2 * h)
    _, got = along(x, y, direction)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


def test_hyperparameters_may_be_tracers():
    x, y = single(REAL, UNIT)
    cases = [
        (L.huber, "delta", 0.7, y),
        (L.quantile, "level", 0.3, y),
        (L.focal, "gamma", 1.5, y),
        (L.focal, "alpha", 0.3, y),
        (L.focal, "label_smoothing", 0.3, y),
        (L.sigmoid_binary_cross_entropy, "label_smoothing", 0.3, y),
        (L.softmax_cross_entropy, "label_smoothing", 0.3, y),
        (INTEGER, "label_smoothing", 0.3, LABELS),
        (L.cosine_distance, "epsilon", 20.0, y),
        (L.smooth_l1, "beta", 0.7, y),
        (L.pseudo_huber, "delta", 0.7, y),
        (L.dice, "smooth", 0.3, y),
        (L.focal_tversky, "alpha", 0.3, y),
        (L.focal_tversky, "gamma", 1.5, y),
        (L.poly_cross_entropy, "epsilon", 0.5, y),
        (L.info_nce, "temperature", 0.5, y),
    ]
    for loss, name, value, target in cases:
        got = jax.jit(lambda v, f=loss, n=name, t=target: f(x, t, **{n: v}))(value)
        np.testing.assert_allclose(got, loss(x, target, **{name: value}), rtol=1e-6)


@functools.cache
def weighted_mean_and_slopes(name, is_soft):
    """Return a compiled program of x, y and weights."""
    loss, *_, keywords, _ = ALL[name]

    def total(x, y, w):
        return loss(x, y, weights=w, reduction="mean", **keywords)

    slopes = jax.grad(total, (0, 1) if is_soft else 0)
    return jax.jit(lambda *args: (total(*args), slopes(*args)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ALL)
def test_zero_weights_hide_values_and_targets_like_where(name, bad):
    _, x, y, _, expected = ALL[name]
    x, y = single(x, y)
    is_soft = y.dtype == np.float32
    kept = np.ones(expected.shape, bool)
    kept[1] = False
    total = weighted_mean_and_slopes(name, is_soft)
    w = kept.astype(np.float32)
    want = total(x, y, w)
    x[1], y[1] = bad, bad if is_soft else (y[1] if y.dtype == bool else -7)
    got = total(x, y, w)
    np.testing.assert_array_equal(got[0], want[0])
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_array_equal(a, b)

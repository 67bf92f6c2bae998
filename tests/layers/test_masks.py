"""What a mask hides affects neither values nor gradients, not even by 0 * inf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
import fngrad.models as models

LENGTH, CONTEXT, FEATURES = 4, 5, 4
X = np.asarray(jax.random.normal(jax.random.key(1), (LENGTH, FEATURES)))
OTHER = np.asarray(jax.random.normal(jax.random.key(2), (CONTEXT, FEATURES)))
# 3e38 is finite, and the sums of its products are not.
BAD = pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])


def spoilt(x, positions, bad):
    x = np.array(x)
    x[positions] = bad
    return x


@functools.cache
def programs(f):
    """Return value, gradients and tangent of f(params, x), as one program."""

    @jax.jit
    def both_modes(*primals):
        tangents = jax.tree.map(jnp.ones_like, primals)
        tangent = jax.jvp(f, primals, tangents)[1]
        return *jax.value_and_grad(f, (0, 1))(*primals), tangent

    return both_modes


def check_same(f, params, clean, dirty, hidden):
    """Compare value and gradients of f(params, x) where x is dirty in hidden places."""
    expected, (slopes, slope), tangent = programs(f)(params, clean)
    got, (dirty_slopes, dirty_slope), dirty_tangent = programs(f)(params, dirty)
    assert np.isfinite(expected)
    np.testing.assert_array_equal(got, expected)
    jax.tree.map(np.testing.assert_array_equal, dirty_slopes, slopes)
    np.testing.assert_array_equal(dirty_slope, slope)
    np.testing.assert_array_equal(np.asarray(dirty_slope)[hidden], 0)
    if np.all(np.isfinite(dirty)):
        return  # 3e38 itself has tangents that overflow
    np.testing.assert_array_equal(dirty_tangent, tangent)


CAUSAL = layers.multi_head_attention(FEATURES, 2, causal=True)
FREE = layers.multi_head_attention(FEATURES, 2)


@functools.cache
def params_of(layer):
    return jax.jit(layer.init)(0)


def first_two(params, x):
    return jnp.sum(CAUSAL.apply(params, x)[:2] ** 2)


@BAD
def test_causal_attention_hides_the_future(bad):
    check_same(first_two, params_of(CAUSAL), X, spoilt(X, [2, 3], bad), [2, 3])


def test_a_position_whose_logits_overflow_is_nan_alone():
    apply, params = jax.jit(CAUSAL.apply), params_of(CAUSAL)
    y = apply(params, spoilt(X, [3], 1e20 * X[3]))
    np.testing.assert_array_equal(y[:3], apply(params, X)[:3])
    assert np.isnan(y[3]).all()


def others(params, x):
    mask = np.ones((LENGTH, LENGTH), bool)
    mask[:, 1] = False
    y = CAUSAL.apply(params, x, mask=mask)
    return jnp.sum(y[np.array([0, 2, 3])] ** 2)


@BAD
def test_a_key_mask_hides_padding(bad):
    check_same(others, params_of(CAUSAL), X, spoilt(X, [1], bad), [1])


@functools.cache
def of_a_masked_context(per_head):
    mask = np.ones((2, LENGTH, CONTEXT) if per_head else (LENGTH, CONTEXT), bool)
    mask[..., [0, 4]] = False
    mask[..., 2, :] = False

    def total(params, context):
        y = FREE.apply(params, jnp.asarray(X), context=context, mask=mask)
        return jnp.sum(y**2)

    return total


@BAD
@pytest.mark.parametrize("per_head", [False, True])
def test_a_mask_hides_a_context(bad, per_head):
    dirty = spoilt(OTHER, [0, 4], bad)
    check_same(of_a_masked_context(per_head), params_of(FREE), OTHER, dirty, [0, 4])


def all_but_the_last(params, x):
    mask = np.ones((LENGTH, CONTEXT), bool)
    mask[3] = False
    return jnp.sum(FREE.apply(params, x, context=jnp.asarray(OTHER), mask=mask))


@BAD
def test_a_position_that_attends_to_nothing_may_hold_anything(bad):
    check_same(all_but_the_last, params_of(FREE), X, spoilt(X, [3], bad), [3])


@jax.jit
def causal_with_slopes(params, x):
    def total(params):
        y = CAUSAL.apply(params, x)
        return jnp.sum(y.astype(jnp.float32)), y

    return jax.grad(total, has_aux=True)(params)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_a_mask_does_not_hide_shows(bad, dtype):
    params = jax.tree.map(lambda a: a.astype(dtype), params_of(CAUSAL))
    slopes, y = causal_with_slopes(params, jnp.asarray(spoilt(X, [1], bad), dtype))
    np.testing.assert_array_equal(np.isnan(y).all(-1), [False, True, True, True])
    slopes = jax.tree.leaves(slopes)
    assert not all(np.isfinite(slope).all() for slope in slopes)


def test_a_mask_of_one_head_spoils_what_that_head_sees():
    mask = np.ones((2, LENGTH, CONTEXT), bool)
    mask[:, :, 1] = False
    mask[1, 2, 1] = True
    context = spoilt(OTHER, [1], np.nan)
    y = jax.jit(FREE.apply)(params_of(FREE), X, context=context, mask=mask)
    np.testing.assert_array_equal(np.isnan(y).all(-1), [False, False, True, False])


def test_a_mask_of_true_everywhere_changes_nothing():
    plain = jax.jit(FREE.apply)(params_of(FREE), X)
    everywhere = np.ones((LENGTH, LENGTH), bool)
    masked = jax.jit(FREE.apply)(params_of(FREE), X, mask=everywhere)
    np.testing.assert_allclose(plain, masked, rtol=1e-5, atol=1e-6)


SEQUENCES = {
    "gru": layers.gru(FEATURES, 3),
    "gru in reverse": layers.gru(FEATURES, 3, reverse=True),
    "lstm": layers.lstm(FEATURES, 3),
    "lstm in reverse": layers.lstm(FEATURES, 3, reverse=True),
    "rnn": models.rnn(FEATURES, [3, 3], 2),
    "rnn at every step": models.rnn(
        FEATURES, [3], 2, recurrent=layers.lstm, every_step=True
    ),
}


@functools.cache
def of_a_padded_sequence(name):
    layer = SEQUENCES[name]

    def total(params, x):
        return jnp.sum(layer.apply(params, x, length=jnp.int32(2)) ** 2)

    return total


@BAD
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith("rnn"))
        for name in SEQUENCES
    ],
)
def test_padding_of_a_sequence_may_hold_anything(name, bad):
    params = params_of(SEQUENCES[name])
    dirty = spoilt(X, [2, 3], bad)
    check_same(of_a_padded_sequence(name), params, X, dirty, [2, 3])


@pytest.mark.parametrize("name", ["gru", "rnn"])
def test_each_example_of_a_batch_has_its_own_padding(name):
    layer = SEQUENCES[name]
    together = layers.batched(layer)
    lengths = jnp.array([2, 4])
    x = np.stack([X, X + 1])
    dirty = x.copy()
    dirty[0, 2:] = np.nan

    def total(params, x):
        return jnp.sum(together(params, x, length=lengths) ** 2)

    check_same(total, params_of(layer), x, dirty, (0, [2, 3]))

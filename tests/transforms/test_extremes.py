"""Rules that use norms of updates, where squares overflow or underflow."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

SIZES = [1e-30, 1e-20, 1e20, 1e30, 1e36]
DIRECTION = np.array([[3.0, 4.0], [12.0, -84.0]]) / 85.0  # of norm one


def once(rule, gradient, params=None):
    params = jnp.zeros_like(gradient) if params is None else params
    return rule.update(gradient, rule.init(params), params)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["norm", "global_norm", "block_rms", "adaptive"])
def test_a_clip_gives_its_bound_at_any_size(name, size):
    gradient = jnp.asarray(size * DIRECTION, jnp.float32)
    bound = size / 8
    rule, length = {
        "norm": (fg.clip_by_norm(bound), bound),
        "global_norm": (fg.clip_by_global_norm(bound), bound),
        "block_rms": (fg.clip_by_block_rms(bound), 2 * bound),
        "adaptive": (fg.adaptive_clip(0.25, eps=size / 2, axis=(0, 1)), size / 8),
    }[name]
    got = once(rule, gradient)
    np.testing.assert_allclose(got / length, DIRECTION, rtol=1e-6)


@pytest.mark.parametrize("bound", [1.0, 1e-12])
@pytest.mark.parametrize("shape", [(1000,), (30, 4)])
@pytest.mark.parametrize("name", ["norm", "global_norm", "block_rms", "adaptive"])
def test_a_clip_gives_its_bound_where_the_norm_itself_overflows(name, shape, bound):
    gradient = jnp.full(shape, 3e38)
    axes = tuple(range(len(shape)))
    rule, length = {
        "norm": (fg.clip_by_norm(bound), bound),
        "global_norm": (fg.clip_by_global_norm(bound), bound),
        "block_rms": (fg.clip_by_block_rms(bound), bound * gradient.size**0.5),
        "adaptive": (fg.adaptive_clip(bound, eps=1.0, axis=axes), bound),
    }[name]
    expected = np.full(shape, length / gradient.size**0.5)
    np.testing.assert_allclose(once(rule, gradient), expected, rtol=1e-5)


def test_a_unit_that_explodes_leaves_the_clip_of_the_others_alone():
    gradient = jnp.array([[1e25, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    got = once(fg.adaptive_clip(0.1), gradient, jnp.ones_like(gradient))
    np.testing.assert_allclose(got[:, 1], 0.1, rtol=1e-6)
    np.testing.assert_allclose(got[:, 0], [0.2, 0.0, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("make", [fg.momentum, fg.muon])
def test_sums_of_gradients_saturate_and_decay_again(make, nesterov):
    rule, params = make(1e-3, nesterov=nesterov), jnp.ones((2, 2))
    state = rule.init(params)
    for _ in range(4):
        updates, state = rule.update(jnp.full((2, 2), 2e38), state, params)
        assert jnp.all(jnp.isfinite(updates))
    largest = jnp.max(jnp.abs(updates))
    for _ in range(3):
        updates, state = rule.update(jnp.ones((2, 2)), state, params)
        assert jnp.all(jnp.isfinite(updates) & (updates < 0))
    assert jnp.max(jnp.abs(updates)) <= largest * 1.01


@pytest.mark.parametrize("bound", [1e-3, 1.0])
def test_a_clip_reaches_a_bound_far_below(bound):
    gradient = jnp.asarray(1e36 * DIRECTION, jnp.float32)
    got = once(fg.clip_by_norm(bound), gradient)
    np.testing.assert_allclose(got, bound * DIRECTION, rtol=1e-6)


@pytest.mark.parametrize("size", [1e20, 1e30, 1e36])
@pytest.mark.parametrize("name", ["scale_by_block_norm", "scale_by_muon"])
def test_a_rule_that_normalises_a_leaf_does_not_see_its_size(name, size):
    rule = getattr(fg, name)(eps=0.0)
    want = once(rule, jnp.asarray(DIRECTION, jnp.float32))
    got = once(rule, jnp.asarray(size * DIRECTION, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_adam_steps_by_the_learning_rate_and_its_moments_decay_again(size, dtype):
    adam, gradient = fg.adam(0.1), jnp.full(3, -size, dtype)
    params = jnp.zeros(3, dtype)
    state = adam.init(params)
    updates, state = adam.update(gradient, state, params)
    np.testing.assert_allclose(updates, np.full(3, 0.1), rtol=1e-5)
    highest = state["scale_by_adam"].nu
    assert np.all(np.isfinite(highest))
    _, state = adam.update(0 * gradient, state, params)
    np.testing.assert_allclose(state["scale_by_adam"].nu, 0.999 * highest, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_not_finite_stays_visible(bad):
    gradient = jnp.array([1.0, bad])
    for rule in (fg.adam(0.1), fg.rmsprop(0.1), fg.adagrad(0.1), fg.novograd(0.1)):
        assert not bool(jnp.all(jnp.isfinite(once(rule, gradient))))


@pytest.mark.parametrize("size", [1.0, 1e20, 1e30])
def test_one_step_of_shampoo_is_the_polar_factor_at_any_size(size):
    matrix = np.random.default_rng(1).normal(size=(3, 3))
    u, _, vt = np.linalg.svd(matrix)
    shampoo = fg.shampoo(1.0, eps=0.0)
    got = once(shampoo, jnp.asarray(size * matrix, jnp.float32))
    np.testing.assert_allclose(got, -u @ vt, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.complex64, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_orthogonalize_gives_the_polar_factor_in_every_dtype(dtype, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) + np.eye(*shape)
    if dtype == jnp.complex64:
        x = x + 1j * rng.normal(size=shape)
    low = jnp.asarray(100 * x).astype(dtype)
    wide = np.asarray(low, np.complex128 if dtype == jnp.complex64 else np.float64)
    u, _, vt = np.linalg.svd(wide, full_matrices=False)
    got = fg.orthogonalize(low, (1.5, -0.5, 0.0), ns_steps=25)
    assert got.dtype == dtype
    slack = 1e-4 if dtype == jnp.complex64 else 10 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(got, wide.dtype), u @ vt, atol=slack)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_cautious_compares_signs_at_any_size(size, dtype):
    rule = fg.cautious(fg.scale(-1.0))
    gradient = jnp.array([size, -size, 2 * size], dtype)
    np.testing.assert_allclose(once(rule, gradient), -3 / 4 * gradient, rtol=1e-6)
    assert not np.any(once(fg.cautious(fg.scale(1.0)), gradient))


@pytest.mark.parametrize("size", [1.0, 1e20])
def test_a_line_search_moves_where_the_slope_does_not_fit(size):
    def loss_fn(w, batch):
        return size * jnp.sum(w**2) / 2

    step = fg.steps.line_search(
        loss_fn, fg.sgd(1.0), max_learning_rate=0.5 / size, max_evaluations=10
    )
    state = fg.init_state(jnp.array([1.0, -2.0]), fg.sgd(1.0), key=0)
    state, metrics = step(state, None)
    np.testing.assert_allclose(metrics["step_length"] * size, 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.params, [0.5, -1.0], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_polyak_step_is_right_at_any_size(size):
    step = fg.steps.polyak(
        lambda w, batch: size * jnp.sum(w**2), max_learning_rate=1e30
    )
    state = fg.init_state(jnp.array([1.0, 0.0]), fg.sgd(1.0), key=0)
    state, metrics = step(state, None)
    np.testing.assert_allclose(metrics["step_length"] * size, 0.25, rtol=1e-5)
    np.testing.assert_allclose(state.params, [0.5, 0.0], rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e38, 2.4e38])
def test_a_polyak_step_is_right_where_its_length_does_not_fit(size):
    start = np.array([0.5, -0.25, 0.125, 0.5])
    step = fg.steps.polyak(
        lambda w, batch: size * jnp.sum(w**2), max_learning_rate=1e30
    )
    state, _ = step(fg.init_state(jnp.array(start), fg.sgd(1.0), key=0), None)
    np.testing.assert_allclose(state.params, start / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 2.4e38])
def test_sharpness_is_looked_for_at_its_radius_at_any_size(size):
    start = np.array([0.5, -0.25, 0.125, 0.5])
    uphill = start * (1 + 0.1 / np.linalg.norm(start))
    step = fg.steps.sam(lambda w, _: size * jnp.sum(w**2), fg.sgd(0.0), rho=0.1)
    _, metrics = step(fg.init_state(jnp.array(start), fg.sgd(0.0), key=0), None)
    rise = np.sum(uphill**2) - np.sum(start**2)
    np.testing.assert_allclose(metrics["sharpness"] / size, rise, rtol=1e-5)


def test_the_mean_of_huge_updates_is_removed():
    gradient = jnp.array([[3e38, 1e38], [2e38, 3e38], [1e38, -3e38]])
    got = once(fg.centralize(), gradient)
    want = np.array([[1.0, 2 / 3], [0.0, 8 / 3], [-1.0, -10 / 3]])
    np.testing.assert_allclose(np.asarray(got) / 1e38, want, rtol=1e-5, atol=1e-5)


def test_a_graft_has_the_norm_of_the_gradient_where_that_does_not_fit():
    gradient = jnp.full((4, 3), 3e38)
    got = once(fg.scale_by_shampoo(graft="sgd"), gradient)
    np.testing.assert_allclose(np.asarray(got) / 3e38, np.ones((4, 3)), rtol=1e-3)


def test_the_mean_of_huge_updates_of_both_signs_is_removed():
    signs = np.where(np.random.default_rng(0).random((256, 2)) < 0.5, -1.0, 1.0)
    got = once(fg.centralize(), jnp.asarray(3e38 * signs, jnp.float32))
    want = 3e38 * (signs - signs.mean(0))
    largest = float(jnp.finfo(jnp.float32).max)
    np.testing.assert_allclose(got, np.clip(want, -largest, largest), rtol=1e-5)


def test_a_clip_of_blocks_enlarges_nothing():
    updates = jnp.full((2, 3), 3e38)
    np.testing.assert_allclose(once(fg.clip_by_block_rms(3.3e38), updates), updates)
    np.testing.assert_allclose(once(fg.clip_by_block_rms(1e38), updates), 1e38, 1e-6)

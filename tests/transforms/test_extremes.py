"""Transforms that measure updates, where squares do not fit into float32."""

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


@pytest.mark.parametrize("bound", [1e-3, 1.0])
def test_a_clip_reaches_a_bound_far_below(bound):
    gradient = jnp.asarray(1e36 * DIRECTION, jnp.float32)
    got = once(fg.clip_by_norm(bound), gradient)
    np.testing.assert_allclose(got, bound * DIRECTION, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_cautious_compares_signs_at_any_size(size, dtype):
    rule = fg.cautious(fg.scale(-1.0))
    gradient = jnp.array([size, -size, 2 * size], dtype)
    np.testing.assert_allclose(once(rule, gradient), -3 / 4 * gradient, rtol=1e-6)
    assert not np.any(once(fg.cautious(fg.scale(1.0)), gradient))


def test_the_mean_of_huge_updates_is_removed():
    gradient = jnp.array([[3e38, 1e38], [2e38, 3e38], [1e38, -3e38]])
    got = once(fg.centralize(), gradient)
    want = np.array([[1.0, 2 / 3], [0.0, 8 / 3], [-1.0, -10 / 3]])
    np.testing.assert_allclose(np.asarray(got) / 1e38, want, rtol=1e-5, atol=1e-5)


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

"""Clips keep their bounds and change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.transforms.clipping import (
    adaptive_clip,
    centralize,
    clip,
    clip_by_global_norm,
    clip_by_norm,
)
from fngrad.transforms.core import report

PARAMS = {
    "kernel": jnp.linspace(-1.0, 1.0, 36).reshape(3, 2, 2, 3),
    "weight": jnp.linspace(-0.5, 1.0, 6).reshape(3, 2),
    "bias": jnp.array([0.1, 0.0, -3.0]),
}
GRADIENTS = jax.tree.map(lambda p: 2 * jnp.cos(7 * p) - 0.3, PARAMS)
CLIPS = {
    "clip": lambda bound: clip(bound),
    "clip_by_norm": lambda bound: clip_by_norm(bound),
    "clip_by_global_norm": lambda bound: clip_by_global_norm(bound),
    "adaptive_clip": lambda bound: adaptive_clip(bound),
}
each_clip = pytest.mark.parametrize("name", CLIPS)


def apply(transform, updates, params=PARAMS):
    def first(updates, params):
        return transform.update(updates, transform.init(params), params)[0]

    return jax.jit(first)(updates, params)


def assert_trees(compare, a, b):
    jax.tree.map(compare, a, b)


@each_clip
def test_updates_within_the_bound_keep_their_bits(name):
    updates = {**GRADIENTS, "bias": jnp.array([-0.0, 1e-30, 2e-38])}
    clipped = apply(CLIPS[name](1e6), updates)
    for got, want in zip(
        jax.tree.leaves(clipped), jax.tree.leaves(updates), strict=True
    ):
        assert got.tobytes() == want.tobytes()


@each_clip
def test_clipping_twice_is_clipping_once(name):
    transform = CLIPS[name](0.1)
    once = apply(transform, GRADIENTS)
    assert not np.allclose(once["weight"], GRADIENTS["weight"])
    assert_trees(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7),
        apply(transform, once),
        once,
    )


@each_clip
@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_zero_stays_zero_with_a_finite_derivative(name, bound):
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    transform = CLIPS[name](bound)

    def total(updates):
        clipped = apply(transform, updates)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(clipped)), clipped

    slopes, clipped = jax.jit(jax.grad(total, has_aux=True))(zeros)
    assert_trees(np.testing.assert_array_equal, clipped, zeros)
    for leaf in jax.tree.leaves(slopes):
        assert np.all(np.isfinite(leaf))


@each_clip
def test_a_nan_passes(name):
    poisoned = {**GRADIENTS, "bias": jnp.array([0.0, jnp.nan, 1.0])}
    assert np.isnan(apply(CLIPS[name](0.1), poisoned)["bias"][1])


@each_clip
def test_a_clip_refuses_a_schedule(name):
    with pytest.raises(TypeError, match="counts no steps and takes no schedule"):
        apply(CLIPS[name](lambda step: 1.0), GRADIENTS)


@each_clip
def test_a_negative_bound_is_refused(name):
    with pytest.raises(ValueError, match=r"need 0.0 <= \w+ <= inf, got \w+=-1.0"):
        CLIPS[name](-1.0)


def test_clip_bounds_each_entry():
    clipped = apply(clip(0.5), GRADIENTS)
    assert_trees(
        lambda got, g: np.testing.assert_array_equal(got, np.clip(g, -0.5, 0.5)),
        clipped,
        GRADIENTS,
    )


def test_clip_bounds_the_modulus_of_complex_entries():
    clipped = apply(clip(1.0), jnp.array([3 + 4j, 0.1j]), jnp.ones(2, jnp.complex64))
    np.testing.assert_allclose(clipped, [0.6 + 0.8j, 0.1j], rtol=1e-6)


def test_clip_by_norm_bounds_each_leaf():
    updates = {"small": jnp.array([0.3]), "large": jnp.array([3.0, 4.0])}
    clipped = apply(clip_by_norm(1.0), updates, updates)
    np.testing.assert_array_equal(clipped["small"], updates["small"])
    np.testing.assert_allclose(clipped["large"], [0.6, 0.8], rtol=1e-6)


def test_clip_by_global_norm_keeps_the_direction():
    clipped = apply(clip_by_global_norm(0.5), GRADIENTS)
    np.testing.assert_allclose(tree.norm(clipped), 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        tree.vdot(clipped, GRADIENTS), 0.5 * tree.norm(GRADIENTS), rtol=1e-6
    )


@pytest.mark.parametrize(("bound", "after"), [(0.5, 0.5), (100.0, 5.0)])
def test_clip_by_global_norm_reports_the_norm_before_and_after(bound, after):
    transform = clip_by_global_norm(bound)
    gradient = jnp.array([3.0, 4.0])
    told = report(transform, gradient, transform.init(gradient), gradient)
    assert told.keys() == {
        "clip_by_global_norm/norm_before",
        "clip_by_global_norm/norm_after",
    }
    assert told["clip_by_global_norm/norm_before"] == 5.0
    assert told["clip_by_global_norm/norm_after"] == after


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ()),
        ((4,), (0,)),
        ((3, 5), (0,)),
        ((1, 5), (0, 1)),
        ((3, 2, 4), (0, 1)),
        ((3, 2, 2, 4), (0, 1, 2)),
    ],
)
def test_adaptive_clip_bounds_each_unit_by_its_parameters(shape, axes):
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=shape) * 10.0 ** rng.integers(-5, 1), rng.normal(size=shape)

    def norm(x):
        return np.sqrt(np.sum(x**2, axis=axes, keepdims=True))

    bound = 0.05 * np.maximum(norm(w), 1e-3)
    want = np.where(norm(g) > bound, g * bound / norm(g), g)
    got = apply(adaptive_clip(0.05), jnp.asarray(g, float), jnp.asarray(w, float))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_adaptive_clip_accepts_other_axes():
    w, g = jnp.ones((3, 2, 4)), jnp.arange(24.0).reshape(3, 2, 4)
    got = apply(adaptive_clip(0.1, axis=0), g, w)
    each = apply(adaptive_clip(0.1), g.reshape(3, 8), w.reshape(3, 8))
    np.testing.assert_allclose(got, each.reshape(3, 2, 4), rtol=1e-6)
    pair = apply(adaptive_clip(0.1, axis=[0, 1]), g, w)
    np.testing.assert_array_equal(pair, apply(adaptive_clip(0.1), g, w))


def test_adaptive_clip_gives_a_unit_of_zeros_the_norm_epsilon():
    got = apply(adaptive_clip(0.1, eps=0.5), jnp.array([3.0, 4.0]), jnp.zeros(2))
    np.testing.assert_allclose(got, [0.03, 0.04], rtol=1e-6)


def test_centralize_subtracts_the_mean_over_the_inputs_of_each_output():
    centered = apply(centralize(), GRADIENTS)
    np.testing.assert_array_equal(centered["bias"], GRADIENTS["bias"])
    for name in ("weight", "kernel"):
        axes = tuple(range(centered[name].ndim - 1))
        np.testing.assert_allclose(centered[name].mean(axes), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        centered["weight"][0] - centered["weight"][1],
        GRADIENTS["weight"][0] - GRADIENTS["weight"][1],
        rtol=1e-5,
    )

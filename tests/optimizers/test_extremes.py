"""Every optimizer at gradients whose squares do not fit into float32."""

import functools

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.tree as tree
from fngrad.optimizers import REGISTRY
from fngrad.transforms.core import apply_updates

SIZES = [1e-30, 1e-20, 1e20, 1e30]
# Their updates are differences of parameters: after a step of 1e20, an ordinary step
# in float32 lies below the last place of the parameters.
ABSORBED = (
    *("schedule_free_sgd", "schedule_free_adamw", "schedule_free_radam"),
    "dadapt_sgd",
)
SHAPES = {"matrix": (4, 3), "vector": (3,)}


@functools.cache
def compiled(name):
    optimizer = REGISTRY[name](0.1)
    return optimizer, jax.jit(optimizer.update)


def is_finite(a):
    floats = [x for x in jax.tree.leaves(a) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.all(jnp.isfinite(x))) for x in floats)


@pytest.mark.parametrize("position", ["first", "second"])
@pytest.mark.parametrize("name", REGISTRY)
def test_one_gradient_of_any_finite_size_leaves_updates_and_state_finite(
    name, position
):
    """The ordinary gradients that follow move the parameters again."""
    optimizer, update = compiled(name)
    for size in SIZES:
        scales = [size, 1.0] if position == "first" else [1.0, size]
        rng = np.random.default_rng(0)
        params = {k: jnp.ones(shape) for k, shape in SHAPES.items()}
        state = optimizer.init(params)
        for scale in [*scales, 1.0, 1.0, 1.0]:
            gradient = {
                k: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
                for k, shape in SHAPES.items()
            }
            updates, state = update(gradient, state, params)
            params = apply_updates(params, updates)
            assert is_finite(updates), size
            assert is_finite(state), size
        assert float(tree.norm(updates)) > 0 or name in ABSORBED, size


RULES = {
    **{
        name: lambda factory=factory: factory(0.1) for name, factory in REGISTRY.items()
    },
    "layerwise dog": lambda: fg.dog(layerwise=True),
    "dog by a rate": lambda: fg.dog(init_step=("learning_rate", 0.1)),
    "lars with decay": lambda: fg.lars(0.1, 0.1),
    "lars of two norms": lambda: fg.lars(0.1, 0.1, separate_norms=True),
    "trust ratio": lambda: fg.scale_by_trust_ratio(0.1, 0.001, 1.0),
    "lbfgs": lambda: fg.lbfgs(0.1),
    "sophia": lambda: fg.sophia(0.1),
    "clipped sgd": lambda: fg.chain(fg.clip_by_global_norm(1.0), fg.sgd(0.1)),
    "came of binary decays": lambda: fg.came(0.1, 0.5, 0.75, 0.875),
    "cautious sgd": lambda: fg.cautious(fg.sgd(0.1)),
}
# The first update that is not zero.
LATE = {"soap": 1, "adopt": 1, "schedule_free_radam": 4}
NOT_IN_FLOAT32 = {
    "no quotient: a gradient counts as the largest whose square fits": {
        *((name, size) for name in ("radam", "madgrad") for size in (1e30, 3e38))
    },
    "moments of the estimate times the gradient, below the smallest float": {
        *((name, 1e-30) for name in ("prodigy", "dadapt_adamw"))
    },
    "no bias correction: 1 - 0.9999 has four digits": {
        *(("came", size) for size in (1e-30, 1.0, 1e30, 3e38))
    },
}


def updates_of(optimizer, update, params, gradient, dtype, count):
    params, gradient = (
        {k: jnp.asarray(x, dtype) for k, x in a.items()} for a in (params, gradient)
    )
    state, seen = optimizer.init(params), []
    for _ in range(count):
        updates, state = update(gradient, state, params)
        seen.append(np.concatenate([np.ravel(x) for x in updates.values()]))
    return seen


@pytest.mark.parametrize("name", RULES)
def test_an_update_is_that_of_float64_at_any_finite_size(name):
    """This includes leaves whose norm is larger than the largest float."""
    rng, optimizer = np.random.default_rng(0), RULES[name]()
    starts_at = 0.0 if name in ABSORBED else 1.0
    params = {k: np.full(shape, starts_at) for k, shape in SHAPES.items()}
    directions = {k: np.clip(rng.normal(size=s), -1, 1) for k, s in SHAPES.items()}
    narrow = compiled(name)[1] if name in REGISTRY else jax.jit(optimizer.update)
    wide = jax.jit(optimizer.update)
    for size in (1e-30, 1.0, 1e30, 3e38):
        if any((name, size) in cases for cases in NOT_IN_FLOAT32.values()):
            continue
        gradient = {k: np.float32(size * x) for k, x in directions.items()}
        count = 1 + LATE.get(name, 0)
        got = updates_of(optimizer, narrow, params, gradient, jnp.float32, count)
        with float64_mode.x64():
            want = updates_of(optimizer, wide, params, gradient, jnp.float64, count)
        got, want = got[-1], want[-1]
        largest = np.max(np.abs(want))
        assert largest > 0, size
        np.testing.assert_allclose(got / largest, want / largest, atol=3e-5, rtol=0)


@pytest.mark.parametrize("size", [1.0, 1e20, 1e36])
def test_lbfgs_takes_the_same_steps_at_any_curvature(size):
    """The first step has length at most one, and later steps use the curvature."""
    optimizer, curvatures = fg.lbfgs(0.5), np.array([1.0, 4.0, 20.0])
    update = jax.jit(optimizer.update)

    def visited(size, dtype):
        w, seen = jnp.ones(3, dtype), []
        state = optimizer.init(w)
        for _ in range(4):
            gradient = jnp.asarray(size * curvatures, dtype) * w
            updates, state = update(gradient, state, w)
            w = apply_updates(w, updates)
            seen.append(np.asarray(w))
        return seen

    got = visited(size, jnp.float32)
    with float64_mode.x64():
        want = visited(size, jnp.float64)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


DIRECTION = np.array([[3.0, 4.0], [12.0, -84.0]]) / 85.0  # of norm one


def once(rule, gradient, params=None):
    params = jnp.zeros_like(gradient) if params is None else params
    return rule.update(gradient, rule.init(params), params)[0]


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


@pytest.mark.parametrize("size", [1e20, 1e30, 1e36])
@pytest.mark.parametrize("name", ["scale_by_block_norm", "scale_by_muon"])
def test_a_rule_that_normalises_a_leaf_does_not_depend_on_its_size(name, size):
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
def test_a_nonfinite_gradient_gives_nonfinite_updates(bad):
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


def test_a_graft_has_the_norm_of_the_gradient_where_the_norm_overflows():
    gradient = jnp.full((4, 3), 3e38)
    got = once(fg.scale_by_shampoo(graft="sgd"), gradient)
    np.testing.assert_allclose(np.asarray(got) / 3e38, np.ones((4, 3)), rtol=1e-3)

"""Every optimizer at gradients whose squares do not fit into float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

import fngrad as fg
import fngrad.tree as tree
from fngrad.optimizers import REGISTRY
from fngrad.transforms.core import apply_updates

SIZES = [1e-30, 1e-20, 1e20, 1e30]
# Their updates are differences of parameters: in float32 an ordinary step that comes
# after one of 1e20 lies below the last place of what it is added to.
ABSORBED = ("schedule_free_sgd", "schedule_free_adamw", "dadapt_sgd")
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
    """And the ordinary gradients that follow move the parameters again."""
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
    "cautious sgd": lambda: fg.cautious(fg.sgd(0.1)),
}
LATE = ("soap", "adopt")  # the first update is zero
NOT_IN_FLOAT32 = {
    "no quotient: a gradient counts as the largest whose square fits": {
        *((name, size) for name in ("radam", "madgrad") for size in (1e30, 3e38))
    },
    "moments of the estimate times the gradient, below the smallest float": {
        *((name, 1e-30) for name in ("prodigy", "dadapt_adamw"))
    },
}


def updates_of(optimizer, update, params, gradient, dtype):
    params, gradient = (
        {k: jnp.asarray(x, dtype) for k, x in a.items()} for a in (params, gradient)
    )
    state, seen = optimizer.init(params), []
    for _ in range(2):
        updates, state = update(gradient, state, params)
        seen.append(np.concatenate([np.ravel(x) for x in updates.values()]))
    return seen


@pytest.mark.parametrize("name", RULES)
def test_an_update_is_that_of_float64_at_any_finite_size(name):
    """Also where the norm of a leaf is larger than the largest float."""
    rng, optimizer = np.random.default_rng(0), RULES[name]()
    starts_at = 0.0 if name in ABSORBED else 1.0
    params = {k: np.full(shape, starts_at) for k, shape in SHAPES.items()}
    directions = {k: np.clip(rng.normal(size=s), -1, 1) for k, s in SHAPES.items()}
    narrow, wide = jax.jit(optimizer.update), jax.jit(optimizer.update)
    for size in (1e-30, 1.0, 1e30, 3e38):
        if any((name, size) in cases for cases in NOT_IN_FLOAT32.values()):
            continue
        gradient = {k: np.float32(size * x) for k, x in directions.items()}
        got = updates_of(optimizer, narrow, params, gradient, jnp.float32)
        with precision.x64():
            want = updates_of(optimizer, wide, params, gradient, jnp.float64)
        got, want = (x[name in LATE] for x in (got, want))
        largest = np.max(np.abs(want))
        assert largest > 0, size
        np.testing.assert_allclose(got / largest, want / largest, atol=3e-5, rtol=0)


@pytest.mark.parametrize("size", [1.0, 1e20, 1e36])
def test_lbfgs_takes_the_same_steps_at_any_curvature(size):
    """The first is no longer than one, the others know the curvature."""
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
    with precision.x64():
        want = visited(size, jnp.float64)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)

"""Every optimizer at gradients whose squares do not fit into float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

"""Rules of whole matrices without a mesh, and on axes that JAX places itself."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad as fg

RULES = ["muon", "shampoo", "soap"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("stacked", [False, True])
def test_without_a_mesh_nothing_is_constrained(name, stacked):
    optimizer = getattr(fg, name)(0.1)
    optimizer = fg.stack_leaves(optimizer) if stacked else optimizer
    params = [jnp.ones((2, 3))] * 8
    state = optimizer.init(params)
    for update in (optimizer.update, jax.vmap(optimizer.update, (0, None, 0))):
        given = params if update is optimizer.update else [x[None] for x in params]
        text = str(jax.make_jaxpr(update)(given, state, given))
        assert "sharding_constraint" not in text


@pytest.mark.parametrize("name", RULES)
def test_explicit_axes_are_left_to_jax(name):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    params = jax.device_put([jnp.ones((2, 3))] * 2, NamedSharding(mesh, P()))
    for optimizer in (getattr(fg, name)(0.1), fg.stack_leaves(getattr(fg, name)(0.1))):
        state = optimizer.init(params)
        jax.eval_shape(optimizer.update, params, state, params)

"""Runs and sweeps in the context of `jax.set_mesh` are those outside of it."""

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import fngrad as fg
import fngrad.sharding as sharding

MESH = sharding.make_mesh(data=8)
EXPLICIT = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
RULE = eight_devices.FSDP
MODEL = fg.models.mlp([16, 32, 8])
OPTIMIZER = fg.adam(0.01)
X = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
ARRAYS = {"x": X, "y": np.sin(X[:, :8])}
QUIET = {"progress": False}


def loss_fn(params, batch):
    outputs = jax.vmap(MODEL.apply, (None, 0))(params, batch["x"])
    return jnp.mean((outputs - batch["y"]) ** 2)


STEP = fg.make_step(loss_fn, OPTIMIZER, rule=RULE)


def data():
    return fg.data.from_arrays(ARRAYS, 16, seed=1)


def first_state():
    return fg.init_state(MODEL.init(jax.random.key(0)), OPTIMIZER, key=0)


@pytest.mark.parametrize("mesh", [None, MESH], ids=["of the context", "given"])
def test_a_state_that_jax_made_whole_is_split_by_the_rule(mesh):
    want = fg.fit(STEP, first_state(), data(), num_steps=2, mesh=MESH, **QUIET)
    with jax.set_mesh(MESH):
        state = first_state()
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
        result = fg.fit(STEP, state, data(), num_steps=2, mesh=mesh, **QUIET)
    where = sharding.shardings(result.state, MESH, RULE)
    for leaf, place in zip(
        jax.tree.leaves(result.state), jax.tree.leaves(where), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    np.testing.assert_allclose(result.history["loss"], want.history["loss"], rtol=1e-6)


def test_a_state_that_is_split_otherwise_is_refused():
    other = sharding.shard_state(first_state(), MESH, sharding.fsdp(min_size=1))
    whole = sharding.shard_state(first_state(), MESH)
    mixed = whole._replace(params=other.params)
    for state in (other, mixed):
        with pytest.raises(ValueError, match="split as the step's rule splits it"):
            fg.fit(STEP, state, data(), num_steps=2, **QUIET)


def train(point, key, data):
    optimizer = fg.adam(point["lr"])
    state = fg.init_state(MODEL.init(key), optimizer, key)
    step = fg.make_step(loss_fn, optimizer, rule=RULE)
    return fg.run(step, state, data, 3)


def swept():
    return fg.sweep(
        train,
        fg.sweeps.grid(lr=[0.01, 0.1]),
        keys=2,
        metric=("loss", "min"),
        args=(data(),),
        **QUIET,
    ).history["loss"]


@pytest.mark.parametrize("mesh", [MESH, EXPLICIT], ids=["auto", "explicit"])
def test_a_sweep_of_a_step_with_a_rule_is_that_without_a_mesh(mesh):
    want = swept()
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(swept(), want)

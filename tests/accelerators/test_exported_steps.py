"""A step that is exported: its shardings, its donation, its values."""

import dataclasses
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import planned_networks
import pytest
from jax.sharding import PartitionSpec as P

import fngrad as fg
from fngrad.accelerators.exported_steps import pickled, placed_step, write_request

FSDP = fg.sharding.fsdp(min_size=1)


@pytest.fixture(scope="module")
def split():
    made = planned_networks.mlp(rule=FSDP)
    return placed_step(*made, {"data": 4, "model": 2})


def test_the_state_is_where_the_rule_says_and_the_batch_is_split(split):
    assert split.rule == FSDP
    weight = split.state["params/layers/0/weight"]
    assert weight.sharding.spec == P(None, "data")
    assert split.state["step"].sharding.spec == P()
    assert {x.sharding.spec for x in split.batch.values()} == {P("data")}
    assert dict(split.mesh.shape) == {"data": 4, "model": 2}


def test_constraints_and_donation_are_in_the_program(split):
    text = split.exported("tpu").mlir_module()
    assert text.count("sdy.sharding_constraint") > 10
    head = next(line for line in text.splitlines() if "func public @main" in line)
    assert head.count("jax.buffer_donor = true") == len(split.state)
    assert '[{}, {"data"}]' in head


def test_a_step_without_a_rule_is_whole_on_each_device():
    found = placed_step(*planned_networks.mlp(), {"data": 8})
    assert found.rule is None
    assert all(x.sharding.is_fully_replicated for x in found.state.values())


class Mine(NamedTuple):
    """A type that another process does not know."""

    w: jax.Array


def raw(x):
    """Return the data of a key; anything else as it is."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_the_exported_program_computes_the_step(kind):
    def loss_fn(params, batch, key):
        noise = jax.random.normal(key, batch.shape)
        return jnp.mean((batch * params.w[None] + noise) ** 2)

    optimizer = fg.adam(0.1)
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state(
        Mine(jnp.arange(3.0)), optimizer, jax.random.key(5, impl=kind)
    )
    batch = jnp.ones((4, 3))
    placed = placed_step(step, state, batch, {"data": 1})
    exported = dataclasses.replace(placed.exported("cpu"), _get_vjp=None)
    data = pickled(exported)
    assert b"Mine" not in data
    leaves = tuple(map(raw, jax.tree.leaves(state))), (batch,)
    new, metrics = jax.jit(pickle.loads(data).call)(*leaves)
    expected = jax.jit(step)(state, batch)
    for got, wanted in zip(new, jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(got, raw(wanted), rtol=1e-6)
    expected_metrics = jax.tree.leaves(expected[1])
    np.testing.assert_allclose(np.array(metrics), np.array(expected_metrics), rtol=1e-6)


def test_a_request_holds_all_that_the_worker_needs(tmp_path, split):
    write_request(tmp_path / "request.pickle", split, {"platform": "tpu"})
    request = pickle.loads((tmp_path / "request.pickle").read_bytes())
    assert request["axes"] == {"data": 4, "model": 2}
    assert request["topology"] == {"platform": "tpu"}
    assert [shape for shape, _, _ in request["batch"]] == [(128, 64), (128,)]
    assert [spec for _, _, spec in request["batch"]] == [P("data"), P("data")]
    assert len(request["state"]) == len(split.state)
    assert request["x64"] is False


def test_arrays_and_their_shapes_make_one_program():
    model, optimizer = fg.models.mlp((4, 3)), fg.sgd(0.1)
    state = fg.init_state(model.init(jax.random.key(0)), optimizer, key=0)
    step = fg.make_step(
        lambda p, x: jnp.mean(fg.layers.batched(model)(p, x) ** 2), optimizer
    )
    given = placed_step(step, state, np.ones((8, 4), np.float32), {"data": 2})
    shapes = jax.eval_shape(lambda: (state, jnp.ones((8, 4))))
    abstract = placed_step(step, *shapes, {"data": 2})
    assert str(given.jaxpr.closed) == str(abstract.jaxpr.closed)


def test_what_is_no_step_or_state_is_refused():
    step, state, batch = planned_networks.mlp()
    with pytest.raises(TypeError, match="need a TrainState"):
        placed_step(step, state.params, batch, {"data": 1})
    with pytest.raises(TypeError, match="need a step"):
        placed_step(lambda state, batch: state, state, batch, {"data": 1})
    with pytest.raises(TypeError, match="need a step"):
        placed_step(state, state, batch, {"data": 1})


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="a multiple of the 3 devices"):
        placed_step(*planned_networks.mlp(), {"data": 3})

"""Programs along Explicit axes, JAX's default, are read as those of one device."""

import contextlib

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad as fg
from fngrad.postmortem import autopsy
from fngrad.programs.fingerprints import fingerprints

DEVICES = eight_devices.placements()["fsdp"][0].size
MESH = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,))
RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.normal(size=(4, 16)).astype(np.float32) / 4,
    "v": RNG.normal(size=(16, 16)).astype(np.float32) / 8,
}
BATCH = {
    "x": RNG.normal(size=(16, 4)).astype(np.float32),
    "y": np.ones(16, np.float32),
}
OPTIMIZER = fg.adamw(0.1)


def loss_fn(params, batch):
    h = batch["x"] @ params["w"]
    h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["v"]), None), h, length=2)
    return jnp.mean((h.sum(-1) - batch["y"]) ** 2)


def placed(where, optimizer=OPTIMIZER, loss_fn=loss_fn):
    """Return a step, its state and its batch, on one device or along Explicit axes."""
    params, batch = jax.tree.map(jnp.asarray, (PARAMS, BATCH))
    if where == "explicit":
        params = jax.device_put(params, NamedSharding(MESH, P()))
        batch = jax.device_put(batch, NamedSharding(MESH, P("data")))
    step = fg.make_step(loss_fn, optimizer)
    return step, fg.init_state(params, optimizer, 0), batch


def on_both(measure, **options):
    """Return what a function of (step, state, batch) gives on one device, and along
    Explicit axes in the context that JAX asks for.
    """
    one = measure(*placed("one", **options))
    with jax.set_mesh(MESH):
        return one, measure(*placed("explicit", **options))


def test_a_step_costs_as_much_and_has_the_same_fingerprints():
    def measure(step, state, batch):
        leaves = [str(i) for i in range(len(jax.tree.leaves((state, batch))))]
        made = fingerprints(jax.make_jaxpr(step)(state, batch), leaves)
        return fg.costs(step, state, batch), made.named["gradient/w"]

    one, explicit = on_both(measure)
    assert one[0] == explicit[0]
    if jax.__version_info__ >= (0, 8):  # before, JAX broadcasts scalars there
        assert one[1] == explicit[1]


def test_a_summary_counts_the_devices_and_their_memory():
    one, explicit = on_both(fg.summary)
    assert (one.devices, explicit.devices) == (1, DEVICES)
    assert one.costs == explicit.costs
    assert explicit.memory.temporaries < one.memory.temporaries


def test_a_step_in_slices_is_that_of_one_device():
    def measure(step, state, batch):
        for _ in range(3):
            state, metrics = jax.jit(step)(state, batch)
        return state.params, metrics["loss"]

    optimizer = fg.quantize_state(OPTIMIZER, bits=8, block_size=16)
    one, explicit = on_both(measure, optimizer=optimizer)
    assert eight_devices.farthest(explicit, one) < 1e-2


@pytest.mark.parametrize("in_context", [False, True])
def test_an_autopsy_finds_the_operation(in_context):
    def bad(params, batch):
        return jnp.mean(jnp.log(batch["y"] - 1.0 + jnp.zeros(16))) + jnp.sum(
            params["w"]
        )

    step, state, batch = placed("explicit", loss_fn=bad)
    with jax.set_mesh(MESH) if in_context else contextlib.nullcontext():
        found = fg.autopsy(step, state, lambda number: batch)
    assert (found.phase, found.explanation) == ("forward", "log(0) = -inf")


def test_a_sweep_is_that_of_one_device():
    def train(point, key, data):
        optimizer = fg.sgd(point["rate"])
        params = jax.tree.map(jnp.asarray, PARAMS)
        state = fg.init_state(params, optimizer, key)
        state, history = fg.run(
            fg.make_step(loss_fn, optimizer), state, lambda number: data, 3
        )
        return state.params, history

    def swept(batch):
        points, options = {"rate": np.float32([0.01, 0.1])}, {"metric": ("loss", "min")}
        keys = jax.random.split(jax.random.key(0), 2)
        found = fg.sweep(train, points, keys, args=(batch,), progress=False, **options)
        return found.history["loss"]

    want = swept(BATCH)
    _, _, batch = placed("explicit")
    np.testing.assert_array_equal(swept(batch), want)
    with jax.set_mesh(MESH):
        np.testing.assert_array_equal(swept(batch), want)


def test_an_autopsy_of_what_reshards_is_that_of_one_device():
    def loss(params, batch):
        whole = jax.sharding.reshard(params["v"], P())
        return jnp.mean(jnp.log(-jnp.square(batch @ whole)))

    def on_mesh(x, *spec):
        return jax.device_put(x, NamedSharding(MESH, P(*spec)))

    optimizer = fg.sgd(1.0)
    with jax.set_mesh(MESH):
        params = {"v": on_mesh(PARAMS["v"], None, "data")}
        state = fg.init_state(params, optimizer, 0)
        batch = on_mesh(np.ones((16, 16), np.float32), "data")
        found = autopsy(fg.make_step(loss, optimizer), state, lambda _: batch)
    assert (found.phase, found.operation) == ("forward", "log")

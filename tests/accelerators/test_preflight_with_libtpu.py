"""Steps that libtpu compiles for TPUs that are not here.

The gate runs these in an environment of its own, with the libtpu that JAX pins and
``FNGRAD_NEED_LIBTPU=1``, which makes a missing one a failure.
"""

import os
import re

import jax
import jax.numpy as jnp
import planned_networks
import pytest

import fngrad as fg
from fngrad.accelerators.chips import GIB, TPUS
from fngrad.accelerators.targets import check_installed_libtpu

pytestmark = pytest.mark.slow
FSDP = fg.sharding.fsdp()


@pytest.fixture(scope="module", autouse=True)
def _libtpu():
    try:
        check_installed_libtpu()
    except ImportError as error:
        if os.environ.get("FNGRAD_NEED_LIBTPU") == "1":
            raise
        pytest.skip(str(error))


NETWORKS = {
    "mlp": planned_networks.mlp,
    "cnn": planned_networks.cnn,
    "transformer": planned_networks.transformer,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_fits_on_one_chip(name):
    step, state, batch = NETWORKS[name]()
    found = fg.preflight(step, state, batch)
    assert (found.verdict, found.reason, found.devices) == ("fits", "", 1)
    assert found.memory is not None
    assert found.memory.arguments >= found.arguments
    assert found.memory.aliased >= found.state.bytes - 64  # a key and the counters
    assert (found.state.copied, found.state.moved) == ([], [])
    assert found.traffic == ({}, 0)
    assert found.times is not None
    assert 0 < found.times.utilization <= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_split_over_eight_chips(name):
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(NETWORKS[name]()[1]))
    found = fg.preflight(*NETWORKS[name](rule=FSDP), "v5e:2x4")
    assert (found.verdict, found.devices) == ("fits", 8)
    assert found.state.bytes < whole / 5
    assert (found.state.copied, found.state.moved) == ([], [])
    assert not found.state.splits_nothing
    assert found.traffic is not None
    assert {"all-gather", "reduce-scatter"} <= set(found.traffic.collectives)
    assert found.times is not None
    assert found.times.network > 0
    if name == "mlp":  # gradients of the two matrices that are split, in float32
        split = 4 * (64 * 128 + 128 * 128)
        reduced = found.traffic.collectives["reduce-scatter"]
        assert reduced.bytes == split * 7 // 8


def test_a_loop_over_layers_gathers_each_of_them():
    def gathered(layers):
        model = fg.models.transformer(
            64, 32, features=128, num_layers=layers, num_heads=2, scan=True, remat=True
        )
        predict = fg.layers.batched(model)

        def loss_fn(params, batch):
            return fg.losses.softmax_cross_entropy_with_integer_labels(
                predict(params, batch), batch, reduction="mean"
            )

        optimizer = fg.sgd(0.1)
        step = fg.make_step(loss_fn, optimizer, rule=FSDP, precision="bfloat16")
        state = planned_networks.abstract_state(model, optimizer)
        batch = jax.ShapeDtypeStruct((16, 32), jnp.int32)
        found = fg.preflight(step, state, batch, "v5e:2x4")
        assert found.traffic is not None
        assert found.traffic.unknown_loops == 0
        return found.traffic.collectives["all-gather"].bytes

    few, many = gathered(3), gathered(6)
    # Matrices of a layer in bfloat16, forward and again, 7 of 8 parts from others.
    layer = 12 * 128 * 128 * 2 * 2 * 7 / 8
    assert 3 * layer == pytest.approx(many - few, rel=0.1)


def large_step(width):
    model, optimizer = fg.models.mlp((width, width)), fg.adam(1e-3)
    predict = fg.layers.batched(model)
    step = fg.make_step(lambda p, x: jnp.mean(predict(p, x) ** 2), optimizer)
    state = planned_networks.abstract_state(model, optimizer)
    return step, state, jax.ShapeDtypeStruct((8, width), jnp.float32)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("v4:2x2x1", "v4"),
        ("v5e:1x1", "v5e"),
        ("v5p:2x2x1", "v5p"),
        ("v6e:1x1", "v6e"),
        ("tpu7x:2x2x1", "tpu7x"),
    ],
)
def test_what_is_too_large_says_how_much_and_how_much_there_is(target, name):
    found = fg.preflight(*large_step(2**17), target)  # 64 GiB of parameters
    assert (found.verdict, found.fits) == ("does not fit", False)
    assert found.needed is not None
    assert found.needed > 3 * 64 * GIB
    available = re.search(r"available HBM \(([\d.]+)G\)", found.reason)
    assert available
    assert TPUS[name].memory == pytest.approx(float(available[1]) * GIB, rel=1e-6)
    assert "8-bit moments" in [change.what for change in found.changes]


def test_devices_of_tpu7x_are_two_a_chip():
    found = fg.preflight(*planned_networks.mlp(), "tpu7x:2x2x1")
    assert (found.verdict, found.devices) == ("fits", 8)


def test_a_leaf_that_grows_is_not_donated():
    step, state, batch = planned_networks.mlp()

    def growing(state, batch):
        new_state, metrics = step(state, batch)
        return new_state._replace(key=jnp.ones((512, 512))), metrics

    assert fg.preflight(growing, state, batch).state.copied == ["key"]

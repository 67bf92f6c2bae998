"""What XLA makes of a step on eight devices: FLOPs, collectives, memory."""

import functools
import itertools
import logging
from collections import Counter

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.sharding as sharding

FLAT = sharding.make_mesh(data=8)
RULE = eight_devices.FSDP
OPTIMIZER = fg.adam(0.01)
WIDTHS = (32, 64, 16)
PAIRS = [*itertools.pairwise(WIDTHS)]


def mlp():
    model = fg.models.mlp(WIDTHS)

    def loss_fn(params, batch):
        outputs = jax.vmap(model.apply, (None, 0))(params, batch["x"])
        return jnp.mean((outputs - batch["y"]) ** 2)

    x = np.random.default_rng(0).normal(size=(64, WIDTHS[0])).astype(np.float32)
    return model, loss_fn, {"x": x, "y": np.sin(x[:, : WIDTHS[-1]])}


def transformer(scan):
    layers = 2 if scan else 1
    model = fg.models.transformer(
        32, 16, features=32, num_layers=layers, num_heads=2, scan=scan, remat=scan
    )

    def loss_fn(params, batch):
        logits = jax.vmap(model.apply, (None, 0))(params, batch)
        return fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch).mean()

    tokens = np.random.default_rng(0).integers(0, 32, (16, 16)).astype(np.int32)
    return model, loss_fn, tokens


NETWORKS = {
    "mlp": mlp,
    "transformer": functools.partial(transformer, False),
    "transformer in a loop": functools.partial(transformer, True),
}


@functools.cache
def compiled(network, placement, optimizer=OPTIMIZER):
    """Return a compiled step, its state and its batch."""
    model, loss_fn, batch = NETWORKS[network]()
    rule = {"one device": None, "data parallel": None, "fsdp": RULE}[placement]
    step = fg.make_step(loss_fn, optimizer, rule=rule)
    state = fg.init_state(model.init(jax.random.key(0)), optimizer, 0)
    if placement != "one device":
        state = sharding.shard_state(state, FLAT, rule or sharding.replicated)
        batch = sharding.shard_batch(batch, FLAT)
    jitted = jax.jit(step, donate_argnums=0)
    return jitted.lower(state, batch).compile(), state, batch


@pytest.mark.parametrize("network", NETWORKS)
def test_each_device_does_an_eighth_of_the_work(network):
    one, _, _ = compiled(network, "one device")
    many, _, _ = compiled(network, "fsdp")
    flops = [eight_devices.flops(c) for c in (one, many)]
    assert flops[1] <= 1.1 / 8 * flops[0]


def test_a_summary_has_the_bytes_of_one_device_and_the_operations_of_all():
    _, state, batch = compiled("mlp", "fsdp")
    _, loss_fn, _ = mlp()
    found = fg.summary(fg.make_step(loss_fn, OPTIMIZER, rule=RULE), state, batch)
    one = eight_devices.bytes_here(state)
    assert found.memory.aliased == one
    assert found.memory.arguments == one + eight_devices.bytes_here(batch)
    assert found.devices == 8
    pairs = sum(a * b for a, b in PAIRS)
    assert found.costs.products == 2 * 64 * (3 * pairs - WIDTHS[0] * WIDTHS[1])


def shapes_of(params):
    """Return the shapes of arrays as a program's text has them, up to transposition."""
    return {eight_devices.shape_text("f32", x.shape) for x in jax.tree.leaves(params)}


def test_data_parallel_steps_sum_gradients_and_nothing_else():
    program, state, _ = compiled("mlp", "data parallel")
    found = eight_devices.collectives(program)
    assert set(found) == {"all-reduce"}
    gradients = shapes_of(state.params)
    assert set(found["all-reduce"]) == gradients | {"f32[]"}
    assert all(found["all-reduce"][shape] == 1 for shape in gradients)


def test_fsdp_gathers_each_parameter_once_and_sums_its_gradient_once():
    program, state, _ = compiled("mlp", "fsdp")
    found = eight_devices.collectives(program)
    whole = shapes_of(state.params)
    split = shapes_of([x for x in jax.tree.leaves(state.params) if x.size >= 64])
    assert set(found) == {"all-gather", "all-reduce"}
    assert set(found["all-gather"]) == split
    assert set(found["all-reduce"]) == whole | {"f32[]"}
    assert all(found["all-gather"][shape] == 1 for shape in split)
    assert all(found["all-reduce"][shape] == 1 for shape in whole)


def test_layers_in_a_loop_are_gathered_inside_of_it():
    program, state, _ = compiled("transformer in a loop", "fsdp")
    gathered = set(eight_devices.collectives(program)["all-gather"])
    stacks = jax.tree.leaves(state.params["blocks"])
    large = [x for x in stacks if x.size >= 64 and x.sharding.spec]
    assert large
    assert not gathered & shapes_of(large)
    # XLA keeps or drops the axis of size 1 that the loop cuts off.
    cuts = {x.shape[1:] for x in large} | {(1, *x.shape[1:]) for x in large}
    assert gathered & {eight_devices.shape_text("f32", cut) for cut in cuts}


PLAIN = fg.sgd(0.01)  # its only state counts steps


def of_its_state(network, optimizer):
    """Return the collectives of a step that it would not have without a state."""
    own, plain = (
        eight_devices.collectives(compiled(network, "fsdp", each)[0])
        for each in (optimizer, PLAIN)
    )
    return {kind: shapes - plain.get(kind, Counter()) for kind, shapes in own.items()}


@pytest.mark.parametrize("network", ["mlp", "transformer in a loop"])
def test_no_state_of_the_optimizer_is_gathered(network):
    found = of_its_state(network, OPTIMIZER)
    assert found["all-gather"] == Counter()
    assert not any(found.values()), found


def placed_whole(x):
    whole = jax.sharding.NamedSharding(FLAT, jax.sharding.PartitionSpec())
    return 1.5 * jax.lax.with_sharding_constraint(x, whole)


def mixed(x):
    return x @ jnp.ones((x.shape[-1], x.shape[-1])) if x.ndim == 2 else x


@pytest.mark.parametrize("use", [placed_whole, mixed])
def test_a_state_that_is_gathered_would_be_found(use):
    def update(updates, state, params):
        used = jax.tree.map(use, state)
        return used, jax.tree.map(lambda m, u: 0.9 * m + u, state, updates)

    gathering = fg.Transform(fg.tree.wide_zeros_like, update, "gathering")
    found = of_its_state("mlp", fg.chain(gathering, fg.scale(-0.01)))
    assert found["all-gather"][eight_devices.shape_text("f32", PAIRS[0])] == 1, found


@pytest.mark.parametrize("placement", ["data parallel", "fsdp"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_whole_state_is_updated_in_place(network, placement):
    program, state, _ = compiled(network, placement)
    leaves = [x for x in jax.tree.leaves(state) if not fg.tree.is_key(x)]
    aliased = program.memory_analysis().alias_size_in_bytes
    assert aliased >= eight_devices.bytes_here(leaves)


def test_narrow_parameters_are_gathered_narrow():
    _, loss_fn, batch = mlp()
    params = fg.models.mlp(WIDTHS).init(jax.random.key(0))
    step = fg.make_step(loss_fn, OPTIMIZER, rule=RULE, precision="bfloat16")
    state = sharding.shard_state(fg.init_state(params, OPTIMIZER, 0), FLAT, RULE)
    text = jax.jit(step).lower(state, sharding.shard_batch(batch, FLAT)).as_text()
    constraints = [x for x in text.splitlines() if "sharding_constraint" in x]
    gathers = [x for x in constraints if "[{}, {}]" in x and "32x64" in x]
    assert gathers
    assert all("bf16" in line for line in gathers), gathers


class Compilations(logging.Handler):
    """Counts the programs that XLA compiles."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def emit(self, record):
        self.count += "Finished XLA compilation" in record.getMessage()


@pytest.mark.parametrize("placement", ["data parallel", "fsdp"])
def test_a_jitted_step_compiles_once(placement):
    model, loss_fn, batch = mlp()
    rule = RULE if placement == "fsdp" else sharding.replicated
    step = jax.jit(fg.make_step(loss_fn, OPTIMIZER, rule=rule), donate_argnums=0)
    state = fg.init_state(model.init(jax.random.key(0)), OPTIMIZER, 0)
    state = sharding.shard_state(state, FLAT, rule)
    batch = sharding.shard_batch(batch, FLAT)
    counter, logger = Compilations(), logging.getLogger("jax")
    logger.addHandler(counter)
    try:
        with jax.log_compiles(True):
            for _ in range(3):
                state, _ = step(state, batch)
    finally:
        logger.removeHandler(counter)
    assert counter.count == 1


def test_a_state_made_in_place_is_never_whole_on_a_device():
    model, _, _ = mlp()

    def make():
        return fg.init_state(model.init(jax.random.key(1)), OPTIMIZER, 2)

    state, plain = sharding.init_sharded(make, FLAT, RULE), make()
    large = [x for x in jax.tree.leaves(state) if x.size >= 8 * 64]
    whole = sum(x.size * x.dtype.itemsize for x in large)
    assert eight_devices.bytes_here(large) == whole // 8
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2**-22)
    jax.tree.map(close, state.params, plain.params)  # as XLA rounds in two programs


def test_one_step_compiles_for_devices_that_are_not_there():
    model, loss_fn, batch = mlp()
    step = fg.make_step(loss_fn, OPTIMIZER, rule=RULE)
    state = jax.eval_shape(
        lambda: fg.init_state(model.init(jax.random.key(0)), OPTIMIZER, 0)
    )
    mesh = sharding.abstract_mesh(data=16)
    where = sharding.shardings(state, mesh, RULE)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )
    traced = jax.jit(step).trace(abstract, batch)
    assert "sharding_constraint" in str(traced.jaxpr)

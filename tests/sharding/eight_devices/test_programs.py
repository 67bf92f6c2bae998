"""What XLA makes of a step on eight devices: FLOPs, collectives, memory."""

import functools
from collections import Counter

import compiled_steps
import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_steps import PAIRS, WIDTHS, compiled

import fngrad as fg
import fngrad.sharding as sharding

FLAT = sharding.make_mesh(data=8)
RULE = eight_devices.FSDP
OPTIMIZER = compiled_steps.ADAM
LOOP = "transformer in a loop"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# Each holds for a network and a placement. With tensor parallelism both devices of a
# pair compute the norms of a transformer and add its branches, so that it takes a wide
# one, in which products are nearly all of the work.
AN_EIGHTH = [
    *(("mlp", "fsdp"), ("mlp", "4 x 2"), ("mlp", "4 x 2 by columns")),
    *(("transformer", "fsdp"), (LOOP, "fsdp"), slow("wide transformer", "4 x 2")),
]
IN_PLACE = [
    *((x, y) for x in ("mlp", "transformer", LOOP) for y in ("data parallel", "fsdp")),
    *(("mlp", "4 x 2"), slow("transformer", "4 x 2"), slow(LOOP, "4 x 2")),
]


@pytest.mark.parametrize(("network", "placement"), AN_EIGHTH)
def test_each_device_does_an_eighth_of_the_work(network, placement):
    one, _, _ = compiled(network, "one device")
    many, _, _ = compiled(network, placement)
    flops = [eight_devices.flops(c) for c in (one, many)]
    assert flops[1] <= 1.1 / 8 * flops[0]


def test_a_summary_has_the_bytes_of_one_device_and_the_operations_of_all():
    _, state, batch = compiled("mlp", "fsdp")
    step, _, _ = compiled_steps.placed("mlp", "fsdp")
    found = fg.summary(step, state, batch)
    one = eight_devices.bytes_here(state)
    assert found.memory.aliased == one
    assert found.memory.arguments == one + eight_devices.bytes_here(batch)
    assert found.devices == 8
    pairs, examples = sum(a * b for a, b in PAIRS), compiled_steps.EXAMPLES
    products = 2 * examples * (3 * pairs - WIDTHS[0] * WIDTHS[1])
    assert found.costs.products == products


def counted(*exchanges):
    """Return how often each shape is exchanged, from pairs of a count and a shape."""
    shapes: Counter = Counter()
    for count, shape in exchanges:
        shapes[eight_devices.shape_text("f32", shape)] += count
    return shapes


SCALAR = (1, ())
MATRICES = ((1, (32, 64)), (1, (64, 16)))
OF_THE_MLP = (*MATRICES, (1, (64,)), (1, (16,)))
# Of four examples with twelve positions, as each pair of devices has them.
ROWS, BRANCH = (4, 12), (4, 12, 32)
# What a step that reports its loss exchanges. Without a reduce-scatter, which XLA makes
# on GPUs and TPUs, a gradient is summed in the shape in which the parameter is used.
EXCHANGES = {
    ("mlp", "data parallel"): {
        "all-reduce": counted(*OF_THE_MLP, SCALAR),  # gradients, loss
    },
    ("mlp", "fsdp"): {
        "all-gather": counted(*MATRICES, (1, (64,))),  # all of 64 entries and more
        "all-reduce": counted(*OF_THE_MLP, SCALAR),  # gradients, loss
    },
    # Columns, then rows: 24 examples times half of the features are a part of all
    # outputs, which one sum over "model" makes whole. All else is summed over "data".
    ("mlp", "4 x 2"): {
        "all-gather": counted((1, (32, 32)), (1, (32, 16))),  # halves of the matrices
        "all-reduce": counted(
            (1, (24, 16)),  # outputs
            *((1, (32, 32)), (1, (32, 16)), (1, (32,)), (1, (16,)), SCALAR),
        ),
    },
    # Columns twice: the second product needs all of the features, and its slope has
    # parts of all their gradients. A bias that "model" does not split is added in
    # halves, and so are its gradients.
    ("mlp", "4 x 2 by columns"): {
        "all-gather": counted(
            *((1, (32, 32)), (1, (64, 8)), (1, (64,))),  # parameters
            (1, (24, 64)),  # features
            *((1, (64,)), (1, (16,))),  # gradients of biases
        ),
        "all-reduce": counted(
            (1, (24, 64)),  # gradients of the features
            *((1, (32, 32)), (1, (64, 8)), (1, (32,)), (1, (8,))),
            *(SCALAR, SCALAR),  # the loss, over both axes
        ),
    },
    ("transformer", "4 x 2"): {
        "all-gather": counted(
            *((4, (32, 16)), (2, (32, 64))),  # of attention, of the perceptron
            *((2, (32, 48)), (1, (12, 32))),  # tokens and head, positions
        ),
        "all-reduce": counted(
            (2, BRANCH),  # forward one of each branch
            (4, BRANCH),  # backward one into queries, keys, values and the perceptron
            (3, ROWS),  # are queries, keys and values, heads finite?
            *((4, (32, 16)), (2, (32, 64)), (2, (32, 48)), (1, (12, 32)), SCALAR),
            # XLA for CPUs sums the gradients of biases and norms over positions after
            # it exchanges them, on TPUs before.
            *((3, (12, 16)), (1, (12, 64)), (8, (12, 32))),
        )
        + Counter({"pred[4,12]": 1}),  # has any head of a row no weights?
    },
}


@pytest.mark.parametrize(
    ("network", "placement"),
    EXCHANGES,
)
def test_a_step_exchanges_what_it_must_and_nothing_else(network, placement):
    program, _, _ = compiled(network, placement, metrics="loss")
    expected = EXCHANGES[network, placement]
    assert eight_devices.collectives(program) == expected


@pytest.mark.parametrize("placement", [y for x, y in EXCHANGES if x == "mlp"])
def test_norms_are_sums_of_scalars_over_the_devices_with_parts(placement):
    found = eight_devices.collectives(compiled("mlp", placement)[0])
    expected = EXCHANGES["mlp", placement]
    assert set(found) == set(expected)
    more = {kind: found[kind] - expected[kind] for kind in found}
    sums = set() if placement == "data parallel" else {"f32[]"}
    assert set(more.pop("all-reduce")) == sums
    assert not any(more.values())


@pytest.mark.parametrize("placement", ["fsdp", slow("4 x 2")])
def test_layers_in_a_loop_are_gathered_inside_of_it(placement):
    program, state, _ = compiled(LOOP, placement)
    gathered = set(eight_devices.collectives(program)["all-gather"])
    stacks = jax.tree.leaves(state.params["blocks"])
    large = [in_use(x) for x in stacks if x.size >= 64 and "data" in x.sharding.spec]
    assert large
    assert not gathered & texts(large)
    # XLA keeps or drops the axis of size 1 that the loop cuts off.
    assert gathered & texts([x[1:] for x in large] + [(1, *x[1:]) for x in large])


def in_use(x):
    """Return the shape of a parameter on a device that gathers it over "data"."""
    axes = [axis if axis == "model" else None for axis in x.sharding.spec]
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.sharding.NamedSharding(x.sharding.mesh, spec).shard_shape(x.shape)


def texts(shapes):
    """Return shapes as a program's text has them, up to transposition."""
    return {eight_devices.shape_text("f32", shape) for shape in shapes}


PLAIN = fg.sgd(0.01)  # its only state counts steps


def of_its_state(network, optimizer, placement="fsdp"):
    """Return the collectives of a step that it would not have without a state."""
    own, plain = (
        eight_devices.collectives(compiled(network, placement, each)[0])
        for each in (optimizer, PLAIN)
    )
    return {kind: shapes - plain.get(kind, Counter()) for kind, shapes in own.items()}


@pytest.mark.parametrize(
    ("network", "placement"),
    [
        *(("mlp", "fsdp"), ("mlp", "4 x 2"), ("mlp", "4 x 2 by columns")),
        *((LOOP, "fsdp"), slow("transformer", "4 x 2")),
    ],
)
def test_no_state_of_the_optimizer_is_gathered(network, placement):
    found = of_its_state(network, OPTIMIZER, placement)
    assert found["all-gather"] == Counter()
    assert not any(found.values()), found


def placed_whole(x, mesh):
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return 1.5 * jax.lax.with_sharding_constraint(x, whole)


def mixed(x, mesh):
    return x @ jnp.ones((x.shape[-1], x.shape[-1])) if x.ndim == 2 else x


@pytest.mark.parametrize(
    ("use", "placement"),
    [(placed_whole, "fsdp"), (mixed, "fsdp"), (placed_whole, "4 x 2")],
)
def test_a_state_that_is_gathered_would_be_found(use, placement):
    mesh, _ = compiled_steps.placement("mlp", placement)

    def update(updates, state, params):
        used = jax.tree.map(lambda x: use(x, mesh), state)
        return used, jax.tree.map(lambda m, u: 0.9 * m + u, state, updates)

    gathering = fg.Transform(fg.tree.wide_zeros_like, update, "gathering")
    found = of_its_state("mlp", fg.chain(gathering, fg.scale(-0.01)), placement)
    assert found["all-gather"][eight_devices.shape_text("f32", PAIRS[0])] == 1, found


@pytest.mark.parametrize(("network", "placement"), IN_PLACE)
def test_the_whole_state_is_updated_in_place(network, placement):
    program, state, _ = compiled(network, placement)
    leaves = [x for x in jax.tree.leaves(state) if not fg.tree.is_key(x)]
    aliased = program.memory_analysis().alias_size_in_bytes
    assert aliased >= eight_devices.bytes_here(leaves)


def test_narrow_parameters_are_gathered_narrow():
    _, loss_fn, _ = compiled_steps.mlp()
    _, state, batch = compiled_steps.placed("mlp", "fsdp")
    step = fg.make_step(loss_fn, OPTIMIZER, rule=RULE, precision="bfloat16")
    text = jax.jit(step).lower(state, batch).as_text()
    constraints = [x for x in text.splitlines() if "sharding_constraint" in x]
    gathers = [x for x in constraints if "[{}, {}]" in x and "32x64" in x]
    assert gathers
    assert all("bf16" in line for line in gathers), gathers


@pytest.mark.parametrize("placement", ["data parallel", "fsdp", "4 x 2"])
def test_a_jitted_step_compiles_once(placement):
    step, state, batch = compiled_steps.placed("mlp", placement)
    step = jax.jit(step, donate_argnums=0)
    with eight_devices.compilations() as found:
        for _ in range(3):
            state, _ = step(state, batch)
    assert found.count == 1


def test_a_state_made_in_place_is_never_whole_on_a_device():
    model, _, _ = compiled_steps.mlp()

    def make():
        return fg.init_state(model.init(jax.random.key(1)), OPTIMIZER, 2)

    state, plain = sharding.init_sharded(make, FLAT, RULE), make()
    large = [x for x in jax.tree.leaves(state) if x.size >= 8 * 64]
    whole = sum(x.size * x.dtype.itemsize for x in large)
    assert eight_devices.bytes_here(large) == whole // 8
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2**-22)
    jax.tree.map(close, state.params, plain.params)  # as XLA rounds in two programs


def test_one_step_compiles_for_devices_that_are_not_there():
    model, loss_fn, batch = compiled_steps.mlp()
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

"""Muon, Shampoo and SOAP on eight devices: what they exchange and compute."""

import functools
import re

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.sharding as sharding
from fngrad.sharding.constraints import placed

MESH = sharding.make_mesh(data=8)
RULE = eight_devices.FSDP
RULES = {
    "muon": lambda **options: fg.muon(0.02, **options),
    "shampoo": lambda: fg.shampoo(0.1, eps=1e-3),
    "soap": lambda: fg.soap(0.01, eps=1e-2, precondition_frequency=1),
}
# Per matrix. Shampoo: the gradient, two statistics, two roots. SOAP: the gradient, two
# bases, the gradient and the moment between the products from both sides; in the first
# step two statistics; when bases are renewed two statistics and the average of squares.
GATHERS = {"muon": 1, "shampoo": 5, "soap": 10}
SMALL = ((16, 16), (16, 24))
EQUAL = ((64, 64),) * 8


def matrices(shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s) / 4, jnp.float32) for s in shapes]


def loss_fn(params, batch):
    first, last = params
    return jnp.mean((jnp.tanh(batch["x"] @ first) @ last - batch["y"]) ** 2)


def compiled_update(optimizer, shapes, rule=RULE):
    """Return the compiled update alone, with its state placed by a rule."""
    state = fg.init_state(matrices(shapes), optimizer, key=0)
    if rule is not None:
        state = sharding.shard_state(state, MESH, rule)

    def one(grads, state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return placed(state._replace(params=updates, opt_state=opt_state), rule)

    return jax.jit(one).lower(state.params, state).compile()


@functools.cache
def updates(name, placement):
    stacked = fg.stack_leaves(RULES[name]())
    if placement == "alone":
        return compiled_update(RULES[name](), SMALL)
    return compiled_update(stacked, EQUAL, RULE if placement == "stacked" else None)


def exchanges(program):
    """Return how many arrays of 32 entries or more each kind of collective gives."""
    found = {}
    for kind, shapes in eight_devices.collectives(program).items():
        sizes = {
            s: np.prod([int(n) for n in re.findall(r"\d+", s[3:])]) for s in shapes
        }
        large = sum(n for shape, n in shapes.items() if sizes[shape] >= 32)
        if large:
            found[kind] = large
    return found


def check_steps(optimizer, shapes, tolerance):
    """Compare three steps with those of one device, and donate the whole state."""
    start = matrices(shapes)
    rng = np.random.default_rng(1)
    batch = {"x": rng.normal(size=(64, 16)), "y": rng.normal(size=(64, 1))}
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    one = fg.init_state(start, optimizer, key=0)
    many = sharding.shard_state(one, MESH, RULE)
    size = eight_devices.bytes_here([x for x in jax.tree.leaves(many) if x.ndim])
    step = fg.make_step(loss_fn, optimizer, rule=RULE)
    split = sharding.shard_batch(batch, MESH)
    program = jax.jit(step, donate_argnums=0).lower(many, split).compile()
    assert program.memory_analysis().alias_size_in_bytes >= size
    alone = jax.jit(step)
    for _ in range(3):
        one, _ = alone(one, batch)
        many, _ = program(many, split)  # refuses a state that is placed otherwise
    for old, a, b in zip(start, one.params, many.params, strict=True):
        moved = np.max(np.abs(np.subtract(a, old)))
        assert np.max(np.abs(np.subtract(a, b))) < tolerance * moved


@pytest.mark.parametrize("name", RULES)
def test_three_steps_equal_one_device(name):
    # Of the distance moved; sums over the batch are rounded in another order.
    tolerance = {"muon": 1e-5, "shampoo": 1e-4, "soap": 1e-3}[name]
    check_steps(RULES[name](), SMALL, tolerance)


def test_a_stack_that_the_devices_do_not_divide_equals_one_device():
    check_steps(fg.stack_leaves(RULES["muon"]()), ((16, 16), (16, 16)), 1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_stack_of_one_matrix_per_device_equals_one_device(name):
    """Square gradients of full rank, since noise in a null space is scaled up."""
    optimizer = fg.stack_leaves(RULES[name]())
    one = fg.init_state(matrices(((16, 16),) * 8), optimizer, key=0)
    many = sharding.shard_state(one, MESH, RULE)
    rng = np.random.default_rng(2)

    @jax.jit
    def update(state, grads):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = fg.apply_updates(state.params, updates)
        state = state._replace(params=params, opt_state=opt_state)
        return placed(state, RULE), updates

    for _ in range(3):
        grads = [np.float32(g) for g in rng.normal(size=(8, 16, 16))]
        (one, want), (many, got) = update(one, grads), update(many, grads)
        for a, b in zip(want, got, strict=True):
            assert np.max(np.abs(np.subtract(a, b))) < 1e-3 * np.max(np.abs(a))


@pytest.mark.parametrize("name", RULES)
def test_a_matrix_is_gathered_once_for_each_use(name):
    expected = {"all-gather": len(SMALL) * GATHERS[name]}
    assert exchanges(updates(name, "alone")) == expected


def test_no_exchange_is_made_in_an_iteration():
    longer = compiled_update(RULES["muon"](ns_steps=8), SMALL)
    assert exchanges(longer) == exchanges(updates("muon", "alone"))


@pytest.mark.parametrize("name", RULES)
def test_each_device_computes_its_share_of_a_stack(name):
    alone, each = updates(name, "one device"), updates(name, "stacked")
    flops = [eight_devices.flops(program) for program in (alone, each)]
    assert flops[1] < 1.1 / 8 * flops[0]
    assert set(exchanges(each)) == {"all-to-all"}


@pytest.mark.parametrize(("name", "counts"), [("shampoo", {1}), ("soap", {1})])
def test_each_device_decomposes_its_share_of_a_stack(name, counts):
    # FLOPs do not count LAPACK's: how many matrices of a stack each call is given.
    text = updates(name, "stacked").as_text()
    found = re.findall(r"= .*?\w+\[(\d+),64,64\].* custom-call\(", text)
    assert set(map(int, found)) == counts


def test_a_stack_that_every_device_has_is_gathered_once():
    copies = compiled_update(
        fg.stack_leaves(RULES["muon"]()), EQUAL, sharding.replicated
    )
    assert exchanges(copies) == {"all-gather": 1}


def test_layers_in_a_loop_are_divided_too():
    model = fg.layers.repeat(fg.layers.linear(64, 64, bias=False), 8)
    params = model.init(jax.random.key(0))
    optimizer = fg.layerwise(fg.muon(0.02), "**")

    def update(grads, state):
        return optimizer.update(grads, state, grads)

    flops = []
    for place in (lambda a: a, lambda a: sharding.shard_state(a, MESH, RULE)):
        given, state = place(params), place(optimizer.init(params))
        program = jax.jit(update).lower(given, state).compile()
        flops.append(eight_devices.flops(program))
    assert flops[1] < 1.1 / 8 * flops[0]

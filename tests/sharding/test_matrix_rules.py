"""Muon, Shampoo and SOAP on eight virtual devices: what they exchange and compute."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg

CHILD = r"""
import json, math, re, warnings
from collections import Counter
import jax, jax.numpy as jnp, numpy as np
import fngrad as fg

warnings.simplefilter("error")
jax.config.update("jax_numpy_dtype_promotion", "strict")
mesh = fg.sharding.make_mesh(data=8)
rule = fg.sharding.fsdp(min_size=64)
OPTIMIZERS = {
    "muon": lambda **kwargs: fg.muon(0.02, **kwargs),
    "shampoo": lambda: fg.shampoo(0.1, eps=1e-3),
    "soap": lambda: fg.soap(0.01, eps=1e-2, precondition_frequency=1),
}
draw = np.random.default_rng(0).standard_normal
xs, ys = (jnp.asarray(draw((64, n)), jnp.float32) for n in (16, 1))

def params(*shapes):
    return [jnp.asarray(draw(shape), jnp.float32) / 4 for shape in shapes]

def loss_fn(params, batch):
    first, last = params
    return jnp.mean((jnp.tanh(batch["x"] @ first) @ last - batch["y"]) ** 2)

def bytes_per_device(state):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))

def steps(optimizer, *shapes):
    start = params(*shapes)
    one = fg.init_state(start, optimizer, key=0)
    many = fg.sharding.shard_state(one, mesh, rule)
    size = bytes_per_device(many)
    step = fg.make_step(loss_fn, optimizer, rule=rule)
    batch = {"x": xs, "y": ys}
    split = fg.sharding.shard_batch(batch, mesh)
    compiled = jax.jit(step, donate_argnums=0).lower(many, split).compile()
    aliased = compiled.memory_analysis().alias_size_in_bytes
    alone = jax.jit(step)
    for _ in range(3):
        one, _ = alone(one, batch)
        many, _ = compiled(many, split)  # refuses a state that is placed otherwise
    error = max(
        np.max(np.abs(np.subtract(a, b))) / np.max(np.abs(np.subtract(a, c)))
        for a, b, c in zip(one.params, many.params, start)
    )
    return {"error": float(error), "unaliased": size - aliased}

def update(optimizer, start, rule=rule):
    state = fg.init_state(start, optimizer, key=0)
    if rule is not None:
        state = fg.sharding.shard_state(state, mesh, rule)

    def one(grads, state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = state._replace(params=updates, opt_state=opt_state)
        return fg.sharding.constraints.placed(new, rule)

    return jax.jit(one).lower(state.params, state).compile()

def exchanges(compiled):
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text())
    sizes = lambda text: [
        math.prod(int(n) for n in shape.split(",") if n)
        for shape in re.findall(r"\w+\[([0-9,]*)\]", text)
    ]
    return dict(Counter(kind for text, kind in found if max(sizes(text)) >= 32))

def decomposed(compiled):
    # FLOPs do not count LAPACK's: how many matrices of a stack each call is given.
    found = re.findall(r"= .*?\w+\[(\d+),64,64\].* custom-call\(", compiled.as_text())
    return sorted({int(count) for count in found})

def flops(compiled):
    return compiled.cost_analysis()["flops"]

def show(**row):
    print(json.dumps(row))

matrices, stack = params((16, 16), (16, 24)), params(*[(64, 64)] * 8)
for name, make in OPTIMIZERS.items():
    show(case=name, **steps(make(), (16, 16), (16, 24)), **exchanges(update(make(), matrices)))
    stacked = fg.stack_leaves(make())
    alone, each = update(stacked, stack, None), update(stacked, stack)
    show(case=f"{name}, stacked", share=flops(each) / flops(alone), **exchanges(each))
    show(case=f"{name}, decompositions", counts=decomposed(each))
longer = update(OPTIMIZERS["muon"](ns_steps=8), matrices)
show(case="muon, 8 iterations", **exchanges(longer))
few = fg.stack_leaves(OPTIMIZERS["muon"]())
show(case="muon, stack of two", **steps(few, (16, 16), (16, 16)))
copies = update(fg.stack_leaves(OPTIMIZERS["muon"]()), stack, fg.sharding.replicated)
show(case="muon, replicated", **exchanges(copies))

types = {"axis_types": (jax.sharding.AxisType.Explicit,)}
explicit = jax.sharding.Mesh(mesh.devices, ("data",), **types)
for name, make in OPTIMIZERS.items():
    for optimizer in (make(), fg.stack_leaves(make())):
        where = jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec())
        start = jax.device_put(params((16, 16), (16, 16)), where)
        jax.eval_shape(optimizer.update, start, optimizer.init(start), start)
"""
RULES = ["muon", "shampoo", "soap"]
FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
# Per matrix. Shampoo: the gradient, two statistics, two roots. SOAP: the gradient, two
# bases, the gradient and the moment between the products from both sides; in the first
# step two statistics; when bases are renewed two statistics and the average of squares.
GATHERS = {"muon": 1, "shampoo": 5, "soap": 10}


@pytest.fixture(scope="module")
def rows():
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    table = [json.loads(line) for line in child.stdout.splitlines()]
    return {row.pop("case"): row for row in table}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_three_steps_on_eight_devices_equal_one_device(name, rows):
    # Of the distance moved; sums over the batch are rounded in another order.
    assert rows[name]["error"] < {"muon": 1e-5, "shampoo": 1e-5, "soap": 3e-4}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_whole_state_is_donated(name, rows):
    assert rows[name]["unaliased"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_a_matrix_is_gathered_once_for_each_use(name, rows):
    exchanges = {kind: n for kind, n in rows[name].items() if "-" in kind}
    assert exchanges == {"all-gather": 2 * GATHERS[name]}


@pytest.mark.slow
def test_no_exchange_is_made_in_an_iteration(rows):
    assert rows["muon, 8 iterations"] == {"all-gather": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_each_device_computes_its_share_of_a_stack(name, rows):
    row = rows[f"{name}, stacked"]
    assert row["share"] < 1.1 / 8
    assert set(row) == {"share", "all-to-all"}


@pytest.mark.slow
@pytest.mark.parametrize("name, each", [("muon", []), ("shampoo", [1]), ("soap", [1])])
def test_each_device_decomposes_its_share_of_a_stack(name, each, rows):
    assert rows[f"{name}, decompositions"] == {"counts": each}


@pytest.mark.slow
def test_a_stack_that_the_devices_do_not_divide_equals_one_device(rows):
    row = rows["muon, stack of two"]
    assert row["error"] < 1e-5
    assert row["unaliased"] == 0


@pytest.mark.slow
def test_a_stack_that_every_device_has_is_gathered_once(rows):
    assert rows["muon, replicated"] == {"all-gather": 1}


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

"""Layers in a loop on eight devices: what each device holds, and an autopsy of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.sharding as sharding
from fngrad.postmortem import autopsy

MESH = sharding.make_mesh(data=8)
RULE = sharding.fsdp(min_size=64)
LAYERS, WIDTH = 16, 64
POLICIES = jax.checkpoint_policies


def params():
    rng = np.random.default_rng(0)
    return jnp.asarray(0.1 * rng.normal(size=(LAYERS, WIDTH, WIDTH)), jnp.float32)


def layer(x, weight):
    return jnp.tanh(x @ weight), None


BODIES = {
    "without remat": layer,
    "remat": jax.checkpoint(layer),
    "everything saved": jax.checkpoint(layer, policy=POLICIES.everything_saveable),
    "products saved": jax.checkpoint(layer, policy=POLICIES.dots_saveable),
    "all but names saved": jax.checkpoint(
        layer, policy=POLICIES.save_anything_except_these_names("none")
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_no_device_keeps_the_layers_that_it_gathered(name):
    body = BODIES[name]

    def loss(stack, x):
        return jnp.mean(jax.lax.scan(body, x, stack)[0] ** 2)

    stack = sharding.shard_state(params(), MESH, RULE)
    x = sharding.shard_batch(jnp.ones((8, WIDTH)), MESH)
    gradient = jax.jit(jax.grad(sharding.gathered(loss, RULE)))
    used = gradient.lower(stack, x).compile().memory_analysis()
    assert used.temp_size_in_bytes < stack.nbytes / 2


@pytest.mark.parametrize("rule", [None, RULE])
def test_an_autopsy_looks_into_a_loop(rule):
    def loss(stack, batch):
        def body(x, weight):
            return jnp.log(x @ weight), None

        return jnp.mean(jax.lax.scan(body, batch, stack)[0])

    optimizer = fg.sgd(0.1)
    state = fg.init_state(jnp.ones((3, WIDTH, WIDTH)), optimizer, 0)
    state = sharding.shard_state(state, MESH, rule or sharding.replicated)
    batch = sharding.shard_batch(jnp.full((8, WIDTH), -1.0), MESH)
    step = fg.make_step(loss, optimizer, rule=rule)
    found = autopsy(step, state, lambda _: batch)
    assert (found.phase, found.operation) == ("forward", "log")
    assert "log(-64) = nan" in found.explanation

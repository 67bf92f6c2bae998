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


def narrow(x, weight):
    return jnp.tanh(x.astype(jnp.bfloat16) @ weight.astype(jnp.bfloat16)), None


def transposed(x, weight):
    return jnp.tanh(x @ weight.T), None


def scaled(x, weight):
    return jnp.tanh(x @ (1.5 * weight)), None


BODIES = {
    "without remat": layer,
    "narrow": lambda x, w: (narrow(x, w)[0].astype(x.dtype), None),
    "transposed": transposed,
    "scaled": scaled,
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


def kept(loss, *args):
    """Return the shapes of what the pass forward of a loss leaves for the one back."""
    _, backward = jax.eval_shape(lambda *a: jax.vjp(loss, *a), *args)
    return sorted(x.shape for x in jax.tree.leaves(backward))


@pytest.mark.parametrize("uses_slice_outside", [False, True])
def test_a_checkpoint_in_a_layer_keeps_what_it_kept(uses_slice_outside):
    inner = jax.checkpoint(lambda x, w: jnp.tanh(jnp.sin(x @ w) @ w))

    def loss(stacks, x):
        def body(x, weights):
            x = inner(x, weights[0])
            return (x @ weights[1] if uses_slice_outside else x), None

        return jnp.mean(jax.lax.scan(body, x, stacks)[0] ** 2)

    stacks = sharding.shard_state([params(), params()], MESH, RULE)
    x = sharding.shard_batch(jnp.ones((8, WIDTH)), MESH)
    of_activations = [
        [shape for shape in kept(fn, stacks, x) if shape == (LAYERS, 8, WIDTH)]
        for fn in (loss, sharding.gathered(loss, RULE))
    ]
    assert len(of_activations[1]) == len(of_activations[0]) > 0


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

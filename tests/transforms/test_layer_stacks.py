"""`layerwise` makes the updates of layers one by one, stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.layers as layers
from fngrad.transforms.evaluation_point import evaluation_point

KEYS = jax.random.split(jax.random.key(0), 3)
LAYER = layers.serial(
    blocks=layers.serial(*[layers.linear(4, 4)] * 3), head=layers.linear(4, 2)
)
STACKS = "blocks/**"


def stacked(a):
    return layers.stack_layers(a, "**/blocks")


def after_updates(optimizer, params, grads):
    def advance(carry, factor):
        params, state = carry
        scaled = fg.tree.scale(factor, grads)
        updates, state = optimizer.update(scaled, state, params)
        return (fg.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(advance, start, jnp.array([1.0, -0.5, 0.25]))[0]


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b
    )


WRAPPED = {
    "clipped by leaf": lambda: fg.chain(fg.clip_by_block_rms(0.1), fg.sgd(0.1)),
    "clipped by all": lambda: fg.chain(fg.clip_by_global_norm(0.1), fg.lamb(0.1)),
    "groups": lambda: fg.partition([("blocks/**", fg.lars(0.1)), ("**", fg.sm3(0.1))]),
    "averaged": lambda: fg.chain(fg.lamb(0.1), fg.ema_params(0.5)),
    "accumulated": lambda: fg.accumulate(fg.lamb(0.1), 2),
}
RULES = {name: lambda make=make: make(0.1) for name, make in fg.REGISTRY.items()}


FAST = {"muon", "adafactor", "sm3", "novograd", "lars", "groups", "averaged"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in [*RULES, *WRAPPED]
    ],
)
def test_updates_are_those_of_layers_one_by_one(name):
    optimizer = (RULES | WRAPPED)[name]()
    params, grads = LAYER.init(KEYS[0]), LAYER.init(KEYS[1])
    if name == "soap":  # full rank, or noise in the null space is scaled up
        optimizer = fg.soap(0.1, eps=1e-3)
    if name == "schedule_free_radam":
        optimizer = fg.schedule_free_radam(0.1, silent_sgd_phase=False)

    @jax.jit
    def both(params, grads):
        single, state = after_updates(optimizer, params, grads)
        whole, states = after_updates(
            fg.layerwise(optimizer, STACKS), stacked(params), stacked(grads)
        )
        points = [evaluation_point(s, p) for s, p in ((state, single), (states, whole))]
        return (single, whole), points

    (single, whole), (point, points) = both(params, grads)
    assert fg.tree.norm(fg.tree.sub(single, params)) > 1e-9
    close(whole, stacked(single))
    close(points, stacked(point))


def test_training_resumes_and_reports_as_without_stacks():
    optimizer = fg.muon(0.05)

    def loss_of(params, x):
        if "layers" not in params["blocks"]:
            params = layers.unstack_layers(params, "**/blocks")
        return jnp.mean(jax.vmap(LAYER.apply, (None, 0))(params, x) ** 2)

    params, x = LAYER.init(KEYS[0]), jax.random.normal(KEYS[2], (8, 4))
    ends = []
    for start, rule in (
        (params, optimizer),
        (stacked(params), fg.layerwise(optimizer, STACKS)),
    ):
        state, step = (
            fg.init_state(start, rule, 0),
            jax.jit(fg.make_step(loss_of, rule)),
        )
        for _ in range(3):
            state, metrics = step(state, x)
        ends.append((state.params, metrics))
    close(ends[1][0], stacked(ends[0][0]))
    assert ends[1][1].keys() >= {"learning_rate", "grad_norm"}
    losses = [float(metrics["loss"]) for _, metrics in ends]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_frozen_stacks_get_no_gradient():
    optimizer = fg.layerwise(
        fg.partition([("blocks/**", fg.freeze()), ("**", fg.lamb(0.1))]), STACKS
    )
    params = stacked(LAYER.init(KEYS[0]))
    state = fg.init_state(params, optimizer, 0)
    step = fg.make_step(lambda p, _: fg.tree.norm(p), optimizer)
    after, _ = step(state, None)
    jax.tree.map(
        np.testing.assert_array_equal, after.params["blocks"], params["blocks"]
    )
    assert fg.tree.norm(fg.tree.sub(after.params["head"], params["head"])) > 0


def test_selectors_inside_see_one_layer():
    seen = {}

    def watch(path, leaf):
        seen[path] = leaf.shape
        return True

    optimizer = fg.layerwise(fg.masked(fg.lamb(0.1), watch), STACKS)
    optimizer.init(stacked(LAYER.init(KEYS[0])))
    assert seen["blocks/weight"] == (4, 4)
    assert seen["head/weight"] == (4, 2)


def test_what_is_no_stack_is_refused():
    params = stacked(LAYER.init(KEYS[0]))
    with pytest.raises(ValueError, match=r"selects a leaf, got 'layers/\*'"):
        fg.layerwise(fg.sgd(0.1), "layers/*").init(params)
    with pytest.raises(ValueError, match="stacked layers at 'scale', got a scalar"):
        fg.layerwise(fg.sgd(0.1), "**").init({"scale": jnp.ones(())})
    with pytest.raises(TypeError, match="need a selector"):
        fg.layerwise(fg.sgd(0.1), 3)


def test_the_laws_hold():
    fg.check_transform(fg.layerwise(fg.lamb(0.1), lambda path, leaf: leaf.ndim > 0))

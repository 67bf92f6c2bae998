"""Rates that decay with depth, and layers that are unfrozen one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.transforms.core import chain
from fngrad.transforms.depth import gradual_unfreezing, scale_by_depth

PARAMS = {
    "embed": jnp.ones((2, 3)),
    "blocks": {"w": jnp.ones((3, 2, 2)), "b": jnp.ones((3, 2))},
    "head": {"w": jnp.ones((2, 2)), "b": jnp.ones(())},
}
LAYERS = ["embed", ("blocks/**", 3), ["head/w", "head/b"]]
ABOVE = {"embed": 4, "blocks": np.array([3, 2, 1]), "head": 0}


def of_depth(value):
    """Return the tree whose leaves have ``value(layers above)`` per layer."""

    def filled(name, x):
        factor = np.asarray(value(ABOVE[name]), np.float32)
        axes = (1,) * (x.ndim - factor.ndim)
        return np.broadcast_to(factor.reshape(factor.shape + axes), x.shape)

    return {
        name: jax.tree.map(lambda x, name=name: filled(name, x), part)
        for name, part in PARAMS.items()
    }


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_the_rate_decays_per_layer_from_the_output():
    rule = scale_by_depth(LAYERS, 0.7)
    updates, state = rule.update(PARAMS, rule.init(PARAMS), PARAMS)
    close(updates, of_depth(lambda above: 0.7**above))
    assert not jax.tree.leaves(state)


def test_stacked_layers_have_the_rates_of_layers_apart():
    apart = {
        "embed": PARAMS["embed"],
        "blocks": [
            jax.tree.map(lambda x, i=i: x[i], PARAMS["blocks"]) for i in range(3)
        ],
        "head": PARAMS["head"],
    }
    rule = scale_by_depth(["embed", *(f"blocks/{i}/*" for i in range(3)), "**"], 0.7)
    updates, _ = rule.update(apart, rule.init(apart), apart)
    stacked = of_depth(lambda above: 0.7**above)["blocks"]
    close(jax.tree.map(lambda *x: jnp.stack(x), *updates["blocks"]), stacked)


def test_the_decoupled_weight_decay_follows_the_rate():
    rule = chain(fg.adamw(0.1, weight_decay=0.5), scale_by_depth(LAYERS, 0.5))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = rule.update(zero, rule.init(PARAMS), PARAMS)
    close(updates, of_depth(lambda above: -0.05 * 0.5**above))


def test_the_decay_can_be_swept_and_its_ends_are_exact():
    def updates_at(decay):
        rule = scale_by_depth(LAYERS, decay)
        return rule.update(PARAMS, rule.init(PARAMS), PARAMS)[0]

    swept = jax.vmap(updates_at)(jnp.array([0.0, 0.3, 1.0]))
    expected = [of_depth(lambda above, d=d: d**above) for d in (0.0, 0.3, 1.0)]
    close(swept, jax.tree.map(lambda *x: np.stack(x), *expected))


@pytest.mark.parametrize("every", [3, jnp.array(3)])
def test_one_more_layer_is_trained_after_every_so_many_steps(every):
    rule = gradual_unfreezing(LAYERS, every)
    state = rule.init(PARAMS)
    for step in range(15):
        updates, state, metrics = rule.report(PARAMS, state, PARAMS)
        close(updates, of_depth(lambda above, t=step: t >= 3 * above))
        assert metrics["gradual_unfreezing/unfrozen_layers"] == min(step // 3 + 1, 5)


def test_a_frozen_layer_stays_where_its_gradient_is_not_finite():
    both = {"a": jnp.array([1.0]), "b": jnp.array([1.0])}
    rule = gradual_unfreezing(["a", "b"], 5)
    updates, _ = rule.update(
        {"a": jnp.array([jnp.nan]), "b": both["b"]}, rule.init(both), both
    )
    np.testing.assert_array_equal(updates["a"], [0.0])


def test_a_run_trains_the_head_alone_at_first():
    params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    optimizer = chain(fg.adam(0.1), gradual_unfreezing(["body", "head"], 2))
    step = fg.make_step(
        lambda p, x: jnp.sum((p["body"] * p["head"] - x) ** 2), optimizer
    )
    state = fg.init_state(params, optimizer, 0)
    bodies = []
    for _ in range(4):
        state, metrics = step(state, jnp.zeros(2))
        bodies.append(float(state.params["body"][0]))
    assert bodies[0] == bodies[1] == 1.0 > bodies[2] > bodies[3]
    assert metrics["gradual_unfreezing/unfrozen_layers"] == 2


@pytest.mark.parametrize("make", [scale_by_depth, gradual_unfreezing])
def test_bad_layers_are_refused(make):
    with pytest.raises(TypeError, match=r"list of layers.*got '\*\*'"):
        make("**", 1)
    with pytest.raises(ValueError, match="at least one layer"):
        make([], 1)
    with pytest.raises(ValueError, match="count of stacked layers"):
        make([("**", 0)], 1)
    with pytest.raises(ValueError, match=r"need a layer for every leaf.*'embed'"):
        make([("blocks/**", 3), "head/**"], 1).init(PARAMS)
    with pytest.raises(ValueError, match=r"need 2 layers along.*'blocks/b'.*\(3, 2\)"):
        make(["embed", ("blocks/**", 2), "head/**"], 1).init(PARAMS)
    with pytest.raises(ValueError, match="glob that selects a leaf, got 'tail'"):
        make([*LAYERS, "tail"], 1).init(PARAMS)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"decay.*1\.5"):
        scale_by_depth(LAYERS, 1.5)
    with pytest.raises(ValueError, match="every"):
        gradual_unfreezing(LAYERS, 0)

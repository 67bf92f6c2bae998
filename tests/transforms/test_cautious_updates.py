"""The cautious mask, compared with the paper and with its authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import momentum
from fngrad.transforms.cautious_updates import cautious
from fngrad.transforms.core import apply_updates, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.tree import Stacked

STEPS, DECAY = 25, 0.9
START = {"a": np.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": np.ones(3)}


def gradients():
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda p: rng.normal(size=(STEPS, *p.shape)), START)


def visit(optimizer, params, given):
    def body(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (apply_updates(params, updates), state), updates

    start = params, optimizer.init(params)
    return jax.jit(lambda s, g: jax.lax.scan(body, s, g)[1])(start, given)


def oracle(w, gradients, min_share, weight_decay):
    """Liang et al. 2024, algorithm 1, with heavy ball as base and decay outside."""
    buffer, visited = np.zeros_like(w), []
    for t, g in enumerate(gradients):
        buffer = DECAY * buffer + g
        agrees = (np.real(np.conj(buffer) * g) > 0).astype(float)
        if min_share is None:
            scale = agrees.size / (agrees.sum() + 1)
        else:
            scale = 1 / max(agrees.mean(), min_share)
        visited.append(-0.1 / (1 + t) * (scale * agrees * buffer + weight_decay * w))
        w = w + visited[-1]
    return np.array(visited)


def falling(step):
    return 0.1 / (1.0 + step.astype(jnp.result_type(float)))


def compare(optimizer, min_share, weight_decay, kind=np.float64):
    start, given = START, gradients()
    if kind == np.complex128:
        start = jax.tree.map(lambda p: p + 1j, start)
        given = jax.tree.map(lambda g: g * np.exp(1j * np.arange(3.0).sum() * g), given)
    got = visit(optimizer, *jax.tree.map(jnp.asarray, (start, given)))
    for name, w in start.items():
        want = oracle(w, given[name], min_share, weight_decay)
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("min_share", [None, 1e-3, 0.9])
def test_cautious_momentum_follows_the_paper(min_share, x64):
    compare(cautious(momentum(falling, DECAY), min_share=min_share), min_share, 0.0)


def test_weight_decay_can_stand_outside(x64):
    optimizer = chain(
        cautious(trace(DECAY), downhill=False),
        add_decayed_weights(0.1),
        scale_by_learning_rate(falling),
    )
    compare(optimizer, None, 0.1)


def test_complex_entries_agree_where_their_inner_product_is_positive(x64):
    compare(cautious(momentum(falling, DECAY)), None, 0.0, np.complex128)


def test_without_agreement_the_update_is_zero():
    optimizer, params = cautious(momentum(0.1, 0.9)), jnp.zeros(3)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.ones(3), state, params)
    updates, _ = optimizer.update(jnp.full(3, -0.1), state, params)
    np.testing.assert_array_equal(updates, np.zeros(3))


def test_each_leaf_of_a_stack_is_scaled_alone():
    rng = np.random.default_rng(0)
    first, second = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    optimizer = cautious(momentum(0.1, 0.9))

    def run(params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
        return updates

    alone = run(list(first), [list(first), list(second)])
    stacked = run(Stacked(first), [Stacked(first), Stacked(second)])
    np.testing.assert_allclose(stacked.leaves, alone, rtol=1e-6)


def test_frozen_leaves_stay_frozen():
    inner = partition([("a", freeze()), ("**", momentum(0.1))])
    optimizer = cautious(inner)
    assert optimizer.trainable
    assert not optimizer.trainable("a", None)
    params = jax.tree.map(jnp.asarray, START)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert tree.norm(updates["a"]) == 0 < tree.norm(updates["b"])


def test_the_laws_hold():
    check_transform(cautious(momentum(0.1, 0.9), min_share=1e-3))


@pytest.mark.parametrize("min_share", [0.0, -1.0, 1.5])
def test_a_share_outside_zero_to_one_is_refused(min_share):
    with pytest.raises(ValueError, match=r"need .*min_share.* got min_share="):
        cautious(momentum(0.1), min_share=min_share)

"""Leaves in a stack are updated like single leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.optimizers as optimizers
import fngrad.tree as tree
from fngrad.optimizers import REGISTRY
from fngrad.optimizers.adafactor import scale_by_factored_rms
from fngrad.optimizers.adamuon import scale_by_adamuon
from fngrad.optimizers.dion import scale_by_dion
from fngrad.optimizers.hyperball import scale_by_hyperball
from fngrad.optimizers.lars import scale_by_lars
from fngrad.optimizers.muon import scale_by_muon
from fngrad.optimizers.normuon import scale_by_normuon
from fngrad.optimizers.novograd import scale_by_block_norm
from fngrad.optimizers.scion import scale_by_lmo
from fngrad.optimizers.shampoo import scale_by_shampoo
from fngrad.optimizers.sm3 import scale_by_sm3
from fngrad.optimizers.soap import scale_by_soap
from fngrad.transforms.blocks import clip_by_block_rms, scale_by_param_block_rms
from fngrad.transforms.core import unwrap
from fngrad.transforms.trust_ratio import scale_by_trust_ratio
from fngrad.tree import Stacked


def falling(step):
    return 0.1 / (1.0 + step.astype(jnp.float32))


STACKABLE = {
    "clip_by_block_rms": clip_by_block_rms(0.5),
    "scale_by_param_block_rms": scale_by_param_block_rms(),
    "scale_by_block_norm": scale_by_block_norm(falling),
    "scale_by_factored_rms": scale_by_factored_rms(True, falling, 0, 2),
    "scale_by_sm3": scale_by_sm3(falling),
    "scale_by_trust_ratio": scale_by_trust_ratio(),
    "scale_by_lars": scale_by_lars(0.1, separate_norms=True),
    "scale_by_sm3 I": scale_by_sm3(variant="I"),
    "adafactor": optimizers.adafactor(0.1, 1, momentum=0.9, weight_decay_rate=0.1),
    "novograd": optimizers.novograd(0.1),
    "lamb": optimizers.lamb(0.1),
}


def three_updates(transform, params, gradients):
    state, visited = transform.init(params), []
    for scale in (1.0, -0.5, 2.0):
        updates, state = transform.update(tree.scale(scale, gradients), state, params)
        visited.append(updates)
    return visited


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_of_leaves_is_updated_like_its_leaves_alone(name):
    rows = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    gradients = jnp.cos(rows)
    alone = three_updates(STACKABLE[name], list(rows), list(gradients))
    stacked = three_updates(STACKABLE[name], Stacked(rows), Stacked(gradients))
    for want, got in zip(alone, stacked, strict=True):
        np.testing.assert_allclose(got.leaves, jnp.stack(want), rtol=2e-6)


MATRIX_RULES = {
    "muon": scale_by_muon(),
    "normuon": scale_by_normuon(),
    "adamuon": scale_by_adamuon(),
    "dion": scale_by_dion(),
    "hyperball": scale_by_hyperball(0.1),
    "scion": scale_by_lmo(),
    "shampoo": scale_by_shampoo(0.9, 1e-3, update_every=2, graft="diagonal"),
    "soap": scale_by_soap(precondition_frequency=2),
}


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_a_stack_of_matrices_is_updated_like_its_matrices_alone(name):
    rule = unwrap(MATRIX_RULES[name])
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(size=(4, 2, 3, 2)), jnp.float32)  # steps, leaves
    update = jax.jit(rule.update)
    stacked = Stacked(gradients[0])
    together, alone = rule.init(stacked), [rule.init(gradients[0, i]) for i in (0, 1)]
    for gradient in gradients:
        updates, together = update(Stacked(gradient), together, stacked)
        for i in (0, 1):
            want, alone[i] = update(gradient[i], alone[i], gradients[0, i])
            np.testing.assert_allclose(updates.leaves[i], want, rtol=1e-4, atol=1e-5)


def test_stacks_are_updated_like_single_leaves_without_a_learning_rate():
    rows = jnp.array([[1.0, -2.0], [30.0, 0.5]])
    for name, arguments in (
        ("prodigy", {}),
        ("dadapt_adamw", {}),
        ("dadapt_sgd", {}),
        ("schedule_free_sgd", {}),
        ("dog", {"averaging": 8.0}),
        ("dog", {"layerwise": True}),
    ):
        optimizer = REGISTRY[name](**arguments)
        got = []
        for params in ({"stack": Stacked(rows)}, {"a": rows[0], "b": rows[1]}):
            state = optimizer.init(params)
            for _ in range(2):
                updates, state = optimizer.update(params, state, params)
            got.append(np.concatenate([x.ravel() for x in jax.tree.leaves(updates)]))
        np.testing.assert_allclose(got[0], got[1], rtol=1e-5)

"""Adafactor's factored second moments and its own learning rate."""

import jax.numpy as jnp
import numpy as np

import fngrad.optimizers as optimizers
import fngrad.tree as tree
from fngrad.optimizers.adafactor import scale_by_factored_rms
from fngrad.transforms.core import report


def first_update(transform, gradient, params):
    return transform.update(gradient, transform.init(params), params)[0]


def three_updates(transform, params, gradients):
    state, visited = transform.init(params), []
    for scale in (1.0, -0.5, 2.0):
        updates, state = transform.update(tree.scale(scale, gradients), state, params)
        visited.append(updates)
    return visited


def test_a_factored_leaf_keeps_its_rows_and_columns_alone():
    params = {"matrix": jnp.ones((5, 2, 4)), "bias": jnp.ones(4)}
    for kind, row, column in (("largest", (2, 4), (5, 2)), ("last", (5, 2), (5, 4))):
        rule = scale_by_factored_rms(min_dim_size_to_factor=2, factored_dims=kind)
        state = rule.init(params)["scale_by_factored_rms"]
        assert state.nu["matrix"] is None
        assert state.nu["bias"].shape == (4,)
        assert state.factors["bias"] is None
        shapes = {f.shape for f in state.factors["matrix"]}
        assert shapes == {row, column}, kind


def test_a_square_of_rank_one_is_factored_without_loss():
    gradient = jnp.outer(jnp.array([1e-9, 3.0, 2e4]), jnp.array([-2.0, 1e-6]))
    rule = scale_by_factored_rms(min_dim_size_to_factor=1)
    got = first_update(rule, gradient, jnp.ones((3, 2)))
    np.testing.assert_allclose(got, jnp.sign(gradient), rtol=1e-5)


def test_adafactor_without_a_learning_rate_takes_the_papers():
    params = jnp.array([1.0, -2.0])
    paper = optimizers.adafactor()
    relative = optimizers.adafactor(1e-2, relative_step=True)
    got, want = (three_updates(f, params, params) for f in (paper, relative))
    np.testing.assert_array_equal(got, want)
    told = report(paper, params, paper.init(params), params)
    np.testing.assert_allclose(told["scale_by_learning_rate/learning_rate"], 1e-2)

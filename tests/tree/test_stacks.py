"""Functions of single leaves: alone, in stacks, with several results."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree

ROWS = jnp.array([[3.0, 4.0], [0.0, 2.0]])


def test_a_stack_gives_what_its_leaves_give_alone():
    stacked = {"w": tree.Stacked(ROWS), "b": jnp.array([6.0, 8.0])}
    norms = tree.map_leaves(jnp.linalg.norm, stacked)
    np.testing.assert_allclose(norms["w"].leaves, [5.0, 2.0])
    np.testing.assert_allclose(norms["b"], 10.0)


def test_a_rule_may_keep_a_tree_for_each_leaf_and_return_several():
    def keep(row):
        return {"sum": jnp.sum(row), "first": row[0]}

    def use(row, kept):
        return row / kept["sum"], {"sum": kept["sum"] + 1.0, "first": row[1]}

    params = {"w": tree.Stacked(ROWS), "hole": None, "b": ROWS[0]}
    state = tree.map_leaves(keep, params)
    shares, state = tree.map_leaves(use, params, state, outputs=2)
    np.testing.assert_allclose(shares["w"].leaves, [[3 / 7, 4 / 7], [0.0, 1.0]])
    np.testing.assert_allclose(state["w"].leaves["sum"], [8.0, 3.0])
    np.testing.assert_allclose(state["b"]["first"], 4.0)
    assert shares["hole"] is None


def test_a_complex_leaf_is_refused_by_its_path():
    params = {"w": ROWS, "z": [jnp.ones(2, jnp.complex64)]}
    with pytest.raises(TypeError, match=r"need real parameters for lion, got.*'z/0'"):
        tree.check_real("lion", params)

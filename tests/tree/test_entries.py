"""Trees: their size and extremes, trees drawn and compared, leaves got and set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree

TREE = {
    "a": jnp.array([[1.0, -3.0]], jnp.bfloat16),
    "b": [jnp.array(2, jnp.int32), None],
}


def test_size_counts_the_entries_of_all_leaves():
    assert tree.size(TREE) == 3
    assert tree.size(jax.eval_shape(lambda: TREE)) == 3
    assert tree.size(()) == 0


def test_the_extremes_are_those_of_all_leaves_in_any_dtype():
    assert jax.jit(tree.max)(TREE) == 2
    assert jax.jit(tree.min)(TREE) == -3
    assert np.isnan(tree.max({"a": jnp.array([jnp.nan, 1.0]), "b": jnp.ones(1)}))
    assert tree.max({"a": jnp.zeros(0), "b": jnp.array([-jnp.inf])}) == -jnp.inf
    with pytest.raises(ValueError, match="at least one entry"):
        tree.min({"a": jnp.zeros(0)})


def test_trees_are_close_within_the_tolerance_of_each_entry():
    moved = {"a": TREE["a"] * 1.01, "b": TREE["b"]}
    assert tree.allclose(TREE, TREE)
    assert not tree.allclose(TREE, moved)
    assert jax.jit(tree.allclose)(TREE, moved, 0.02)
    wide = {"a": TREE["a"].astype(jnp.float32), "b": TREE["b"]}
    assert tree.allclose(TREE, wide)
    with pytest.raises(ValueError, match="'a'"):
        tree.allclose(TREE, {"a": jnp.zeros(2), "b": TREE["b"]})


def test_a_random_tree_has_the_shapes_and_dtypes_and_a_key_per_leaf():
    like = {"a": jnp.zeros((40, 50)), "b": jnp.zeros((2000,))}
    like["c"] = jnp.zeros((1000,), jnp.bfloat16)
    drawn = tree.random_like(0, like)
    assert tree.mismatch(like, drawn) is None
    for leaf in jax.tree.leaves(drawn):
        values = np.asarray(leaf, np.float64).ravel()
        assert abs(values.mean()) < 0.1
        assert abs(values.std() - 1) < 0.1
    flat = np.asarray(drawn["a"], np.float32).ravel()
    assert abs(np.corrcoef(flat, drawn["b"])[0, 1]) < 0.1
    signs = tree.random_like(jax.random.key(1), like, jax.random.rademacher)
    assert set(np.unique(signs["b"])) == {-1, 1}
    assert tree.random_like(0, ()) == ()


def test_leaves_are_got_and_set_by_path():
    params = {"layers": [{"weight": jnp.ones(2)}, {"weight": jnp.zeros(3)}]}
    assert tree.get(params, "layers/0/weight") is params["layers"][0]["weight"]
    new = tree.set(params, {"layers/1/weight": jnp.full(4, 5.0)})
    assert new["layers"][0] == params["layers"][0]
    np.testing.assert_array_equal(new["layers"][1]["weight"], np.full(4, 5.0))
    assert params["layers"][1]["weight"].shape == (3,)
    for wrong in (
        lambda: tree.get(params, "layers/2/weight"),
        lambda: tree.set(params, {"layers/2/weight": 0.0}),
    ):
        with pytest.raises(KeyError, match=r"layers/2/weight.*layers/0/weight"):
            wrong()

"""A leaf that does not fit is named by its path."""

import jax.numpy as jnp
import pytest

import fngrad.tree as tree


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": jnp.ones(2)}, "'b/c' is missing"),
        ({"a": jnp.ones(2), "b": {"c": jnp.ones(3), "d": 1}}, "'b/d' is not expected"),
        ({"a": jnp.ones(2), "b": {"c": jnp.ones(4)}}, r"'b/c' needs shape \(3,\)"),
        ({"a": jnp.ones(2, int), "b": {"c": jnp.ones(3)}}, "'a' needs dtype float32"),
    ],
)
def test_mismatch_names_the_leaf(other, message):
    import re

    tree_ = {"a": jnp.ones(2), "b": {"c": jnp.ones(3)}}
    assert tree.mismatch(tree_, tree_) is None
    assert re.search(message, tree.mismatch(tree_, other))


def test_mismatch_reports_another_container():
    assert "containers differ" in tree.mismatch([jnp.ones(1)], (jnp.ones(1),))

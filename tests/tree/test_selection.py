"""Leaves selected by globs, functions and trees of bools; trees split in two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.tree as tree

PARAMS = {
    "embed": {"weight": jnp.ones((2, 3))},
    "layers": [
        {"weight": jnp.ones((3, 3)), "bias": jnp.zeros(3)},
        {"weight": jnp.ones((3, 1)), "bias": jnp.zeros(1)},
    ],
}


def selected(selector):
    chosen = tree.leaf_paths(tree.select(selector, PARAMS))
    return {path for path, is_selected in chosen.items() if is_selected}


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("**", {"embed/weight", *(f"layers/{i}/{k}" for i in "01" for k in WB)})
        for WB in [("weight", "bias")]
    ]
    + [
        ("embed/**", {"embed/weight"}),
        ("**/bias", {"layers/0/bias", "layers/1/bias"}),
        ("layers/*/weight", {"layers/0/weight", "layers/1/weight"}),
        ("layers/?/bias", {"layers/0/bias", "layers/1/bias"}),
        ("layers/0/*", {"layers/0/weight", "layers/0/bias"}),
        ("*/weight", {"embed/weight"}),
        ("layers.0.bias", set()),
    ],
)
def test_a_glob_selects_by_path(glob, expected):
    assert selected(glob) == expected


@pytest.mark.parametrize("kind", [list, tuple])
def test_any_of_several_globs_selects(kind):
    globs = kind(["embed/**", "layers/?/bias"])
    assert selected(globs) == {"embed/weight", "layers/0/bias", "layers/1/bias"}
    tree.check_mask(globs, PARAMS)
    with pytest.raises(ValueError, match=r"got 'weight'.*'\*\*/weight'"):
        tree.check_mask(kind(["embed/**", "weight"]), PARAMS)


def test_several_globs_are_a_mask_of_every_rule():
    params = {"w": jnp.ones((2, 2)), "out": {"w": jnp.ones(2), "b": jnp.ones(2)}}
    zeros = tree.zeros_like(params)
    for optimizer in (
        fg.adamw(0.5, weight_decay=1.0, mask=["w", "out/b"]),
        fg.partition([(["w", "out/b"], fg.sgd(0.5)), ("**", fg.freeze())]),
        fg.masked(fg.sgd(0.5), ("w", "out/b")),
    ):
        grads = zeros if len(optimizer.parts) > 1 else params
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_array_equal(updates["w"], np.full((2, 2), -0.5))
        np.testing.assert_array_equal(updates["out"]["b"], [-0.5, -0.5])
        np.testing.assert_array_equal(updates["out"]["w"], [0.0, 0.0])
    with pytest.raises(ValueError, match="selects a leaf, got 'out/x'"):
        fg.muon(0.1, weight_decay=1.0, mask=["w", "out/x"]).init(params)


def test_a_star_at_the_root_selects_a_single_leaf():
    assert tree.select("**", jnp.ones(2)) is True
    assert tree.select("embed/**", {"embed": jnp.ones(2)}) == {"embed": True}


def test_a_predicate_sees_path_and_leaf():
    matrices = selected(lambda path, leaf: leaf.ndim == 2 and path != "embed/weight")
    assert matrices == {"layers/0/weight", "layers/1/weight"}


def test_a_tree_of_bools_may_be_a_prefix():
    assert selected(
        {"embed": True, "layers": [False, {"weight": True, "bias": False}]}
    ) == {
        "embed/weight",
        "layers/1/weight",
    }


def test_a_mask_that_does_not_fit_is_refused_with_the_path():
    with pytest.raises(ValueError, match=r"entry 'head' where the tree has no leaf"):
        tree.select({"embed": True, "layers": False, "head": True}, PARAMS)
    with pytest.raises(ValueError, match=r"got none for 'layers/0/bias'"):
        tree.select({"embed": True}, PARAMS)


def test_a_callable_pytree_is_not_taken_for_a_predicate():
    @jax.tree_util.register_pytree_node_class
    class Module:
        def __call__(self, path, leaf):
            raise AssertionError("a module is not a predicate")

        def tree_flatten(self):
            return (jnp.ones(1),), None

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls()

    with pytest.raises(TypeError, match="need a selector"):
        tree.select(Module(), PARAMS)


def test_a_mask_function_of_another_signature_is_refused():
    with pytest.raises(TypeError, match=r"got dict for leaf 'embed/weight'"):
        tree.select(lambda path, leaf: {"embed": True}, PARAMS)
    with pytest.raises(TypeError, match="need a selector"):
        tree.select(3, PARAMS)
    # The axes of stacked layers' biases are two: the way out is by path.
    with pytest.raises(TypeError, match=r'"\*\*/weight".*path\.endswith'):
        tree.select(lambda params: params, PARAMS)


def test_split_and_rebuild_are_inverse():
    model = {"w": jnp.ones(2), "act": jax.nn.relu, "count": jnp.arange(3), "name": "m"}
    params, rebuild = tree.split(model)
    assert jax.tree.leaves(params) == [params["w"]]
    rebuilt = rebuild(tree.scale(2.0, params))
    assert rebuilt["act"] is jax.nn.relu
    assert rebuilt["name"] == "m"
    np.testing.assert_array_equal(rebuilt["w"], [2.0, 2.0])
    np.testing.assert_array_equal(rebuilt["count"], [0, 1, 2])


def test_keep_and_merge_are_inverse():
    mask = tree.select("**/bias", PARAMS)
    rest = jax.tree.map(lambda m: not m, mask)
    merged = tree.merge(tree.keep(mask, PARAMS), tree.keep(rest, PARAMS))
    assert tree.mismatch(PARAMS, merged) is None
    assert list(tree.leaf_paths(tree.keep(mask, PARAMS))) == [
        "layers/0/bias",
        "layers/1/bias",
    ]

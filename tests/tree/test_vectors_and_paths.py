"""Trees as vectors, their paths, and the selection of leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

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


def test_a_mask_function_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"got dict for leaf 'embed/weight'"):
        tree.select(lambda path, leaf: {"embed": True}, PARAMS)
    with pytest.raises(TypeError, match="need a selector"):
        tree.select(3, PARAMS)


def test_split_and_rebuild_are_inverse():
    model = {"w": jnp.ones(2), "act": jax.nn.relu, "count": jnp.arange(3), "name": "m"}
    params, rebuild = tree.split(model)
    assert jax.tree.leaves(params) == [params["w"]]
    rebuilt = rebuild(tree.scale(2.0, params))
    assert rebuilt["act"] is jax.nn.relu
    assert rebuilt["name"] == "m"
    np.testing.assert_array_equal(rebuilt["w"], [2.0, 2.0])
    np.testing.assert_array_equal(rebuilt["count"], [0, 1, 2])


def test_average_keeps_one_minus_decay_in_the_scalars_dtype():
    a, b = jnp.zeros(1, jnp.bfloat16), jnp.ones(1, jnp.bfloat16)
    stepped = tree.average(jnp.float32(0.999), a, b)
    assert stepped.dtype == jnp.bfloat16
    np.testing.assert_allclose(stepped.astype(jnp.float32), 0.001, rtol=2**-8)


def test_lerp_is_linear_between_its_ends():
    a, b = {"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([3.0, 6.0])}
    np.testing.assert_allclose(tree.lerp(a, b, 0.25)["x"], [1.5, 3.0])
    np.testing.assert_array_equal(tree.lerp(a, b, 0.0)["x"], a["x"])
    np.testing.assert_array_equal(tree.lerp(a, b, 1.0)["x"], b["x"])


def test_norm_and_vdot_are_those_of_the_concatenated_vector():
    a = {"x": jnp.array([3.0, 4.0]), "z": jnp.array([1 + 2j])}
    b = {"x": jnp.array([1.0, -1.0]), "z": jnp.array([2 - 1j])}
    flat_a, flat_b = np.array([3, 4, 1 + 2j]), np.array([1, -1, 2 - 1j])
    np.testing.assert_allclose(tree.norm(a), np.linalg.norm(flat_a), rtol=1e-6)
    np.testing.assert_allclose(tree.vdot(a, b), np.vdot(flat_a, flat_b).real)


def test_norm_of_a_tree_without_leaves_is_zero():
    for empty in ((), [], {"a": None}):
        assert tree.norm(empty) == 0


def test_norm_has_gradient_zero_at_zero():
    grads = jax.grad(tree.norm)({"x": jnp.zeros(3)})
    np.testing.assert_array_equal(grads["x"], 0)


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-19, 1.0, 1e19, 1e37])
def test_norm_is_accurate_wherever_it_is_representable(size):
    a = {"x": jnp.array([3.0, 0.0]) * size, "y": jnp.float32(4.0) * size}
    expected = np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in a.values()))
    norm, gradient = jax.value_and_grad(tree.norm)(a)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient["x"], [0.6, 0.0], rtol=1e-6)
    norms = jax.vmap(tree.norm)(jax.tree.map(lambda x: jnp.stack([x, 0 * x]), a))
    np.testing.assert_allclose(norms, [expected, 0.0], rtol=1e-6)


def test_norm_of_ordinary_entries_has_the_bits_of_the_plain_root():
    x = jax.random.normal(jax.random.key(0), (1000,))
    assert jax.jit(tree.norm)(x) == jax.jit(lambda x: jnp.sqrt(jnp.sum(x * x)))(x)


@pytest.mark.parametrize(("bad", "expected"), [(np.inf, np.inf), (np.nan, np.nan)])
def test_norm_of_a_tree_that_is_not_finite_is_not_finite(bad, expected):
    np.testing.assert_array_equal(tree.norm(jnp.array([1.0, bad])), expected)


def test_norm_of_narrow_leaves_is_computed_wide():
    big = jnp.full(4, 300.0, jnp.float16)  # 300**2 overflows float16
    assert tree.norm(big).dtype == jnp.float32
    np.testing.assert_allclose(tree.norm(big), 600.0)


def test_norm_of_mixed_precision_is_in_the_widest():
    with precision.x64():
        mixed = {"a": jnp.full(1, 3.0, jnp.float32), "b": jnp.full(1, 4.0)}
        assert tree.norm(mixed).dtype == jnp.float64
        assert tree.norm({"a": mixed["a"]}).dtype == jnp.float32
        np.testing.assert_array_equal(tree.norm(mixed), 5.0)


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


def test_mismatch_sees_another_container():
    assert "containers differ" in tree.mismatch([jnp.ones(1)], (jnp.ones(1),))


def test_keep_and_merge_are_inverse():
    mask = tree.select("**/bias", PARAMS)
    rest = jax.tree.map(lambda m: not m, mask)
    merged = tree.merge(tree.keep(mask, PARAMS), tree.keep(rest, PARAMS))
    assert tree.mismatch(PARAMS, merged) is None
    assert list(tree.leaf_paths(tree.keep(mask, PARAMS))) == [
        "layers/0/bias",
        "layers/1/bias",
    ]


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1.0, 2e19, 1e30])
def test_the_norm_of_leaves_of_several_dtypes_keeps_its_digits(size, x64):
    narrow = np.full(3, size, np.float32)
    a = {"narrow": jnp.asarray(narrow), "wide": jnp.asarray([0.0, size / 2])}
    want = np.sqrt(np.sum(narrow.astype(float) ** 2) + (size / 2) ** 2)
    np.testing.assert_allclose(tree.norm(a), want, rtol=1e-14)

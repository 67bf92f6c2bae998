"""Trees as vectors: averages, products and norms."""

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree


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
def test_norm_is_exact_wherever_it_fits(size):
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
def test_norm_of_nonfinite_entries_is_not_finite(bad, expected):
    np.testing.assert_array_equal(tree.norm(jnp.array([1.0, bad])), expected)


def test_norm_of_narrow_leaves_is_computed_wide():
    big = jnp.full(4, 300.0, jnp.float16)  # 300**2 overflows float16
    assert tree.norm(big).dtype == jnp.float32
    np.testing.assert_allclose(tree.norm(big), 600.0)


def test_norm_of_mixed_precision_is_in_the_widest():
    with float64_mode.x64():
        mixed = {"a": jnp.full(1, 3.0, jnp.float32), "b": jnp.full(1, 4.0)}
        assert tree.norm(mixed).dtype == jnp.float64
        assert tree.norm({"a": mixed["a"]}).dtype == jnp.float32
        np.testing.assert_array_equal(tree.norm(mixed), 5.0)


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1.0, 2e19, 1e30])
def test_the_norm_of_leaves_of_several_dtypes_keeps_its_digits(size, x64):
    narrow = np.full(3, size, np.float32)
    a = {"narrow": jnp.asarray(narrow), "wide": jnp.asarray([0.0, size / 2])}
    want = np.sqrt(np.sum(narrow.astype(float) ** 2) + (size / 2) ** 2)
    np.testing.assert_allclose(tree.norm(a), want, rtol=1e-14)


def test_zeros_are_like_numbers_and_keys_too():
    key = jax.random.key(1)
    made = tree.zeros_like({"number": 2.0, "key": key, "array": jnp.ones(2, jnp.int8)})
    assert made["number"] == 0
    assert made["key"].dtype == key.dtype
    assert made["array"].dtype == jnp.int8

"""Counters, division, norms and powers of two at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.numerics as numerics
import fngrad.tree as tree


def test_the_step_saturates():
    assert numerics.first_step().dtype == jnp.int32
    assert numerics.next_step(jnp.int32(5)) == 6
    assert numerics.next_step(jnp.int32(2**31 - 1)) == 2**31 - 1


def test_division_by_zero_is_zero_with_zero_gradient():
    x = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(numerics.divide(x, x), [1.0, 0.0])
    grads = jax.grad(lambda x: numerics.divide(x, x).sum())(x)
    np.testing.assert_array_equal(grads, [0.0, 0.0])


def test_no_slope_passes_a_root_of_zero_not_even_an_infinite_one():
    x = jnp.array([0.0, 4.0])
    root, pull = jax.vjp(numerics.square_root, x)
    np.testing.assert_array_equal(root, [0.0, 2.0])
    for slope in (1.0, jnp.inf):
        slopes = jnp.full(2, slope)
        expected = [0.0, slope / 4]
        np.testing.assert_array_equal(pull(slopes)[0], expected)
        along = jax.jvp(numerics.square_root, (x,), (slopes,))[1]
        np.testing.assert_array_equal(along, expected)
    second = jax.hessian(lambda x: jnp.sum(numerics.square_root(x)))(x)
    np.testing.assert_array_equal(second, jnp.diag(jnp.array([0.0, -1 / 32])))


@pytest.mark.parametrize("norm", [numerics.norm, tree.norm])
def test_a_second_derivative_of_a_norm_is_finite_wherever_the_norm_is_small(norm):
    """The branches of the norm share what JAX keeps, so a slope of 0 meets 1 / tiny."""
    along = jnp.ones(2)
    hvp = jax.jit(lambda x: jax.jvp(jax.grad(norm), (x,), (along,))[1])
    np.testing.assert_array_equal(hvp(jnp.zeros(2)), [0.0, 0.0])
    for size in (1e-30, 1.0, 1e25):
        x = jnp.array([1.0, 2.0]) * size
        expected = np.array([0.4, -0.2]) / 5**0.5 / size  # along less its part along x
        np.testing.assert_allclose(hvp(x), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norm_along_an_axis_is_exact_wherever_it_fits(size):
    x = np.array([[3, 4], [0, 0], [5e-3, 12e-3]], "f4") * np.float32(size)
    expected = np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    got = numerics.norm(jnp.asarray(x), axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    z = jnp.asarray(x[0] * np.complex64(1 + 1j))
    np.testing.assert_allclose(numerics.norm(z), 5 * np.sqrt(2) * size, rtol=1e-6)


def test_norm_along_an_axis_scales_each_slice_by_itself():
    x = jnp.array([[1e25, 0.0], [3.0, 4.0], [1e-10, 0.0], [0.0, 0.0]])
    expected = np.float32([1e25, 5.0, 1e-10, 0.0])
    np.testing.assert_allclose(numerics.norm(x, axis=1), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(numerics.norm)(x), expected, rtol=1e-6)
    slopes = jax.grad(lambda x: jnp.sum(numerics.norm(x, axis=1)))(x)
    np.testing.assert_allclose(slopes[1], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "power"),
    [(1.0, 1.0), (1.99, 1.0), (3e38, 2.0**126), (0.75, 0.5), (0.0, 2.0**-126)],
)
def test_power_of_two_below_is_a_divisor_that_rounds_nothing(x, power):
    assert numerics.power_of_two_below(jnp.float32(x)) == power


def test_numbers_are_replaced_where_a_condition_holds():
    x = jnp.array([1.0, jnp.nan, -3.0])
    got = numerics.replaced(jnp.array([False, True, True]), x, 7)
    np.testing.assert_array_equal(got, [1.0, 7.0, 7.0])
    assert got.dtype == x.dtype
    broadcast = numerics.replaced(jnp.array([[True], [False]]), x, 0)
    np.testing.assert_array_equal(broadcast, [[0, 0, 0], x])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_clipping_passes_on_nan_and_infinities_where_its_condition_fails(dtype):
    x = jnp.array([1.0, jnp.inf, -jnp.inf, jnp.inf, jnp.nan, -9.0], dtype)
    condition = jnp.array([True, True, True, False, True, True])
    got = numerics.clipped(condition, x, 4.0)
    np.testing.assert_array_equal(got.astype("float32"), [1, 4, -4, np.inf, np.nan, -4])
    assert got.dtype == x.dtype


def test_a_replacement_is_one_equation_and_no_function_of_its_own():
    """`jnp.where` is a jitted function, traced and batched apart for each shape."""
    x = jnp.ones(3)
    program = jax.make_jaxpr(numerics.square_root)(x)
    assert "jit" not in str(program)

"""Hyperparameters enter the arithmetic as data; the arithmetic survives its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.numerics as numerics


@pytest.mark.parametrize("value", [1, 0.5, np.float64(0.5), np.float32(0.5)])
def test_hyper_is_a_strong_scalar_of_the_default_float(value):
    scalar = numerics.hyper(value)
    assert scalar.dtype == jnp.float32
    assert scalar.shape == ()
    assert not scalar.weak_type


def test_hyper_widens_a_narrow_value_to_the_default_float():
    assert numerics.hyper(jnp.bfloat16(0.5)).dtype == jnp.float32


def test_hyper_asks_a_schedule_for_the_step():
    scalar = numerics.hyper(lambda step: 0.5 * step.astype(float), jnp.int32(3))
    np.testing.assert_array_equal(scalar, 1.5)


def test_hyper_takes_tracers_under_vmap_grad_and_jvp():
    values = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(numerics.hyper)(values), values)
    square = lambda x: numerics.hyper(x) ** 2  # noqa: E731
    np.testing.assert_array_equal(jax.grad(square)(3.0), 6.0)
    np.testing.assert_array_equal(jax.jacfwd(square)(3.0), 6.0)


def test_hyper_refuses_what_is_no_scalar():
    with pytest.raises(ValueError, match=r"need a scalar hyperparameter.*\(3,\)"):
        numerics.hyper(lambda step: jnp.ones(3), jnp.int32(0))
    with pytest.raises(TypeError, match="takes no schedule"):
        numerics.hyper(lambda step: 1.0)


def test_a_value_in_the_program_gives_the_bits_of_the_value_as_data():
    x = jnp.linspace(0.1, 1.0, 1000)

    def scale_twice(a, b, x):
        # Without the barrier XLA may merge constants into x * (a * b).
        return (x * numerics.hyper(a)) * numerics.hyper(b)

    baked = jax.jit(lambda x: scale_twice(0.1, 0.3, x))(x)
    passed = jax.jit(scale_twice)(0.1, 0.3, x)
    np.testing.assert_array_equal(baked, passed)


def test_numbers_are_checked_and_arrays_pass_unread():
    numerics.check_number("decay", 0.5, 0.0, 1.0)
    numerics.check_number("decay", jnp.array(7.0), 0.0, 1.0)
    numerics.check_number("decay", None, 0.0, 1.0)
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"0.0 <= decay <= 1.0, got decay={bad}"):
            numerics.check_number("decay", bad, 0.0, 1.0)


@pytest.mark.parametrize("bad", ["1e-3", [1e-3], {"value": 1.0}])
def test_what_is_no_hyperparameter_is_refused(bad):
    with pytest.raises(TypeError, match="need decay to be a number, a scalar array or"):
        numerics.check_number("decay", bad)


def test_a_large_int_is_a_hyperparameter():
    np.testing.assert_allclose(numerics.hyper(10**10), 1e10)


def test_the_step_saturates():
    assert numerics.first_step().dtype == jnp.int32
    assert numerics.next_step(jnp.int32(5)) == 6
    assert numerics.next_step(jnp.int32(2**31 - 1)) == 2**31 - 1


def test_division_by_zero_is_zero_with_zero_gradient():
    x = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(numerics.divide(x, x), [1.0, 0.0])
    grads = jax.grad(lambda x: numerics.divide(x, x).sum())(x)
    np.testing.assert_array_equal(grads, [0.0, 0.0])


def test_a_key_is_typed_or_an_int():
    key = jax.random.key(7)
    assert numerics.key(key) is key
    np.testing.assert_array_equal(
        jax.random.key_data(numerics.key(7)), jax.random.key_data(key)
    )
    traced = jax.jit(lambda seed: jax.random.key_data(numerics.key(seed)))(7)
    np.testing.assert_array_equal(traced, jax.random.key_data(key))
    for bad in (jax.random.PRNGKey(0), 1.5):
        with pytest.raises(TypeError, match="need an int or a typed key"):
            numerics.key(bad)


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

"""Hyperparameters enter the arithmetic as data, and numbers are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.numerics as numerics

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles


@pytest.mark.parametrize("value", [1, 0.5, np.float64(0.5), np.float32(0.5)])
def test_hyper_is_a_strong_scalar_of_the_default_float(value):
    scalar = numerics.hyper(value)
    assert scalar.dtype == jnp.float32
    assert scalar.shape == ()
    assert not scalar.weak_type


def test_hyper_widens_a_narrow_value_to_the_default_float():
    assert numerics.hyper(jnp.bfloat16(0.5)).dtype == jnp.float32


def test_hyper_evaluates_a_schedule_at_the_step():
    scalar = numerics.hyper(lambda step: 0.5 * step.astype(float), jnp.int32(3))
    np.testing.assert_array_equal(scalar, 1.5)


def test_hyper_accepts_tracers_under_vmap_grad_and_jvp():
    values = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(numerics.hyper)(values), values)
    square = lambda x: numerics.hyper(x) ** 2  # noqa: E731
    np.testing.assert_array_equal(jax.grad(square)(3.0), 6.0)
    np.testing.assert_array_equal(jax.jacfwd(square)(3.0), 6.0)


def test_hyper_refuses_values_that_are_not_scalars():
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
    numerics.check_number("decay", None, 0.0, 1.0, optional=True)
    with pytest.raises(TypeError, match=r"need decay to be a number.* got None"):
        numerics.check_number("decay", None, 0.0, 1.0)
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"0.0 <= decay <= 1.0, got decay={bad}"):
            numerics.check_number("decay", bad, 0.0, 1.0)


@pytest.mark.parametrize("bad", ["1e-3", [1e-3], {"value": 1.0}])
def test_a_value_that_is_not_a_hyperparameter_is_refused(bad):
    with pytest.raises(TypeError, match="need decay to be a number, a scalar array or"):
        numerics.check_number("decay", bad)


def test_a_large_int_is_a_hyperparameter():
    np.testing.assert_allclose(numerics.hyper(10**10), 1e10)

"""Powers whose values and gradients are finite at zero."""

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics


def test_a_power_of_zero_is_one_where_the_exponent_is_zero():
    base, exponent = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([0.0, 3.0, 0.0, 3.0])
    got, slopes = (
        numerics.power_or_one(base, exponent),
        jax.grad(lambda b, e: jnp.sum(numerics.power_or_one(b, e)), argnums=(0, 1))(
            base, exponent
        ),
    )
    np.testing.assert_array_equal(got, [1.0, 0.0, 1.0, 8.0])
    assert np.all(np.isfinite(slopes))

"""The weight that an average from zero has seen."""

import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.transforms.moment_arithmetic import weight_seen


def test_the_last_step_is_corrected_like_a_late_one():
    last = weight_seen(jnp.float32(0.999), jnp.int32(2**31 - 1))
    np.testing.assert_array_equal(last, 1.0)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
@pytest.mark.parametrize("step", [0, 1, 10, 10_000])
def test_bias_correction_is_exact_in_float32(decay, step):
    exact = 1 - np.float64(np.float32(decay)) ** (step + 1)
    got = weight_seen(jnp.float32(decay), jnp.int32(step))
    np.testing.assert_allclose(got, exact, rtol=2e-6)


def test_bias_correction_without_memory_is_one():
    np.testing.assert_array_equal(weight_seen(jnp.float32(0.0), jnp.int32(0)), 1.0)

"""Schedules where they could break: slopes at the ends, knots, late steps."""

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad import schedules

S = schedules


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_slopes_in_values_and_lengths_are_finite_at_the_ends(power):
    made = [
        lambda v, n: S.polynomial(v, 0.1, power, n),
        lambda v, n: S.cosine(v, n, 0.1, power),
        lambda v, n: S.warmup_cosine(0.0, v, 2, n, 0.1, power),
        lambda v, n: S.warmup_stable_decay(0.0, v, 2, 2, n - 4.0, power=power),
    ]
    for make in made:
        for step in (0, 2, 4, 12, 13):
            slopes = jax.grad(lambda v, n, f=make, t=step: f(v, n)(t), (0, 1))(
                1.0, 12.0
            )
            assert np.isfinite(slopes).all(), (make, step, slopes)


def test_one_cycle_has_its_peak_at_the_same_step_in_any_precision():
    schedule = jax.jit(S.one_cycle(100, 1.0, 0.29, anneal="linear"))
    peak = int(0.29 * 100)
    assert float(schedule(peak)) == 1
    with float64_mode.x64():
        assert float(schedule(peak)) == 1


def test_one_cycle_loses_nothing_late_in_a_run():
    schedule = S.one_cycle(2**30, 1.0, 0.5, 1.0, 2.0**40, anneal="linear")
    last = jax.jit(schedule)(jnp.array([2**30 - 2, 2**30 - 1]))
    np.testing.assert_allclose(last, [2**-28, 2**-29], rtol=1e-2)

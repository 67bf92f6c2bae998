"""Which steps count as bad: by their own verdict, else by their loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.training.divergence import bad_steps, faults, has_diverged

LOSS = np.array([1.0, np.nan, np.inf, 2.0])


@pytest.mark.parametrize(
    ("history", "want"),
    [
        # A skipped step is good although its loss is not finite.
        ({"is_finite": np.array([1.0, 1.0, 0.0, 0.0]), "loss": LOSS}, [0, 0, 1, 1]),
        ({"is_finite": np.array([True, True, False, True])}, [0, 0, 1, 0]),
        ({"loss": LOSS}, [0, 1, 1, 0]),
        ({"accuracy": LOSS}, [0, 0, 0, 0]),
    ],
    ids=["verdict of floats", "verdict of bools", "loss", "neither"],
)
@pytest.mark.parametrize("count", [4, 2])
def test_a_step_is_bad_by_its_verdict_or_else_by_its_loss(history, want, count):
    assert bad_steps(history, count).astype(int).tolist() == want[-count:]


def test_the_numbers_of_a_step_that_are_not_finite_are_named():
    metrics = {"update_norm": jnp.inf, "loss": jnp.nan, "grad_norm": 1.0, "x": jnp.nan}
    metrics = {name: jnp.asarray(value) for name, value in metrics.items()}
    assert faults(metrics) == ["loss", "update_norm"]


def test_a_run_has_diverged_where_either_its_verdict_or_its_loss_is_bad():
    good, bad = jnp.array(True), jnp.array(False)
    assert not has_diverged({"is_finite": good, "loss": jnp.array(1.0)})
    assert has_diverged({"is_finite": bad, "loss": jnp.array(1.0)})
    assert has_diverged({"is_finite": good, "loss": jnp.array(jnp.nan)})

"""Means over micro-batches."""

import jax.numpy as jnp
import numpy as np

from fngrad.optimizers import sgd
from fngrad.training import init_state, make_step


def test_a_masked_mean_in_micro_batches_needs_weights_of_mean_one():
    losses, mask = jnp.arange(4.0), jnp.array([1.0, 1.0, 1.0, 0.0])

    def loss_of(params, batch):
        return jnp.mean(params * batch["losses"] * batch["weights"])

    step = make_step(loss_of, sgd(0.0), micro_batches=2)
    batch = {"losses": losses, "weights": mask / jnp.mean(mask)}
    _, metrics = step(init_state(jnp.ones(()), sgd(0.0), 0), batch)
    np.testing.assert_allclose(metrics["loss"], 1.0, rtol=1e-6)

    def divided(params, batch):
        total = jnp.sum(params * batch["losses"] * batch["weights"])
        return total / jnp.sum(batch["weights"])

    step = make_step(divided, sgd(0.0), micro_batches=2)
    _, metrics = step(init_state(jnp.ones(()), sgd(0.0), 0), batch)
    np.testing.assert_allclose(metrics["loss"], 1.25, rtol=1e-6)  # (0.5 + 2) / 2

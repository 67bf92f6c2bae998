"""What an update in place holds beside its arguments."""

import jax
import jax.numpy as jnp

from fngrad.transforms.core import apply_updates

ENTRIES = 64 * 64  # of each of three leaves


def temporary_bytes(optimizer):
    """Return the bytes of temporaries of a compiled, donated update."""
    params = {name: jax.ShapeDtypeStruct((64, 64), jnp.float32) for name in "abc"}
    state = jax.eval_shape(optimizer.init, params)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    used = jitted.lower(params, state, params).compile().memory_analysis()
    return used.temp_size_in_bytes

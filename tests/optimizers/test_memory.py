"""What a compiled update holds beside the parameters, gradients and state."""

import jax
import jax.numpy as jnp
import pytest

from fngrad.optimizers import REGISTRY
from fngrad.transforms.core import apply_updates

# Their loops write in place and share no intermediate array. Others need one: rules
# with norms, and those that use the old and the new value of one moment.
IN_PLACE = (
    *("sgd", "momentum", "rmsprop", "adagrad", "adam", "adamw", "adamax", "amsgrad"),
    *("nadam", "radam", "yogi", "ademamix", "sign_sgd", "signum", "madgrad"),
)


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_update_in_place_holds_no_temporary_arrays(name):
    optimizer = REGISTRY[name](0.1)
    params = {name: jax.ShapeDtypeStruct((64, 64), jnp.float32) for name in "abc"}
    state = jax.eval_shape(optimizer.init, params)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    used = jitted.lower(params, state, params).compile().memory_analysis()
    assert used.temp_size_in_bytes < 64 * 64 * 4

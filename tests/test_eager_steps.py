"""A step outside of jit compiles each of its operations once, not at every call."""

import logging

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
from fngrad.optimizers import REGISTRY

CHAINS = {
    "clip_by_global_norm": lambda rate: fg.chain(
        fg.clip_by_global_norm(1.0), fg.sgd(rate)
    ),
    "clip_by_block_rms": lambda rate: fg.chain(fg.clip_by_block_rms(1.0), fg.sgd(rate)),
    "adaptive_clip": lambda rate: fg.chain(fg.adaptive_clip(1.0), fg.sgd(rate)),
    "skip_nonfinite": lambda rate: fg.skip_nonfinite(fg.sgd(rate)),
}


@pytest.mark.parametrize("name", [*REGISTRY, *CHAINS])
def test_a_third_step_compiles_nothing(name, caplog):
    optimizer = ({**REGISTRY, **CHAINS})[name](0.1)
    step = fg.make_step(
        lambda w, batch: jnp.sum(w["a"] ** 2) + jnp.sum(w["b"]), optimizer
    )
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = fg.init_state(params, optimizer, key=0)
    for _ in range(2):  # Adopt's and RAdam's second step is another
        state, _ = step(state, None)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        step(state, None)
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert not compiled

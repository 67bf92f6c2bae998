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
    "accumulate": lambda rate: fg.accumulate(fg.sgd(rate), 2),
    "partition": lambda rate: fg.partition([("a", fg.adam(rate)), ("b", fg.freeze())]),
    "bfloat16 moments": lambda rate: fg.quantize_state(fg.adam(rate), 16),
    "quantize_state": lambda rate: fg.quantize_state(fg.adam(rate), min_size=4),
    "loss_scaling": lambda rate: fg.loss_scaling(fg.sgd(rate)),
    "skip_nonfinite": lambda rate: fg.skip_nonfinite(fg.sgd(rate)),
    "stack_leaves": lambda rate: fg.stack_leaves(fg.adam(rate)),
    "tunable": lambda rate: fg.tunable(fg.adam, learning_rate=rate),
}


# The other rules consist of operations that these have too.
FAST = {
    *(*CHAINS, "adam", "adopt", "radam", "adafactor", "shampoo", "soap", "muon"),
    *("lamb", "sm3", "prodigy", "dog", "schedule_free_adamw", "rprop", "novograd"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST))
        for name in [*REGISTRY, *CHAINS]
    ],
)
def test_a_third_step_compiles_nothing(name, caplog):
    optimizer = ({**REGISTRY, **CHAINS})[name](0.1)
    step = fg.make_step(
        lambda w, batch: jnp.sum(w["a"] ** 2) + jnp.sum(w["b"]), optimizer
    )
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = fg.init_state(params, optimizer, key=0)

    def compiled():
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if "Compiling" in message]

    with caplog.at_level(logging.WARNING), jax.log_compiles():
        for _ in range(2):  # Adopt's and RAdam's second step is another
            state, _ = step(state, None)
        jax.jit(lambda x: x + 1)(jnp.ones(7)).block_until_ready()
        assert compiled()  # what is searched for is how JAX words it
        caplog.clear()
        step(state, None)
        assert not compiled()

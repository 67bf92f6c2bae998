"""`fit` warns of a loss that gives layers such as dropout no key."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.layers as layers

X = np.random.default_rng(0).normal(size=(8, 4)).astype("f")
DATA = fg.data.from_arrays({"x": X, "y": X[:, 0]}, 4)
OPTIMIZER = fg.sgd(0.1)
MODELS = {
    "dropout": layers.serial(layers.linear(4, 2), layers.dropout(0.5)),
    "drop_path": layers.residual(
        layers.serial(layers.linear(4, 4), layers.drop_path(0.5))
    ),
    "attention dropout": layers.serial(
        lambda x: x[:, None], layers.multi_head_attention(1, 1, dropout_rate=0.5)
    ),
}


def warned(model, has_key, make=fg.make_step, reference=None):
    """Return the warnings of a step's training with a model."""

    def predict(params, x, key):
        return layers.batched(model)(params, x, key=key if has_key else None)

    def loss_fn(params, batch, key):
        y = predict(params, batch["x"], key)
        if reference is not None:
            y -= layers.batched(reference)(params, batch["x"])
        return jnp.mean(y**2)

    state = fg.init_state(model.init(0), OPTIMIZER, key=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fg.fit(make(loss_fn, OPTIMIZER), state, DATA, num_steps=1, progress=False)
    return [(str(each.message), each.filename) for each in caught]


@pytest.mark.parametrize("kind", MODELS)
def test_layers_without_a_key_are_warned_about(kind):
    ((message, filename),) = warned(MODELS[kind], has_key=False)
    assert f"so that {kind} does nothing: take a key" in message
    assert filename == __file__
    assert warned(MODELS[kind], has_key=True) == []


def test_steps_of_every_kind_are_warned_about():
    def in_parts(loss_fn, optimizer):
        return fg.make_step(loss_fn, optimizer, micro_batches=2, remat=policy)

    policy = jax.checkpoint_policies.nothing_saveable
    for make in (fg.steps.sam, in_parts):
        assert len(warned(MODELS["dropout"], has_key=False, make=make)) == 1


def test_a_model_that_was_traced_before_is_known_to_draw():
    model = MODELS["dropout"]
    params = model.init(0)
    apply = jax.jit(lambda params, x, key: layers.batched(model)(params, x, key=key))
    apply(params, X[:4], jax.random.key(0))  # JAX keeps the trace

    def loss_fn(params, batch, key):
        student = apply(params, batch["x"], key)
        return jnp.mean((student - layers.batched(model)(params, batch["x"])) ** 2)

    state = fg.init_state(params, OPTIMIZER, key=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = fg.make_step(loss_fn, OPTIMIZER)
        fg.fit(step, state, DATA, num_steps=1, progress=False)


def test_what_is_meant_is_not_warned_about():
    model = MODELS["dropout"]
    assert warned(model, has_key=True, reference=model) == []
    for rate in (0.0, jnp.float32(0.0)):
        never = layers.serial(layers.linear(4, 2), layers.dropout(rate))
        assert warned(never, has_key=False) == []

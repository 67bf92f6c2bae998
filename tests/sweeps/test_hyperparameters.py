"""Every number of a training can be swept, and a lane equals a separate run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import ARRAYS, squared_errors
from sweep_problems import quiet_sweep

import fngrad as fg

STEPS = 4


def squared(params, batch):
    return jnp.mean(squared_errors(params, batch))


def trained(optimizer, key, loss_fn=squared, params=None):
    state = fg.init_state(
        params or {"w": jnp.ones(2), "b": jnp.zeros(())}, optimizer, key
    )
    return fg.run(fg.make_step(loss_fn, optimizer), state, lambda step: ARRAYS, STEPS)


def by_optimizer(make):
    return lambda value, key: trained(make(value), key)


def smoothed(value, key):
    def loss_fn(params, batch):
        logits = jnp.outer(batch["x"] @ params["w"], jnp.array([1.0, -1.0]))
        labels = (batch["y"] > 0).astype(jnp.int32)
        return jnp.mean(
            fg.losses.softmax_cross_entropy_with_integer_labels(
                logits, labels, label_smoothing=value
            )
        )

    return trained(fg.sgd(0.1), key, loss_fn)


def dropped(value, key):
    layer = fg.layers.dropout(value)

    def loss_fn(params, batch, key):
        keys = jax.random.split(key, len(batch["x"]))
        x = jax.vmap(lambda x, k: layer.apply((), x, key=k))(batch["x"], keys)
        return squared(params, {**batch, "x": x})

    return trained(fg.sgd(0.1), key, loss_fn)


def scaled(value, key):
    k_init, k_run = jax.random.split(key)
    params = {"w": value * jax.random.normal(k_init, 2), "b": jnp.zeros(())}
    return trained(fg.sgd(0.1), k_run, params=params)


SWEPT = {
    "learning_rate": (by_optimizer(fg.sgd), [0.01, 0.1]),
    "momentum": (by_optimizer(lambda v: fg.momentum(0.1, v)), [0.5, 0.9]),
    "decay": (by_optimizer(lambda v: fg.rmsprop(0.1, decay=v)), [0.5, 0.9]),
    "b2": (by_optimizer(lambda v: fg.adam(0.1, b2=v)), [0.9, 0.999]),
    "eps": (by_optimizer(lambda v: fg.adam(0.1, eps=v)), [1e-8, 0.1]),
    "weight_decay": (by_optimizer(lambda v: fg.adamw(0.1, weight_decay=v)), [0.0, 0.5]),
    "clip_norm": (
        by_optimizer(lambda v: fg.chain(fg.clip_by_global_norm(v), fg.sgd(0.1))),
        [0.1, 1.0],
    ),
    "warmup_steps": (
        by_optimizer(
            lambda v: fg.sgd(
                fg.schedules.warmup_cosine(
                    init_value=0.0, peak_value=0.1, warmup_steps=v, decay_steps=10
                )
            )
        ),
        [1, 3],
    ),
    "decay_steps": (
        by_optimizer(lambda v: fg.sgd(fg.schedules.cosine(0.1, v))),
        [2, 5],
    ),
    "transition_steps": (
        by_optimizer(lambda v: fg.sgd(fg.schedules.linear(0.1, 0.0, v))),
        [2, 5],
    ),
    "boundary": (
        by_optimizer(
            lambda v: fg.sgd(
                fg.schedules.join(
                    [fg.schedules.constant(0.1), fg.schedules.constant(0.01)], [v]
                )
            )
        ),
        [1, 3],
    ),
    "label_smoothing": (smoothed, [0.0, 0.3]),
    "dropout_rate": (dropped, [0.1, 0.6]),
    "init_scale": (scaled, [0.5, 2.0]),
}


@pytest.mark.parametrize("name", SWEPT)
def test_a_hyperparameter_can_be_swept(name):
    train, values = SWEPT[name]

    def train_fn(point, key):
        return train(point[name], key)

    result = quiet_sweep(
        {name: np.array(values)}, 1, train_fn, mode="vmap", metric=("loss", "min")
    )
    (key,) = result.notes["keys"]
    alone = jax.jit(train)
    for p, value in enumerate(values):
        dtype = np.float32 if isinstance(value, float) else np.int32
        state, history = alone(jnp.asarray(value, dtype), key)
        ours = result.history["loss"][p, 0]
        np.testing.assert_allclose(ours, history["loss"], rtol=2e-5)
        w = result.state.params["w"][p, 0]
        np.testing.assert_allclose(w, state.params["w"], rtol=2e-5, atol=5e-7)
    first, second = result.state.params["w"][:, 0]
    assert (np.abs(first - second) > 1e-4).any(), "the value makes no difference"

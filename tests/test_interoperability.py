"""Optimizers, models and trees of other libraries work with the same code."""

import itertools
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.tree as tree

X = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
Y = jnp.sin(jnp.sum(X, axis=1, keepdims=True))
BATCH = {"x": X, "y": Y}


class PlainMomentum:
    """An optimizer of another library: two methods, no fngrad."""

    def init(self, params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        state = jax.tree.map(lambda m, g: 0.9 * m + g, state, updates)
        return state, state


def train(params: Any, predict: Any, optimizer: fg.Transform) -> tuple[Any, Any]:
    """Train any model; the code depends on neither the model nor its tree."""

    def loss_fn(params, batch):
        return jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2)

    step = jax.jit(fg.make_step(loss_fn, optimizer))
    state = fg.init_state(params, optimizer, key=0)
    losses = []
    for _ in range(30):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    return state, np.array(losses)


def by_hand(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["hidden"].T + params["hidden_bias"][None])
    return hidden @ params["out"].T + params["out_bias"][None]


@pytest.fixture(scope="module")
def models() -> Any:
    """The same network as an Equinox module and as a hand-written tree."""
    mlp = equinox.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, rebuild = fg.split(mlp)
    hidden, out = mlp.layers
    hand = {
        "hidden": hidden.weight,
        "hidden_bias": hidden.bias,
        "out": out.weight,
        "out_bias": out.bias,
    }
    return (params, lambda p, x: jax.vmap(rebuild(p))(x)), (hand, by_hand)


OPTIMIZERS = {
    "ours": fg.chain(fg.clip_by_global_norm(1.0), fg.adamw(0.03)),
    "a plain object in a chain": fg.chain(
        fg.clip_by_global_norm(1.0), PlainMomentum(), fg.scale(-0.03)
    ),
    "schedule-free": fg.schedule_free_sgd(0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_equinox_model_and_a_hand_written_tree_train_alike(models, name):
    (params, predict), (hand, predict_by_hand) = models
    state, losses = train(params, predict, OPTIMIZERS[name])
    state_by_hand, losses_by_hand = train(hand, predict_by_hand, OPTIMIZERS[name])
    np.testing.assert_allclose(losses, losses_by_hand, rtol=1e-4)
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(
        state.params.layers[0].weight, state_by_hand.params["hidden"], rtol=1e-3
    )


def test_a_model_with_functions_is_refused_with_a_hint_to_split():
    mlp = equinox.nn.MLP(3, 1, 4, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match="split"):
        fg.init_state(mlp, fg.sgd(0.1), key=0)


FLAT = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}


@pytest.mark.parametrize("name", fg.REGISTRY)
def test_a_state_is_restored_by_its_leaf_paths(name):
    params, optimizer, count = FLAT, fg.REGISTRY[name](0.1), itertools.count()

    def distinct(like):
        numbers = np.reshape([next(count) for _ in range(like.size)], like.shape)
        return jnp.asarray(numbers, like.dtype)

    state = jax.tree.map(distinct, jax.eval_shape(optimizer.init, params))
    saved = dict(reversed(tree.leaf_paths(state).items()))
    # Read by the same optimizer with a clip in front, and a schedule for a number.
    reader = fg.chain(fg.clip(1.0), fg.REGISTRY[name](lambda step: 0.1))
    back = tree.from_leaf_paths(jax.eval_shape(reader.init, params), saved)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    jax.eval_shape(reader.update, params, back, params)


def test_leaves_that_do_not_fit_are_named():
    like = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match="leaf 'b' is missing"):
        tree.from_leaf_paths(like, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"'a' needs shape \(2,\), got \(3,\)"):
        tree.from_leaf_paths(like, {"a": jnp.ones(3), "b": jnp.ones(3)})


class Tensor:
    """An array of another library, as torch and TensorFlow have them."""

    def __init__(self, values: Any):
        self.values, self.shape = np.asarray(values), np.shape(values)
        self.dtype = f"theirs.{self.values.dtype}"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_batches_of_another_librarys_arrays_train():
    def loss_fn(params, batch):
        assert isinstance(batch["rate"], jax.Array)
        return batch["rate"] * jnp.mean((batch["x"] @ params - batch["y"]) ** 2)

    step = fg.make_step(loss_fn, fg.sgd(0.1))
    state = fg.init_state(jnp.zeros((3, 1)), fg.sgd(0.1), key=0)

    def end(kind: Any) -> Any:
        batches = [{"rate": 0.5, "x": kind(X), "y": kind(Y)} for _ in range(3)]
        return fg.fit(step, state, batches, progress=False).state.params

    np.testing.assert_array_equal(end(Tensor), end(np.asarray))
    with pytest.raises(TypeError, match=r"need numbers or bools, got .* at 'x'"):
        fg.fit(step, state, [{"x": Tensor(["a", "b"])}], progress=False)

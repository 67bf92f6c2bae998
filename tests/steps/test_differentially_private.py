"""Gradients clipped example by example, with noise on their sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_steps as oracles
import pytest

import fngrad as fg
from fngrad.losses import weighted_sum
from fngrad.steps import differentially_private

RNG = np.random.default_rng(7)
X = RNG.normal(size=(6, 3)).astype(np.float32)
BATCH = {"x": X, "y": RNG.normal(size=6).astype(np.float32)}
BATCH["y"][2] = 40.0  # an outlier
PARAMS = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.array(0.5)}


def loss_fn(params, batch):
    errors = jnp.tanh(batch["x"] @ params["w"]) + params["b"] - batch["y"]
    return jnp.mean(errors**2)


def flat(params):
    return np.concatenate([np.ravel(params[name]) for name in ("w", "b")]).astype(float)


def gradient_of_one(theta, i):
    """Differentiate the loss of example i by hand."""
    x, y = X[i].astype(float), float(BATCH["y"][i])
    hidden = np.tanh(x @ theta[:3])
    error = hidden + theta[3] - y
    return 2 * error * np.append((1 - hidden**2) * x, 1.0)


def loss_of(theta):
    return np.mean((np.tanh(X @ theta[:3]) + theta[3] - BATCH["y"]) ** 2)


FALLING = fg.sgd(lambda t: 0.1 / (1.0 + t.astype(float)))


@jax.jit
def step_without_noise(bound, state):
    return differentially_private(loss_fn, FALLING, bound, 0.0)(state, BATCH)


@pytest.mark.parametrize("bound", [0.5, 4.0, 1e3])
def test_a_run_is_that_of_a_loop_over_examples(bound):
    state, theta = fg.init_state(PARAMS, FALLING, 0), flat(PARAMS)
    for t in range(3):
        gradients = [gradient_of_one(theta, i) for i in range(6)]
        mean, clipped = oracles.clipped_mean(gradients, bound)
        state, metrics = step_without_noise(bound, state)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(mean), 1e-5)
        np.testing.assert_allclose(metrics["loss"], loss_of(theta), rtol=1e-5)
        np.testing.assert_allclose(metrics["clipped_fraction"], clipped, rtol=1e-6)
        theta = theta - 0.1 / (1 + t) * mean
        np.testing.assert_allclose(flat(state.params), theta, rtol=1e-5)


def test_the_noise_has_the_deviation_of_the_algorithm_and_leaves_of_their_own():
    params = {"a": jnp.zeros(3000), "b": jnp.zeros(3000), "z": jnp.zeros(3000, complex)}

    def flat_loss(params, batch):
        return 0.0 * sum(jnp.sum(jnp.abs(p)) for p in jax.tree.leaves(params))

    def noise(bound, multiplier, key):
        step = differentially_private(flat_loss, fg.sgd(1.0), bound, multiplier)
        state = fg.init_state(params, fg.sgd(1.0), key)
        first, _ = step(state, jnp.zeros(4))
        second, _ = step(first, jnp.zeros(4))
        return first.params, fg.tree.sub(second.params, first.params)

    lanes = (
        jnp.array([2.0, 3.0]),
        jnp.array([0.5, 1.5]),
        jax.random.split(jax.random.key(0)),
    )
    first, second = jax.jit(jax.vmap(noise))(*lanes)
    for lane, deviation in enumerate([2.0 * 0.5 / 4, 3.0 * 1.5 / 4]):
        z = np.asarray(first["z"][lane], complex)
        draws = [
            first["a"][lane],
            first["b"][lane],
            second["a"][lane],
            np.real(z),
            np.imag(z),
        ]
        np.testing.assert_allclose(np.std(draws, axis=1), deviation, rtol=0.06)
        assert np.all(np.abs(np.mean(draws, axis=1)) < 5 * deviation / 3000**0.5)
        np.testing.assert_allclose(np.corrcoef(draws), np.eye(5), atol=0.1)


def random_loss(params, batch, key):
    """Draw from the key what dropout would."""
    drawn = jax.random.normal(key, (3,))
    return loss_fn({**params, "w": params["w"] * drawn}, batch), {"first": drawn[0]}


def test_micro_batches_change_nothing_but_the_memory():
    optimizer = fg.sgd(0.1)
    ends = []
    for parts in (1, 3):
        make = functools.partial(differentially_private, micro_batches=parts)
        step = make(random_loss, optimizer, 1.0, 0.3)
        ends.append(jax.jit(step)(fg.init_state(PARAMS, optimizer, 0), BATCH))
    for state, metrics in ends[1:]:
        np.testing.assert_allclose(flat(state.params), flat(ends[0][0].params), 1e-5)
        for name, value in ends[0][1].items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_the_loss_sees_one_example_with_a_key_of_its_own():
    seen = []

    def watched(params, batch, key):
        seen.append(batch["x"].shape)
        own = jax.random.uniform(key)
        return own * jnp.sum(params["w"]), {"square": own**2, "row": jnp.int32(2)}

    step = differentially_private(watched, fg.sgd(1.0), 1e3, 0.0)
    _, metrics = jax.jit(step)(fg.init_state(PARAMS, fg.sgd(1.0), 0), BATCH)
    assert set(seen) == {(1, 3)}
    variance = metrics["square"] - (metrics["loss"] / jnp.sum(PARAMS["w"])) ** 2
    assert variance > 0.01
    assert metrics["row"] == 2


def test_one_example_moves_the_sum_by_at_most_the_bound():
    step = differentially_private(loss_fn, fg.sgd(1.0), 0.7, 0.5)
    state = fg.init_state(PARAMS, fg.sgd(1.0), 0)
    moved = jax.jit(lambda y: step(state, BATCH | {"y": y})[0].params)
    base = flat(moved(BATCH["y"]))
    changes = []
    for value in (-1e30, -3.0, 1e5):  # the same noise
        other = BATCH["y"].copy()
        other[4] = value
        changes.append(np.linalg.norm(flat(moved(other)) - base))
    # At most from one end of the ball to the other, which is reached.
    np.testing.assert_allclose(np.max(changes), 2 * 0.7 / 6, rtol=1e-5)


def test_frozen_leaves_have_neither_a_norm_nor_noise():
    optimizer = fg.partition([("b", fg.freeze()), ("**", fg.sgd(1.0))])
    state = fg.init_state(PARAMS, optimizer, 0)
    alone = differentially_private(
        lambda w, batch: loss_fn({"w": w, "b": PARAMS["b"]}, batch),
        fg.sgd(1.0),
        0.7,
        0.0,
    )
    step = differentially_private(loss_fn, optimizer, 0.7, 0.0)
    got, _ = jax.jit(step)(state, BATCH)
    expected, _ = jax.jit(alone)(fg.init_state(PARAMS["w"], fg.sgd(1.0), 0), BATCH)
    np.testing.assert_allclose(got.params["w"], expected.params, rtol=1e-6)
    noisy = differentially_private(loss_fn, optimizer, 0.7, 9.0)
    got, metrics = jax.jit(noisy)(state, BATCH)
    assert got.params["b"] == PARAMS["b"]
    gradients = jax.jit(noisy.gradients)(state, BATCH)
    assert gradients["b"] is None
    norm = np.linalg.norm(gradients["w"])
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_a_nan_of_one_example_shows():
    broken = BATCH | {"y": np.where(np.arange(6) == 3, np.nan, BATCH["y"])}
    step = differentially_private(loss_fn, fg.sgd(0.1), 1.0, 1.0)
    _, metrics = jax.jit(step)(fg.init_state(PARAMS, fg.sgd(0.1), 0), broken)
    assert not metrics["is_finite"]


def test_a_metric_may_be_a_weighted_sum():
    def counted(params, batch):
        share = weighted_sum(jnp.sum(batch["y"] * batch["n"]), jnp.sum(batch["n"]))
        return loss_fn(params, batch), {"share": share}

    batch = BATCH | {"n": np.arange(6, dtype=np.float32)}
    step = differentially_private(counted, fg.sgd(0.1), 1.0, 1.0, micro_batches=3)
    _, metrics = jax.jit(step)(fg.init_state(PARAMS, fg.sgd(0.1), 0), batch)
    expected = np.sum(batch["y"] * batch["n"]) / 15
    np.testing.assert_allclose(metrics["share"], expected, rtol=1e-6)


def test_bfloat16_parameters_are_clipped_and_noised_in_float32():
    narrow = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda x: x.astype(np.float32), narrow)
    step = differentially_private(
        fg.mixed_precision(loss_fn, "float32"), fg.sgd(0.1), 1.0, 0.5
    )

    @jax.jit
    def gradients(params):
        return step.gradients(fg.init_state(params, fg.sgd(0.1), 0), BATCH)

    grads = [gradients(params) for params in (narrow, wide)]
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(flat(grads[0]), flat(grads[1]), atol=0.01)


def test_what_is_not_a_mean_over_examples_is_refused():
    def masked(params, batch):
        return weighted_sum(loss_fn(params, batch), 1.0)

    def stateful(params, batch, model_state):
        return loss_fn(params, batch), ({}, model_state)

    state = fg.init_state(PARAMS, fg.sgd(0.1), 0)
    make = functools.partial(differentially_private, optimizer=fg.sgd(0.1))
    one = functools.partial(make, l2_norm_clip=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="a mean over examples, got a weighted_sum"):
        jax.eval_shape(one(masked), state, BATCH)
    for loss in (stateful, fg.mixed_precision(stateful, "bfloat16")):
        with pytest.raises(ValueError, match="need a loss without model_state"):
            one(loss)
    for batch, got in (
        (BATCH | {"y": np.zeros(5)}, r"'x': \(6,\), 'y': \(5,\)"),
        (BATCH | {"y": np.zeros(())}, r"'y': \(\)"),
        (None, "{}"),
    ):
        with pytest.raises(ValueError, match=f"one number of rows, got .*{got}"):
            jax.eval_shape(one(loss_fn), state, batch)
    with pytest.raises(ValueError, match="at least one example"):
        jax.eval_shape(one(loss_fn), state, jax.tree.map(lambda x: x[:0], BATCH))
    with pytest.raises(ValueError, match=r"multiple of micro_batches=4.*'x'"):
        jax.eval_shape(one(loss_fn, micro_batches=4), state, BATCH)
    with pytest.raises(ValueError, match="need l2_norm_clip > 0"):
        make(loss_fn, l2_norm_clip=0.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="<= noise_multiplier <="):
        make(loss_fn, l2_norm_clip=1.0, noise_multiplier=-1.0)
    with pytest.raises(ValueError, match="micro_batches"):
        one(loss_fn, micro_batches=0)
    taken = one(lambda p, b: (loss_fn(p, b), {"clipped_fraction": 1.0}))
    with pytest.raises(ValueError, match="clipped_fraction"):
        jax.eval_shape(taken, state, BATCH)

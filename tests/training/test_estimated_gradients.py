"""Losses that cannot be differentiated, trained by estimates of their gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(3, 3))
HESSIAN = ROOT @ ROOT.T
W, B = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.0, -0.5])
GRADIENT = HESSIAN @ W + B
SGD = fg.sgd(0.1)


def quadratic(w, batch):
    h, b = (jnp.asarray(a, w.dtype) for a in (HESSIAN, B))
    return 0.5 * w @ (h @ w) + b @ w


def outside_jax(w, batch):
    """Return the quadratic as a simulator computes it, one call at a time."""
    shape = jax.ShapeDtypeStruct((), w.dtype)
    return jax.pure_callback(
        lambda w: np.asarray(0.5 * w @ HESSIAN @ w + B @ w, w.dtype), shape, w
    )


@functools.cache
def estimator(sigma=0.1, pairs=8, **options):
    loss = fg.evolution_strategy(quadratic, sigma, pairs, **options)
    return jax.jit(jax.grad(lambda w, key: loss(w, None, key=key)))


def first(loss_fn, optimizer=SGD, w=W, key=0, model_state=(), **options):
    step = fg.make_step(loss_fn, optimizer, **options)
    state = fg.init_state(jnp.asarray(w, jnp.float32), optimizer, key, model_state)
    return jax.jit(step)(state, jnp.zeros((4, 1)))


def test_the_mean_of_the_estimates_is_the_gradient_and_their_variance_is_known():
    pairs, n = 8, 4000
    keys = jax.random.split(jax.random.key(1), n)
    found = np.asarray(jax.vmap(lambda k: estimator()(jnp.asarray(W), k))(keys))
    variance = (GRADIENT @ GRADIENT + GRADIENT**2) / pairs
    error = (found.mean(0) - GRADIENT) / np.sqrt(variance / n)
    assert np.abs(error).max() < 4
    np.testing.assert_allclose(found.var(0), variance, rtol=0.15)


def test_of_a_quadratic_the_width_of_the_noise_does_not_matter(x64):
    w, key = jnp.asarray(W), jax.random.key(2)
    near, far = estimator(1e-3)(w, key), estimator(10.0)(w, key)
    np.testing.assert_allclose(near, far, rtol=1e-8)


@pytest.mark.slow
def test_an_estimate_is_a_function_of_the_key_whatever_is_evaluated_at_once():
    w, key = jnp.asarray(W, jnp.float32), jax.random.key(3)
    whole = estimator()(w, key)
    np.testing.assert_array_equal(whole, estimator()(w, key))
    for batch_size in (1, 3):
        parts = estimator(batch_size=batch_size)(w, key)
        np.testing.assert_allclose(parts, whole, rtol=1e-4)
    assert not np.allclose(whole, estimator()(w, jax.random.key(4)))


def test_ranks_do_not_change_with_an_increasing_function_of_the_loss():
    def cubed(w, batch):
        return quadratic(w, batch) ** 3 + 7

    w, key = jnp.asarray(W, jnp.float32), jax.random.key(0)
    ranked = estimator(ranks=True)(w, key)
    loss = fg.evolution_strategy(cubed, 0.1, 8, ranks=True)
    slope = jax.grad(lambda w: loss(w, None, key=key))(w)
    np.testing.assert_allclose(slope, ranked, rtol=1e-5)
    assert np.dot(ranked, GRADIENT) > 0


def test_ranks_of_equal_losses_cancel_and_a_nan_ranks_last():
    flat = fg.evolution_strategy(lambda w, batch: 0.0 * w[0], pairs=4, ranks=True)
    key, w = jax.random.key(0), jnp.ones(1)
    np.testing.assert_array_equal(jax.grad(flat)(w, None, key=key), [0])

    def cliff(w, batch):
        return jnp.where(w[0] > 1, jnp.nan, 0.0)

    steep = fg.evolution_strategy(cliff, sigma=0.5, pairs=4, ranks=True)
    slope = jax.grad(steep)(w, None, key=key)
    assert np.isfinite(slope).all()
    assert slope[0] > 0


def test_central_differences_are_the_gradient_of_a_quadratic(x64):
    loss = fg.central_differences(quadratic)
    slope = jax.grad(loss)(jnp.asarray(W), None)
    np.testing.assert_allclose(slope, GRADIENT, rtol=1e-9)


def test_a_simulator_is_trained_without_a_derivative():
    for make in (
        fg.central_differences,
        functools.partial(fg.evolution_strategy, pairs=16, batch_size=1),
    ):
        optimizer = fg.adam(0.1)
        step = fg.make_step(make(outside_jax), optimizer)
        state = fg.init_state(jnp.asarray(W, jnp.float32), optimizer, 0)
        state, history = fg.run(step, state, lambda t: jnp.zeros(1), 40)
        lowest = -0.5 * B @ np.linalg.solve(HESSIAN, B)
        start = history["loss"][0] - lowest
        assert history["loss"][-1] - lowest < 0.2 * start


def test_value_metrics_and_model_state_are_those_at_the_parameters():
    def loss_fn(w, model_state, batch, key):
        state = {"n": model_state["n"] + 1, "w": w}
        return quadratic(w, batch), ({"size": jnp.sum(w), "count": 3}, state)

    begin = {"n": jnp.zeros((), int), "w": jnp.zeros(3)}
    for loss in (fg.evolution_strategy(loss_fn), fg.central_differences(loss_fn)):
        state, metrics = first(loss, model_state=begin)
        exact = 0.5 * W @ HESSIAN @ W + B @ W
        np.testing.assert_allclose(metrics["loss"], exact, rtol=1e-6)
        np.testing.assert_allclose(metrics["size"], W.sum(), rtol=1e-6)
        assert state.model_state["n"] == 1
        np.testing.assert_array_equal(state.model_state["w"], np.float32(W))


def test_only_trained_leaves_are_moved():
    seen = []

    def loss_fn(params, batch):
        jax.debug.callback(lambda x: seen.append(float(x)), params["frozen"])
        return jnp.sum(params["w"] ** 2) + params["frozen"]

    optimizer = fg.partition([("frozen", fg.freeze()), ("**", fg.sgd(0.1))])
    params = {"w": jnp.ones(2), "frozen": jnp.array(5.0)}
    for loss in (
        fg.evolution_strategy(loss_fn, 1.0, 4),
        fg.central_differences(loss_fn),
    ):
        state = fg.init_state(params, optimizer, 0)
        state, metrics = fg.make_step(loss, optimizer)(state, None)
        jax.block_until_ready(state)
        assert metrics["grad_norm"] > 0
    assert set(seen) == {5.0}


@pytest.mark.slow
def test_complex_and_narrow_leaves_have_gradients_of_their_own_kind():
    def loss_fn(params, batch):
        z, h = params["z"], params["h"].astype(jnp.float32)
        return jnp.sum(jnp.abs(z - 1j) ** 2) + jnp.sum(h**2)

    params = {"z": jnp.array([1 + 2j, 0j]), "h": jnp.ones(2, jnp.bfloat16)}
    params["z"] = params["z"].astype(jnp.complex64)
    exact = fg.make_step(loss_fn, SGD)
    ours = fg.make_step(fg.central_differences(loss_fn, 0.125), SGD)
    state = fg.init_state(params, SGD, 0)
    expected, found = exact(state, None)[0].params, ours(state, None)[0].params
    chex.assert_trees_all_equal_dtypes(found, expected)
    np.testing.assert_allclose(found["z"], expected["z"], rtol=1e-5)
    np.testing.assert_array_equal(found["h"], expected["h"])
    noisy = fg.make_step(fg.evolution_strategy(loss_fn, 0.1, 2048), SGD)
    found = noisy(state, None)[0].params["z"]
    np.testing.assert_allclose(found, expected["z"], atol=0.05)


@pytest.mark.parametrize("options", [{"micro_batches": 2}, {"metrics": "loss"}])
def test_the_options_of_a_step_apply(options):
    def mean(w, batch):
        total = (quadratic(w, batch) + jnp.sum(batch)) * len(batch)
        return fg.losses.weighted_sum(total, len(batch))

    state, metrics = first(fg.central_differences(mean), **options)
    np.testing.assert_allclose(state.params, W - 0.1 * GRADIENT, rtol=1e-3)
    assert metrics["is_finite"]


def test_a_scaled_loss_has_the_same_estimate():
    loss = fg.central_differences(quadratic)
    plain, _ = first(loss)
    scaled, _ = first(loss, fg.loss_scaling(SGD, init_scale=2.0**10))
    np.testing.assert_allclose(scaled.params, plain.params, rtol=1e-6)


@pytest.mark.slow
def test_lanes_under_vmap_have_noise_of_their_own():
    step = fg.make_step(fg.evolution_strategy(quadratic, 0.1, 4), SGD)

    def run(seed):
        state = fg.init_state(jnp.asarray(W, jnp.float32), SGD, jax.random.key(seed))
        return step(state, None)[0].params

    lanes = jax.jit(jax.vmap(run))(jnp.arange(2))
    for seed in (0, 1):
        np.testing.assert_allclose(lanes[seed], run(seed), rtol=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="sigma"):
        fg.evolution_strategy(quadratic, sigma=0.0)
    with pytest.raises(ValueError, match="need an int pairs >= 1, got pairs=0"):
        fg.evolution_strategy(quadratic, pairs=0)
    with pytest.raises(ValueError, match="need an int batch_size >= 1"):
        fg.evolution_strategy(quadratic, batch_size=0)
    with pytest.raises(ValueError, match="relative_step"):
        fg.central_differences(quadratic, -1.0)
    with pytest.raises(TypeError, match="need a loss function"):
        fg.central_differences(SGD)
    with pytest.raises(TypeError, match="two required arguments"):
        fg.evolution_strategy(lambda w: w)
    with pytest.raises(ValueError, match="scalar loss"):
        first(fg.evolution_strategy(lambda w, batch: w))

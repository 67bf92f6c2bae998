"""Means over tokens: sums and weights are added over parts, and divided once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.training.evaluation import evaluate

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)), RNG.normal(size=8)
MASK = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool)
W = np.array([0.5, -1.0, 2.0])
BATCH = {"x": X.astype(np.float32), "y": Y.astype(np.float32), "mask": MASK}
SGD = fg.sgd(0.1)


def loss_and_metrics(w, batch):
    errors = fg.losses.squared_error(batch["x"] @ w, batch["y"])
    kept, count = jnp.where(batch["mask"], errors, 0), jnp.sum(batch["mask"])
    loss = fg.losses.weighted_sum(jnp.sum(kept), count)
    sizes = fg.losses.weighted_sum(jnp.sum(jnp.abs(w)) * count.astype(w.dtype), count)
    worst = fg.losses.weighted_sum(jnp.sum(jnp.sqrt(kept)), 2 * count)
    return loss, {"worst": worst, "size": sizes, "plain": jnp.sum(batch["x"])}


def loss_fn(w, batch):
    return loss_and_metrics(w, batch)[0]


def whole(x=X, y=Y, mask=MASK, w=W):
    """Return the masked mean of squared errors and its gradient, in float64."""
    x, residuals = x[mask], x[mask] @ w - y[mask]
    return np.mean(residuals**2), 2 * x.T @ residuals / mask.sum()


def first_step(loss_fn, optimizer=SGD, batch=BATCH, w=W, **options):
    step = fg.make_step(loss_fn, optimizer, **options)
    state = fg.init_state(jnp.asarray(w, jnp.float32), optimizer, 0)
    return jax.jit(step)(state, batch)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_a_weighted_sum_is_the_mean_of_the_whole_batch_in_any_number_of_parts(parts):
    state, metrics = first_step(loss_and_metrics, micro_batches=parts)
    loss, gradient = whole()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(state.params, W - 0.1 * gradient, rtol=1e-5)
    residuals = np.abs(X[MASK] @ W - Y[MASK])
    np.testing.assert_allclose(metrics["worst"], np.sum(residuals) / 10, rtol=1e-5)
    np.testing.assert_allclose(metrics["size"], np.abs(W).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["plain"], X.sum() / parts, rtol=1e-5)


def test_a_weighted_metric_of_a_plain_loss_keeps_the_loss_as_it_was():
    def plain(w, batch):
        loss, metrics = loss_and_metrics(w, batch)
        return loss.total, {"mean": loss, "worst": metrics["worst"]}

    state, metrics = first_step(plain, micro_batches=2)
    loss, gradient = whole()
    np.testing.assert_allclose(metrics["mean"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss * 5 / 2, rtol=1e-6)
    np.testing.assert_allclose(state.params, W - 0.25 * gradient, rtol=1e-5)


def test_without_weight_the_loss_and_the_gradient_are_zero():
    empty = BATCH | {"mask": np.zeros(8, bool)}
    for parts in (1, 2):
        state, metrics = first_step(loss_fn, batch=empty, micro_batches=parts)
        assert metrics["loss"] == 0
        assert metrics["is_finite"]
        np.testing.assert_array_equal(state.params, W)


def test_the_model_state_passes_through_the_parts_of_a_weighted_sum():
    def counting(w, model_state, batch):
        return loss_fn(w, batch), ({}, model_state + jnp.sum(batch["mask"]))

    step = fg.make_step(counting, SGD, micro_batches=4)
    state = fg.init_state(jnp.asarray(W, jnp.float32), SGD, 0, jnp.zeros((), int))
    state, metrics = step(state, BATCH)
    assert state.model_state == 5
    np.testing.assert_allclose(metrics["loss"], whole()[0], rtol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_weighted_sum_holds_in_sixteen_bits_and_with_a_scaled_loss(precision):
    n = 516
    batch = {"x": np.ones((n, 1), np.float32), "y": np.zeros(n, np.float32)}
    batch["mask"] = np.arange(n) < 257  # 256 in bfloat16, were it summed there
    optimizer = fg.loss_scaling(SGD, init_scale=2.0**7)
    state, metrics = first_step(
        loss_fn, optimizer, batch, np.ones(1), micro_batches=2, precision=precision
    )
    np.testing.assert_allclose(metrics["loss"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(state.params, [0.8], rtol=1e-3)


def test_steps_that_evaluate_the_loss_more_than_once_take_a_weighted_sum():
    def mean(w, batch):
        return loss_fn(w, batch).mean()

    state = fg.init_state(jnp.asarray(W, jnp.float32), SGD, 0)
    for make in (fg.steps.sam, fg.steps.line_search):
        ours, _ = make(loss_fn, SGD)(state, BATCH)
        plain, _ = make(mean, SGD)(state, BATCH)
        np.testing.assert_allclose(ours.params, plain.params, rtol=1e-6)


def test_the_weight_of_a_loss_has_no_gradient():
    def squared_weight(w, batch):
        return fg.losses.weighted_sum(jnp.sum(w), jnp.sum(w**2))

    slope = jax.grad(lambda w: squared_weight(w, None).mean())(jnp.asarray(W))
    np.testing.assert_allclose(slope, np.full(3, 1 / 5.25), rtol=1e-6)


def test_an_evaluation_divides_the_totals_of_a_weighted_sum():
    def metric_fn(w, batch):
        return {"loss": loss_fn(w, batch)}

    for batch_size in (3, 8):
        found = evaluate(metric_fn, jnp.asarray(W), BATCH, batch_size=batch_size)
        np.testing.assert_allclose(found["loss"], whole()[0], rtol=1e-6)


def test_a_weighted_sum_needs_real_scalars_and_a_weight_that_is_not_negative():
    make = fg.losses.weighted_sum
    with pytest.raises(ValueError, match=r"scalars, got shapes \(2,\) and \(\)"):
        make(jnp.ones(2), 1)
    with pytest.raises(TypeError, match="real float sum, got dtype int32"):
        make(jnp.ones((), jnp.int32), 1)
    with pytest.raises(TypeError, match="real weight, got dtype complex64"):
        make(1.0, jnp.ones((), jnp.complex64))
    with pytest.raises(ValueError, match="weight >= 0, got -1"):
        make(1.0, -1)


def test_a_pair_of_a_sum_and_a_weight_is_still_no_loss():
    with pytest.raises(TypeError, match="need a dict of metrics"):
        first_step(lambda w, batch: (jnp.sum(w), jnp.sum(w)))


def test_a_run_takes_a_step_whose_loss_is_a_weighted_sum():
    data = fg.data.from_arrays(BATCH, 4, seed=1)
    step = fg.make_step(loss_and_metrics, SGD, micro_batches=2)
    state = fg.init_state(jnp.asarray(W, jnp.float32), SGD, 0)
    result = fg.fit(step, state, data, num_steps=3, progress=False)
    assert result.history["loss"].shape == (3,)
    with pytest.raises(TypeError, match="make_step"):
        fg.run(loss_fn, state, data, 1)

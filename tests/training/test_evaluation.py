"""Evaluation over ragged batches is that of the whole, in one program."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.data.dataset as dataset
import fngrad.training.evaluation as evaluation
from fngrad import metrics
from fngrad.programs.signatures import bind
from fngrad.training.evaluation import evaluate, fold

RNG = np.random.default_rng(0)
N = 23
DATA = {
    "x": RNG.normal(size=(N, 3)).astype(np.float32),
    "y": RNG.integers(0, 4, size=N),
}
PARAMS = {"w": RNG.normal(size=(3, 4)).astype(np.float32)}
W = PARAMS["w"]


class State(NamedTuple):
    params: Any
    model_state: Any


class Largest(NamedTuple):
    """A user's accumulator, whose unit is not zero."""

    top: jax.Array

    def merge(self, other):
        return Largest(jnp.maximum(self.top, other.top))

    def value(self):
        return self.top


def metric_fn(params, batch):
    logits, y = batch["x"] @ params["w"], batch["y"]
    own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return {
        "own": own,
        "logits": logits.astype(jnp.bfloat16),
        "is_first": y == 0,
        "pair": (jnp.sum(own * own), jnp.sum(own)),
        "vector": (jnp.sum(logits, axis=0), len(y)),
        "accuracy": metrics.accuracy(logits, y),
        "top": metrics.top_k_accuracy(logits, y, 2),
        "loss": metrics.log_loss(logits, y),
        "calibration": metrics.calibration_error(logits, y),
        "confusion": metrics.confusion_matrix(logits, y),
        "r2": metrics.r2(logits, jax.nn.one_hot(y, 4)),
        "error": metrics.mean_squared_error(own, y),
        "lowest": Largest(jnp.max(-jnp.abs(own))),
    }


def few_fn(params, batch):
    """Return some of the metrics, which compile sooner than all."""
    every = metric_fn(params, batch)
    return {name: every[name] for name in ("own", "loss", "confusion")}


@functools.cache
def whole() -> dict[str, Any]:
    """Return the metrics of all examples in one batch."""
    return {**evaluate(metric_fn, PARAMS, DATA, batch_size=N)}


def test_whole_batch_is_numpys_mean():
    logits = DATA["x"].astype(np.float64) @ W
    own = logits[np.arange(N), DATA["y"]]
    want = whole()
    assert want["own"] == pytest.approx(own.mean(), rel=1e-5)
    assert want["is_first"] == pytest.approx((DATA["y"] == 0).mean())
    assert want["pair"] == pytest.approx((own**2).sum() / own.sum(), rel=1e-4)
    np.testing.assert_allclose(want["vector"], logits.mean(0), rtol=1e-5)
    np.testing.assert_allclose(want["logits"], logits.mean(0), rtol=2e-2, atol=1e-2)
    assert want["accuracy"] == pytest.approx((logits.argmax(1) == DATA["y"]).mean())
    assert want["lowest"] == pytest.approx(-np.abs(own).min(), rel=1e-5)
    assert want["lowest"] < 0
    assert want["confusion"].sum() == N


@pytest.mark.parametrize("batch_size", [5, 8, 100])
def test_ragged_batches_are_the_whole_for_every_accumulator(batch_size):
    got = evaluate(metric_fn, PARAMS, DATA, batch_size=batch_size)
    assert got.keys() == whole().keys()
    for name, value in whole().items():
        assert type(got[name]) is type(value), name
        np.testing.assert_allclose(got[name], value, rtol=2e-5, err_msg=name)


def test_integer_counts_are_exact():
    for size in (1, 4):
        got = evaluate(
            lambda p, b: {"n": (b["y"].sum(), b["y"].size)}, (), DATA, batch_size=size
        )
        assert got["n"] == np.float32(DATA["y"].sum()) / np.float32(N)


def test_a_nan_affects_only_its_own_metric():
    x = DATA["x"].copy()
    x[7, 0] = np.nan

    def columns(params, batch):
        return {"sum": batch["x"][:, 0], "rest": batch["x"][:, 1:].sum(1)}

    got = evaluate(columns, (), {"x": x}, batch_size=5)
    assert np.isnan(got["sum"])
    assert got["rest"] == pytest.approx(x[:, 1:].sum(1).mean(), rel=1e-4)


def test_second_call_with_other_values_does_not_trace_again():
    @chex.assert_max_traces(3)  # once for shapes, once in the loop, once for the rest
    def counted(params, batch):
        return {"own": batch["x"] @ params["w"]}

    for scale in (1.0, 2.0, 3.0):
        params = {"w": np.float32(scale) * W}
        data = {"x": np.float32(scale) * DATA["x"]}
        evaluate(counted, params, data, batch_size=5)
        evaluate(counted, State(params, ()), data, batch_size=5)


def test_params_are_arguments_of_the_program_never_constants():
    text = jax.jit(fold, static_argnums=(0, 4)).lower(
        lambda p, b: {"own": b["x"] @ p["w"]}, PARAMS, (), {"x": DATA["x"]}, 5
    )
    assert "3x4xf32" in text.as_text().split("func.func public @main(")[1].split(")")[0]


def test_model_state_is_passed_by_its_name():
    state = State(PARAMS, {"shift": np.float32(2.0)})
    want = (DATA["x"] @ W).sum(1).mean() + 2

    def last(params, batch, model_state):
        return {"y": (batch["x"] @ params["w"]).sum(1) + model_state["shift"]}

    def middle(params, model_state, batch):
        return last(params, batch, model_state)

    for fn in (last, middle, functools.partial(last)):
        got = evaluate(fn, state, DATA, batch_size=5)
        assert got["y"] == pytest.approx(want, rel=1e-5)
    with pytest.raises(TypeError, match="need a TrainState for a metric_fn that takes"):
        evaluate(last, PARAMS, DATA)


def test_a_model_state_that_partial_binds_is_kept():
    def fn(params, batch, model_state):
        return {"y": batch["x"][:, 0] * 0 + model_state}

    state = State(PARAMS, np.float32(2.0))
    bound = functools.partial(fn, model_state=np.float32(3.0))
    assert evaluate(bound, state, DATA, batch_size=5)["y"] == 3.0


def test_fold_runs_under_jit_and_vmap():
    def of(scale, fn=few_fn):
        params = {"w": scale * W}
        return fold(fn, params, (), DATA, 5)

    scales = jnp.array([1.0, -0.5])
    shapes = jax.eval_shape(jax.vmap(lambda scale: of(scale, metric_fn)), scales)
    assert {name: leaf.shape[:1] for name, leaf in shapes.items()} == dict.fromkeys(
        whole(), (2,)
    )
    both = jax.jit(jax.vmap(of))(scales)
    both = jax.device_get(both)
    np.testing.assert_allclose(both["own"][0], whole()["own"], rtol=1e-5)
    np.testing.assert_allclose(both["own"][1], -0.5 * whole()["own"], rtol=1e-5)
    np.testing.assert_allclose(both["confusion"][0], whole()["confusion"])


def test_dataset_is_read_once_each_through_its_maps():
    data = dataset.from_arrays(DATA, 4, seed=3, remainder="drop")
    for same in (data, data.map(lambda batch: {**batch, "x": batch["x"] * 1})):
        got = evaluate(few_fn, PARAMS, same, batch_size=5)
        np.testing.assert_allclose(got["loss"], whole()["loss"], rtol=1e-5)
        np.testing.assert_array_equal(got["confusion"], whole()["confusion"])
    doubled = data.map(lambda batch: {**batch, "x": batch["x"] * 2})
    got = evaluate(few_fn, PARAMS, doubled, batch_size=5)
    assert got["own"] == pytest.approx(2 * whole()["own"], rel=1e-5)
    random = data.map(lambda batch, key: batch)
    with pytest.raises(ValueError, match="data without random maps"):
        evaluate(metric_fn, PARAMS, random)


def test_pytree_with_a_field_named_arrays_is_a_pytree():
    class Holder(NamedTuple):
        arrays: Any
        rest: Any

    holder = Holder(DATA["x"], DATA["y"])
    assert evaluation.arrays_of(holder) == holder  # the same arrays, as a Holder
    got = evaluate(lambda p, b: {"y": b.rest}, PARAMS, holder, batch_size=5)
    assert got["y"] == pytest.approx(DATA["y"].mean())


class Counts(NamedTuple):
    """A user's accumulator of an integer and a bool."""

    count: jax.Array
    has_zero: jax.Array
    narrow: jax.Array

    def merge(self, other):
        is_either = self.has_zero | other.has_zero
        return Counts(self.count + other.count, is_either, self.narrow + other.narrow)

    def value(self):
        assert self.count.dtype == jnp.int32
        assert self.has_zero.dtype == jnp.bool_
        assert self.narrow.dtype == jnp.float32
        return self.count


def test_integers_and_bools_of_an_accumulator_stay_what_they_are():
    def counted(params, batch):
        ones = jnp.sum(2**24 // N * jnp.ones_like(batch["y"])) + 1
        some = jnp.any(batch["y"] == 0)
        return {"n": Counts(ones, some, jnp.bfloat16(1)), "m": metrics.Mean(6.0, 4)}

    for size in (1, N):
        got = evaluate(counted, (), DATA, batch_size=size)
        assert got["n"] == 2**24 // N * N + -(-N // size)
        assert got["m"] == 1.5


def test_swapped_arguments_are_named_by_their_type_only():
    for call in (
        lambda: evaluate(PARAMS, metric_fn, DATA),  # pyright: ignore
        lambda: fold(PARAMS, metric_fn, (), DATA),  # pyright: ignore
        lambda: bind(PARAMS, (), ""),  # pyright: ignore
    ):
        with pytest.raises(TypeError) as error:
            call()
        message = str(error.value).removesuffix(": evaluate(metric_fn, state, data)")
        assert message == "need a function, got dict"


X = {"x": np.ones((4, 2), np.float32)}
BAD = [
    (lambda p, b: {"m": jnp.mean(b["x"])}, X, ValueError, "metric 'm' per example"),
    (lambda p, b: {"m": 1.0}, X, ValueError, "so a mean of the batches' means is not"),
    (
        lambda p, b: {"m": b["x"].T},
        X,
        ValueError,
        "metric 'm' with a value for each of the 3 examples",
    ),
    (
        lambda p, b: {"m": (b["x"].sum(0), b["x"])},
        X,
        ValueError,
        "metric 'm' as (sum, weight) of one shape, got (2,) and (3, 2)",
    ),
    (lambda p, b: b["x"], X, TypeError, "a metric_fn that returns a dict, got"),
    (lambda p: {}, X, TypeError, "need metric_fn(params, batch) or"),
    (lambda p, b, c: {}, X, TypeError, "['p', 'b', 'c']"),
    (metric_fn, {}, ValueError, "need at least one array"),
    (metric_fn, {"x": np.ones((0, 2))}, ValueError, "got n=0"),
    (metric_fn, {"x": np.ones(3), "y": np.ones(4)}, ValueError, "{'x': 3, 'y': 4}"),
    (metric_fn, {"x": np.float32(1)}, ValueError, "got a scalar at 'x'"),
]


@pytest.mark.parametrize(
    ("fn", "data", "kind", "message"), BAD, ids=[b[3] for b in BAD]
)
def test_what_cannot_be_folded_raises(fn, data, kind, message):
    with pytest.raises(kind) as error:
        evaluate(fn, PARAMS, data, batch_size=3)
    assert message in str(error.value)


def test_a_batch_size_that_is_not_a_count_is_refused():
    for bad in (0, 2.5, "all"):
        with pytest.raises(ValueError, match="need an int batch_size >= 1, got") as e:
            evaluate(metric_fn, PARAMS, DATA, batch_size=bad)  # pyright: ignore
        assert f"batch_size={bad!r}" in str(e.value)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_size", [5, 256])
@pytest.mark.parametrize("metric", ["mean_squared_error", "mean_absolute_error", "r2"])
@pytest.mark.parametrize("dtypes", [(64, 64), (64, 32), (32, 64)])
def test_double_precision_is_measured_under_strict_promotion(
    dtypes, metric, batch_size
):
    data = {
        name: RNG.normal(size=N).astype(f"float{bits}")
        for name, bits in zip(("predictions", "targets"), dtypes, strict=True)
    }

    def metric_fn(params, batch):
        values = getattr(metrics, metric)(batch["predictions"], batch["targets"])
        return {"metric": values, "mean": batch["targets"]}

    found = evaluate(metric_fn, PARAMS, data, batch_size=batch_size)
    x, y = (np.asarray(a, np.float64) for a in data.values())
    expected = {
        "mean_squared_error": np.mean((x - y) ** 2),
        "mean_absolute_error": np.mean(np.abs(x - y)),
        "r2": 1 - np.sum((x - y) ** 2) / np.sum((y - y.mean()) ** 2),
    }
    np.testing.assert_allclose(found["metric"], expected[metric], rtol=1e-12)
    tolerance = 1e-14 if dtypes[1] == 64 else 1e-6
    np.testing.assert_allclose(found["mean"], y.mean(), atol=tolerance)

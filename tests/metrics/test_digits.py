"""Sums over many examples keep their digits, whatever the batch size and the order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sklearn import metrics as reference

from fngrad import metrics
from fngrad.metrics import sums
from fngrad.training.evaluation import evaluate

M = metrics
TENTH = float(np.float32(0.1))
N = 300_000


def folded(part, count):
    """Merge an accumulator with itself, one after the other, in one program."""

    @jax.jit
    def fold(part):
        merged, _ = lax.scan(
            lambda a, _: (a.merge(part), None), part, None, length=count - 1
        )
        return merged

    return fold(part)


@pytest.mark.parametrize("batch_size", [1, 256, N])
def test_a_mean_does_not_depend_on_the_batch_size(batch_size):
    def metric_fn(params, batch):
        x = batch["x"]
        return {
            "each": x,
            "pair": (jnp.sum(x), x.size),
            "mean": M.Mean(jnp.sum(x), jnp.sum(jnp.ones_like(x))),
            "error": M.mean_absolute_error(x, jnp.zeros_like(x)),
        }

    data = {"x": np.full(N, 0.1, np.float32)}
    got = evaluate(metric_fn, (), data, batch_size=batch_size)
    limits = {"pair": 2e-6, "mean": 2e-6}  # the batch's own sum is the user's
    for name, value in got.items():
        assert value == pytest.approx(TENTH, rel=limits.get(name, 6e-8)), name


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, bool])
def test_a_pair_holds_the_largest_and_smallest_integers(dtype):
    ends = [0, 1] if dtype is bool else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    total, rest = sums.pair_of(np.array(ends, dtype))
    np.testing.assert_array_equal(np.float64(total) + np.float64(rest), ends)


def test_log_loss_of_many_single_examples_is_ln_2():
    part = M.log_loss(np.zeros((1, 2), np.float32), np.array([1]))
    np.testing.assert_allclose(folded(part, N).value(), np.log(2), rtol=1e-7)


SINGLE = {
    "accuracy": lambda: M.accuracy(np.eye(2, dtype=np.float32)[:1], np.array([0])),
    "weighted": lambda: M.mean_squared_error(
        np.float32([0.1]), np.float32([0]), weights=np.float32([0.1])
    ),
    "calibration": lambda: M.calibration_error(
        np.zeros((1, 2), np.float32), np.array([0]), weights=np.float32([0.1])
    ),
}
WANT = {"accuracy": 1, "weighted": np.float32(TENTH) ** 2, "calibration": 0.5}


@pytest.mark.parametrize("name", SINGLE)
def test_merging_single_examples_keeps_every_digit(name):
    value = folded(SINGLE[name](), N).value()
    np.testing.assert_allclose(value, WANT[name], rtol=2e-7)


def test_merging_single_examples_keeps_the_digits_of_r2():
    rng = np.random.default_rng(0)
    y = (100 + rng.normal(size=N)).astype(np.float32)
    x = (y + rng.normal(size=N)).astype(np.float32)

    def metric_fn(params, batch):
        return {"r2": M.r2(batch["x"], batch["y"])}

    want = reference.r2_score(y.astype(np.float64), x.astype(np.float64))
    for size in (1, 1000):
        got = evaluate(metric_fn, (), {"x": x, "y": y}, batch_size=size)
        assert got["r2"] == pytest.approx(want, abs=1e-6)


def test_a_mean_counts_beyond_the_integers_of_float32():
    mean = M.Mean(jnp.float32(2**24), jnp.float32(2**24))
    one = M.Mean(jnp.float32(0), jnp.float32(1))
    many = functools.reduce(lambda a, b: a.merge(b), [one] * 1000, mean)
    assert float(many.weight) + float(many.rest[1]) == 2**24 + 1000
    assert many.value() == np.float32(2**24 / (2**24 + 1000))


@pytest.mark.parametrize("total", [2**24 + 1, 2**31 - 1])
def test_integers_of_a_pair_enter_with_all_digits(total):
    def metric_fn(params, batch):
        return {"n": (total * jnp.ones((), jnp.int32), total - 1)}

    pair = sums.pair_of(jnp.int32(total))
    assert int(pair[0]) + int(pair[1]) == total
    got = evaluate(metric_fn, (), {"x": np.zeros(1)})
    assert got["n"] == pytest.approx(1, abs=1e-7)


def test_a_confusion_matrix_of_a_million_weights_is_their_sum():
    n = 1_000_000
    x = np.zeros((n, 2), np.float32)
    y, w = np.zeros(n, np.int32), np.full(n, 0.1, np.float32)
    counts = jax.jit(M.confusion_matrix)(x, y, weights=w).value()
    np.testing.assert_allclose(counts, [[n * TENTH, 0], [0, 0]], rtol=1e-7)


def test_weights_of_a_confusion_matrix_are_added_by_cell():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 3)).astype(np.float32)
    y = rng.integers(0, 3, size=1000)
    w = rng.uniform(size=1000).astype(np.float32) * 10.0 ** rng.integers(-9, 9, 1000)
    w = w.astype(np.float32)
    want = np.zeros((3, 3))
    np.add.at(want, (y, x.argmax(-1)), w.astype(np.float64))
    got = jax.jit(M.confusion_matrix)(x, y, weights=w).value()
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_a_confusion_matrix_counts_beyond_the_integers_of_float32():
    part = M.ConfusionMatrix(jnp.float32([[2**24, 0], [0, 1]]))
    one = M.confusion_matrix(np.float32([[1, 0], [1, 0], [1, 0]]), np.zeros(3, int))
    merged = functools.reduce(lambda a, b: a.merge(b), [one] * 3, part)
    counts = np.float64(merged.counts) + np.float64(merged.rest[0])
    np.testing.assert_array_equal(counts, [[2**24 + 9, 0], [0, 1]])


@pytest.mark.slow
def test_twenty_million_labels_of_one_class_are_counted():
    n = 20_000_001
    x, y = np.zeros((n, 2), np.float16), np.zeros(n, np.int32)
    matrix = jax.jit(M.confusion_matrix)(x, y)
    assert int(matrix.counts[0, 0]) + int(matrix.rest[0][0, 0]) == n
    assert matrix.value()[0, 0] == np.float32(n)


@pytest.mark.slow
def test_twenty_million_examples_keep_their_mean():
    data = {"x": np.full(20_000_000, 0.1, np.float32)}
    got = evaluate(lambda p, b: {"x": b["x"]}, (), data)
    assert got["x"] == pytest.approx(TENTH, rel=6e-8)


def test_sums_over_devices_and_lanes_keep_their_digits():
    x = np.full((4, 1000), 0.1, np.float32)

    def mean(x):
        part = M.mean_absolute_error(x, jnp.zeros_like(x))
        return lax.psum(part, "lanes").value()

    got = jax.vmap(mean, axis_name="lanes")(x)
    np.testing.assert_allclose(got, [TENTH] * 4, rtol=2e-7)


def test_a_sum_has_the_gradient_of_a_sum_in_both_modes():
    x, w = np.float32([1, 2, 4]), np.float32([1, 0.5, 2])

    def value(x):
        return M.mean_squared_error(x, jnp.zeros_like(x), weights=w).value()

    want = 2 * w * x / w.sum()
    np.testing.assert_allclose(jax.grad(value)(x), want, rtol=1e-6)
    _, slope = jax.jvp(value, (x,), (np.ones_like(x),))
    np.testing.assert_allclose(slope, want.sum(), rtol=1e-6)


def test_an_infinite_term_makes_a_sum_infinite_never_nan():
    x = np.float32([1, np.inf, 2])
    assert M.mean_absolute_error(x, np.zeros_like(x)).value() == np.inf
    parts = [M.Mean(jnp.float32(v), jnp.float32(1)) for v in (1, np.inf, 2)]
    assert functools.reduce(lambda a, b: a.merge(b), parts).value() == np.inf


def test_accumulators_start_from_zeros_of_their_own_shape():
    parts = jnp.arange(6.0).reshape(3, 2)

    def add(matrix, row):
        return matrix.merge(M.ConfusionMatrix(jnp.outer(row, row))), None

    matrix, _ = lax.scan(add, M.ConfusionMatrix(jnp.zeros((2, 2))), parts)
    np.testing.assert_array_equal(matrix.value(), parts.T @ parts)


def test_a_tree_of_specifications_may_stand_in_an_accumulators_place():
    spec = jax.sharding.PartitionSpec()
    assert M.Mean(spec, spec).rest == (spec, spec)
    part = M.Mean(jnp.ones(3), jnp.ones(3))
    assert jax.tree.map(lambda _: None, part).total is None
    assert isinstance(jax.tree.map(jnp.sum, part), M.Mean)

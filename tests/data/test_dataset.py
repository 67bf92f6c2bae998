"""Datasets: every epoch is whole, and a batch depends on (seed, step) alone."""

import copy
import dataclasses
import functools
import math
import pickle
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.data.dataset as dataset
import fngrad.numerics as numerics
from fngrad.data.dataset import from_arrays

MAX_STEP = numerics.MAX_STEP


def numbered(n, batch_size, **options):
    return from_arrays(jnp.arange(n), batch_size, **options)


@jax.jit
def _indices(data, steps):
    return jax.vmap(data.indices)(steps)


def stream(data, num_steps):
    return np.asarray(_indices(data, jnp.arange(num_steps))).ravel()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("n", "b"), [(13, 5), (12, 4), (9, 9), (9, 1), (1, 1), (2, 1), (33, 32)]
)
def test_wrapping_epochs_cover_every_example_exactly_once(n, b, shuffle):
    epochs = b + 1
    data = numbered(n, b, shuffle=shuffle, seed=3)
    seen = stream(data, data.steps(epochs))[: epochs * n].reshape(epochs, n)
    assert (np.sort(seen, axis=1) == np.arange(n)).all()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("n", "b"), [(13, 5), (12, 4), (9, 9)])
def test_dropping_epochs_repeat_no_example(n, b, shuffle):
    data = numbered(n, b, shuffle=shuffle, seed=3, remainder="drop")
    seen = stream(data, data.steps(4)).reshape(4, n // b * b)
    assert all(len(set(epoch)) == n // b * b for epoch in seen)
    assert shuffle or (seen == np.arange(n // b * b)).all()


def test_the_examples_left_out_differ_between_epochs():
    epochs = stream(numbered(13, 12, remainder="drop"), 20).reshape(20, 12)
    assert len({sum(range(13)) - sum(epoch) for epoch in epochs}) > 3


def test_epochs_have_different_orders():
    epochs = stream(numbered(50, 50), 5).reshape(5, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_steps_count_whole_epochs():
    wrap, drop = numbered(7, 3), numbered(7, 3, remainder="drop")
    assert (wrap.steps_per_epoch, drop.steps_per_epoch) == (3, 2)
    assert [wrap.steps(e) for e in range(4)] == [0, 3, 5, 7]
    assert [drop.steps(e) for e in range(4)] == [0, 2, 4, 6]
    with pytest.raises(
        ValueError, match="need an int num_epochs >= 0, got num_epochs=-1"
    ):
        wrap.steps(-1)


def test_batches_keep_structure_dtype_and_rows_together():
    arrays = {"x": (np.arange(24.0).reshape(12, 2), None), "y": np.arange(12)}
    batch = from_arrays(arrays, 4, seed=1).batch(2)
    chex.assert_trees_all_equal_structs(batch, arrays)
    chex.assert_shape(batch["x"][0], (4, 2))
    assert batch["x"][0].dtype == jnp.result_type(float)
    np.testing.assert_array_equal(batch["x"][0][:, 0], 2.0 * np.asarray(batch["y"]))


def test_a_batch_is_the_same_whatever_came_before_and_under_jit_and_scan():
    data = numbered(20, 8, seed=5)
    eager = np.stack([data.batch(step) for step in (3, 0, 2, 1)])
    jitted = jax.jit(lambda data, step: data.batch(step))
    again = np.stack([jitted(data, jnp.int32(step)) for step in (3, 0, 2, 1)])
    _, scanned = jax.lax.scan(
        lambda carry, step: (carry, data.batch(step)), None, jnp.arange(4)
    )
    np.testing.assert_array_equal(eager, again)
    np.testing.assert_array_equal(eager, scanned[jnp.array([3, 0, 2, 1])])


def test_all_gives_the_arrays_as_they_are():
    data = from_arrays({"x": jnp.arange(5)}, "all")
    assert data.batch(3)["x"] is data.arrays["x"]
    assert (data.batch_size, data.size, data.steps(7)) == (5, 5, 7)
    np.testing.assert_array_equal(data.indices(2), np.arange(5))
    program = jax.jit(lambda data: data.batch(0)).lower(data).as_text()
    assert "gather" not in program


def test_unordered_batches_are_consecutive():
    data = numbered(7, 3, shuffle=False)
    np.testing.assert_array_equal(stream(data, 5), np.arange(15) % 7)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_vmap_over_seeds_equals_one_by_one(impl):
    data = numbered(20, 8)
    keys = jax.random.split(jax.random.key(0, impl=impl), 4)
    batches = jax.vmap(lambda key: data.reseed(key).batch(1))(keys)
    alone = np.stack([data.reseed(key).batch(1) for key in keys])
    np.testing.assert_array_equal(batches, alone)
    assert len({tuple(batch) for batch in alone}) == 4


def test_int_tracer_and_key_seeds_agree():
    data = numbered(20, 8, seed=7)
    expected = data.batch(1)
    for seed in (7, np.int64(7), jax.random.key(7)):
        np.testing.assert_array_equal(numbered(20, 8, seed=seed).batch(1), expected)
    traced = jax.jit(lambda seed: data.reseed(seed).batch(1))
    np.testing.assert_array_equal(traced(7), expected)
    assert (np.asarray(traced(8)) != np.asarray(expected)).any()


def test_datasets_made_inside_jit_work():
    batch = jax.jit(lambda x, seed: from_arrays(x, 8, seed=seed).batch(1))
    expected = numbered(20, 8, seed=2).batch(1)
    np.testing.assert_array_equal(batch(jnp.arange(20), 2), expected)


def test_maps_compose_in_order():
    data = numbered(4, 2, shuffle=False).map(lambda b: b + 1).map(lambda b: 10 * b)
    np.testing.assert_array_equal(data.batch(0), [10, 20])


def test_a_map_gets_the_key_of_its_step_by_name():
    data = numbered(4, 2, shuffle=False, seed=3)
    keyed = data.map(lambda key, batch: (batch, jax.random.key_data(key)))
    batch, words = keyed.batch(5)
    tagged = jax.random.fold_in(jax.random.key(3), dataset.MAPS)
    expected = jax.random.fold_in(tagged, 5)
    np.testing.assert_array_equal(batch, data.batch(5))
    np.testing.assert_array_equal(words, jax.random.key_data(expected))


def test_a_map_keeps_a_key_that_partial_binds():
    def words(batch, key):
        return jax.random.key_data(key)

    bound = jax.random.key(9)
    data = numbered(4, 2).map(functools.partial(words, key=bound))
    np.testing.assert_array_equal(data.batch(5), jax.random.key_data(bound))


def test_each_of_several_maps_gets_a_key_of_its_own():
    def draw(batch, key):
        return [*batch, float(jax.random.normal(key))]

    data = numbered(4, "all").map(lambda batch: []).map(draw).map(draw).map(draw)
    assert len(set(data.batch(0))) == 3
    assert data.batch(0) == data.batch(0) != data.batch(1)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: a,
        lambda batch, key, scale: batch,
        3,
        lambda: 1,
        lambda key: 1,
        lambda batch=None: 1,
    ],
)
def test_a_map_of_another_form_raises(fn):
    with pytest.raises(TypeError, match=r"need a function fn\(batch\) or fn\(batch, k"):
        numbered(4, 2).map(fn)


def test_a_dataset_passes_through_jit_without_a_second_trace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def first(data, step):
        return data, data.batch(step)

    data = numbered(20, 8, seed=1).map(jnp.negative)
    for step in range(3):
        returned, batch = first(data.reseed(step), step)
        np.testing.assert_array_equal(batch, data.reseed(step).batch(step))
        data = returned
    assert isinstance(data, dataset.Dataset)
    assert (data.size, data.batch_size, data.remainder) == (20, 8, "wrap")


def _operations(n):
    data = from_arrays(jnp.zeros((n, 2)), 4)
    jaxpr = jax.make_jaxpr(lambda data, step: data.batch(step))(data, 0)
    return _count(jaxpr.jaxpr, data.arrays.shape)


def _count(jaxpr, whole):
    work = 0
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(equation.params):
            if hasattr(parameter, "jaxpr"):
                work += _count(parameter.jaxpr, whole)
        work += sum(math.prod(variable.aval.shape) for variable in equation.outvars)
    return work


def test_the_work_of_a_batch_does_not_grow_with_the_data():
    assert _operations(2**15) == _operations(2**13) > 0


def test_no_operation_makes_anything_of_the_size_of_the_data():
    assert _operations(2**16) < 2**14


@pytest.mark.parametrize("n", [1, 2, 3, 1797, 60_000, 65_537, 2**28 + 3, 2**30])
def test_the_place_of_a_batch_is_exact_for_every_step(n):
    steps = [0, 1, 2, 65_535, 123_456_789, 2**30 + 1, MAX_STEP]
    for b in {1, min(n, 128), n // 2 or 1, max(1, n - 1), n}:
        place = jax.vmap(lambda step, b=b: dataset.divmod_product(step, b, n))
        epoch, position = place(jnp.array(steps, jnp.uint32))
        exact = [divmod(step * b, n) for step in steps]
        assert list(zip(epoch.tolist(), position.tolist(), strict=True)) == exact


def test_the_last_steps_still_cover_every_example():
    data = numbered(33, 32, seed=1)
    stop = MAX_STEP - (MAX_STEP * 32 + 32) % 33
    begin = stop - 40
    seen = np.concatenate([data.indices(step) for step in range(begin, MAX_STEP + 1)])
    first = -(begin * 32) % 33
    whole = seen[first:][: (len(seen) - first) // 33 * 33].reshape(-1, 33)
    assert len(whole) > 30
    assert (np.sort(whole, axis=1) == np.arange(33)).all()


def test_the_fingerprint_changes_with_whatever_decides_a_batch():
    x = np.arange(6, dtype=np.float32)

    def fingerprint(arrays, batch_size=2, **options):
        return from_arrays(arrays, batch_size, **options).fingerprint()

    changed = x.copy()
    changed[3] = np.nextafter(np.float32(3), np.float32(4))
    prints = [
        fingerprint({"x": x}),
        fingerprint({"z": x}),
        fingerprint({"x": changed}),
        fingerprint({"x": x.astype(np.int32)}),
        fingerprint({"x": x[:, None]}),
        fingerprint({"x": x}, 3),
        fingerprint({"x": x}, seed=1),
        fingerprint({"x": x}, shuffle=False),
        fingerprint({"x": x}, remainder="drop"),
        fingerprint({"x": jnp.asarray(x, jnp.bfloat16)}),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"x": x.copy()}) == prints[0]
    assert len(prints[0]) == 16


def test_the_fingerprint_is_the_same_on_every_machine():
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    assert from_arrays(arrays, 2, seed=1).fingerprint() == "79b26426d990aa28"


@pytest.mark.parametrize("batch_size", [0, -1, 6])
def test_a_batch_size_out_of_range_raises(batch_size):
    message = f"need 1 <= batch_size <= n, got {batch_size=} n=5"
    with pytest.raises(ValueError, match=message):
        numbered(5, batch_size)


@pytest.mark.parametrize("batch_size", [2.0, "whole", None])
def test_a_batch_size_of_another_type_raises(batch_size):
    with pytest.raises(TypeError, match='need batch_size, an int or "all", got '):
        numbered(5, batch_size)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "need at least one array, got an empty tree"),
        ({"x": np.zeros((0, 3))}, "need 1 <= n <= 1073741824 examples, got n=0"),
        (
            {"x": np.zeros(3), "y": (1.0,)},
            r"need arrays \(n, ...\), got a scalar at 'y/0'",
        ),
        (
            {"x": np.zeros(3), "y": np.zeros((4, 3))},
            r"need first axes of one length, got {'x': 3, 'y': 4}",
        ),
        (
            {"x": np.array([0, 2**40])},
            "need integers that fit in int32, got values from 0 to 1099511627776 at",
        ),
    ],
)
def test_invalid_arrays_raise(arrays, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(arrays, 1)


def test_text_raises():
    with pytest.raises(TypeError, match="need numbers or bools, got <U1 at 'name'"):
        from_arrays({"name": np.array(["a", "b"])}, 1)


def test_an_unknown_remainder_raises():
    with pytest.raises(ValueError, match='need remainder "wrap" or "drop", got rem'):
        numbered(5, 2, remainder="pad")


@pytest.mark.parametrize("shuffle", ["no", 0, None])
def test_a_shuffle_that_is_not_a_bool_raises(shuffle):
    with pytest.raises(TypeError, match="need shuffle to be a bool, got shuffle="):
        numbered(5, 2, shuffle=shuffle)


def test_a_numpy_bool_shuffles_like_a_bool():
    a, b = (numbered(5, 2, shuffle=s).fingerprint() for s in (False, np.False_))
    assert a == b


def test_many_keys_raise():
    with pytest.raises(ValueError, match=r"need one key, got shape \(3,\); jax.vmap"):
        numbered(5, 2).reseed(jax.random.split(jax.random.key(0), 3))


def test_invalid_steps_raise():
    data = numbered(5, 2)
    other: Any
    for other in (1.0, jnp.arange(2), "1", True):
        with pytest.raises(TypeError, match="need an integer scalar as step, got "):
            data.batch(other)
    for other in (-1, 2**31, np.int64(-1)):
        with pytest.raises(
            ValueError, match=f"need 0 <= step <= {MAX_STEP}, got step="
        ):
            data.batch(other)


def test_nan_passes_as_it_is():
    data = from_arrays(jnp.array([1.0, jnp.nan]), 2, shuffle=False)
    np.testing.assert_array_equal(data.batch(0), [1.0, np.nan])


def test_builtins_and_open_functions_are_maps():
    data = numbered(4, 2, shuffle=False).map(lambda *batches: batches).map(max)
    assert data.batch(0).tolist() == [0, 1]


def test_a_dataset_shows_its_plan_and_not_its_arrays():
    def jitter(batch):
        return batch

    shown = repr(numbered(10, 4, remainder="drop").map(jitter))
    assert shown.startswith("Dataset(10 examples, batch_size=4, shuffle=True, ")
    assert shown.endswith("jitter)")
    assert "Array" not in shown


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))]
)
def test_a_copy_is_the_same_dataset(twin):
    for data in (from_arrays(jnp.arange(9), 4), from_arrays(jnp.arange(9), "all")):
        keyless = dataclasses.replace(data, key=jnp.zeros(()))  # keys are not pickled
        assert jax.tree.structure(twin(keyless)) == jax.tree.structure(keyless)

"""A sweep equals separate trainings, whatever the blocks, chunks and devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run
from sweep_problems import (
    DATA,
    POINTS,
    STEPS,
    arrays_of,
    assert_same_bits,
    light,
    quiet_sweep,
    train_fn,
)

import fngrad.sweeps as sweeps

KEYS = jax.random.split(jax.random.key(7), 3)


@functools.cache
def swept():
    """Return the sweep that others are compared with."""
    return quiet_sweep(keys=KEYS)


def test_lanes_have_axes_of_points_and_seeds():
    assert swept().history["loss"].shape == (5, 3, STEPS)
    assert swept().history["val/loss"].shape == (5, 3, 1)
    assert swept().state.params["w"].shape == (5, 3, 2)
    assert swept().state.key.shape == (5, 3)
    np.testing.assert_array_equal(
        swept().points["learning_rate"], POINTS["learning_rate"]
    )
    values = swept().history["val/loss"][:, :, -1].astype(np.float64)
    np.testing.assert_array_equal(swept().notes["values"], values)


@pytest.mark.parametrize(("mode", "rtol"), [("map", 0.0), (4, 1e-5), ("vmap", 1e-5)])
def test_a_sweep_equals_separate_runs(mode, rtol):
    result = quiet_sweep(keys=KEYS, mode=mode)
    alone = jax.jit(train_fn)
    for p, rate in enumerate(POINTS["learning_rate"]):
        for s, key in enumerate(KEYS):
            state, history = alone({"learning_rate": jnp.float32(rate)}, key)
            for name in history:
                np.testing.assert_allclose(
                    result.history[name][p, s], history[name], rtol=rtol
                )
            ours = jax.tree.map(lambda x: x[p, s], result.state.params)  # noqa: B023
            chex.assert_trees_all_close(ours, state.params, rtol=rtol)


@pytest.fixture(scope="module")
def lightly_swept():
    return quiet_sweep(keys=KEYS, fn=light)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_the_bits_do_not_depend_on_the_chunk(chunk, tmp_path, lightly_swept):
    folder = tmp_path / "sweep"
    result = quiet_sweep(keys=KEYS, fn=light, chunk=chunk, folder=folder)
    assert_same_bits(result, lightly_swept)
    files = {1: 4, 5: 2, 100: 1}  # in blocks of 4, 15 lanes
    assert len(list((folder / "lanes").iterdir())) == files[chunk]


def test_a_sweep_trains_twenty_seeds_unless_told():
    points = sweeps.grid(learning_rate=[0.1])
    result = sweeps.sweep(light, points, devices=jax.devices()[:1], progress=False)
    assert_same_bits(result, quiet_sweep(points, 20, light, mode="auto"))
    assert result.history["loss"].shape == (1, 20, STEPS)


def test_every_point_sees_the_same_keys():
    key_data = jax.random.key_data(swept().state.key)
    np.testing.assert_array_equal(key_data[0], jax.random.key_data(KEYS))
    for row in key_data:
        np.testing.assert_array_equal(row, key_data[0])


def test_a_number_of_keys_gives_that_many_distinct_keys():
    result = quiet_sweep(keys=4, fn=light)
    assert len(np.unique(jax.random.key_data(result.notes["keys"]), axis=0)) == 4
    again = quiet_sweep(keys=4, fn=light)
    assert_same_bits(result, again)


def test_args_are_passed_to_the_training():
    def train_on(point, key, data):
        return train_fn(point, key, data)

    assert_same_bits(quiet_sweep(keys=KEYS, fn=train_on, args=(DATA,)), swept())


def test_points_may_be_any_tree_of_columns(lightly_swept):
    nested = {"optimizer": [POINTS["learning_rate"]]}

    def fn(point, key):
        return light({"learning_rate": point["optimizer"][0]}, key)

    result = quiet_sweep(nested, KEYS, fn)
    assert_same_bits(result, lightly_swept)
    assert list(result.points) == ["optimizer/0"]


def test_static_values_are_compiled_separately_and_concatenated():
    def fn(point, key, power, length):
        curve = jnp.arange(float(length)) ** power * point["x"]
        return {"last": curve[-1]}, {"loss": curve, "n": jnp.int32(length)}

    result = sweeps.sweep(
        fn,
        {"x": np.array([1.0, 2.0])},
        1,
        static={"power": [1, 2], "length": [2, 3]},
        metric=("loss", "min"),
        mode="vmap",
        progress=False,
    )
    assert result.points["power"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert result.points["length"].tolist() == [2, 2, 3, 3, 2, 2, 3, 3]
    assert result.points["x"].tolist() == [1.0, 2.0] * 4
    assert [s["last"].shape for s in result.state] == [(2, 1)] * 4
    np.testing.assert_array_equal(result.history["loss"][0, 0], [0.0, 1.0, np.nan])
    np.testing.assert_array_equal(result.history["loss"][7, 0], [0.0, 2.0, 8.0])
    assert result.notes["values"][:, 0].tolist() == [1, 2, 2, 4, 1, 2, 4, 8]
    # The padding of a curve does not count as divergence.
    assert result.diverged_at.max() == -1
    assert result.history["n"][:, 0].tolist() == [2, 2, 3, 3, 2, 2, 3, 3]
    assert [how["width"] for how in result.notes["modes"]] == [2] * 4


def test_static_values_may_be_of_any_type():
    def fn(point, key, activation, name):
        return (), {"loss": activation(point["x"]) + len(name)}

    result = sweeps.sweep(
        fn,
        {"x": np.array([-1.0])},
        1,
        static={"activation": [jnp.abs, jnp.tanh], "name": ["a", "bc"]},
        metric=("loss", "min"),
        progress=False,
    )
    assert result.points["activation"][2] is jnp.tanh
    assert result.points["name"].tolist() == ["a", "bc"] * 2
    assert result.notes["values"][0, 0] == 2.0


def test_a_combination_may_lack_a_metric():
    def fn(point, key, extra):
        history = {"loss": point["x"]}
        return (), history | ({"count": jnp.int32(3)} if extra else {})

    result = sweeps.sweep(
        fn,
        {"x": np.array([1.0])},
        1,
        static={"extra": [False, True]},
        metric=("loss", "min"),
        progress=False,
    )
    np.testing.assert_array_equal(result.history["count"], [[np.nan], [3.0]])


def test_a_metric_with_different_ranks_is_refused():
    def fn(point, key, flat):
        return (), {"loss": point["x"], "a": jnp.ones(()) if flat else jnp.ones(2)}

    with pytest.raises(ValueError, match=r"one rank .* 'a' with \[0, 1\] axes"):
        sweeps.sweep(
            fn,
            {"x": np.array([1.0])},
            1,
            static={"flat": [False, True]},
            metric=("loss", "min"),
            progress=False,
        )


SHARDED = """
import sys
sys.path[:0] = ["tests", "tests/support"]
import conftest, jax, numpy as np
import sweep_problems
from sweep_problems import arrays_of
assert jax.device_count() == 8
fn = getattr(sweep_problems, sys.argv[1])
def quiet_sweep(**options):
    return sweep_problems.quiet_sweep(fn=fn, **options)
one = quiet_sweep(devices=jax.devices()[:1])
for devices in (jax.devices(), jax.devices()[:3]):
    many = quiet_sweep(devices=devices)
    assert many.notes["modes"][0]["devices"] == len(devices)
    for a, b in zip(arrays_of(one), arrays_of(many), strict=True):
        np.testing.assert_array_equal(a, b)
"""


@pytest.mark.parametrize(
    "training", ["light", pytest.param("train_fn", marks=pytest.mark.slow)]
)
def test_lanes_on_eight_devices_have_the_bits_of_one(training):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = run(SHARDED, training, variables=flags)
    assert done.returncode == 0, done.stderr


def test_low_precision_and_integers_keep_their_dtypes(tmp_path):
    def fn(point, key):
        state = (point["x"].astype(jnp.bfloat16), point["n"], key, jnp.zeros((0, 2)))
        return state, {"loss": point["x"], "flag": point["x"] > 0}

    points = {"x": np.array([1.5, -2.0]), "n": np.array([3, 4])}
    first, second = (
        quiet_sweep(points, 2, fn, metric=("loss", "min"), folder=tmp_path / "s")
        for _ in range(2)
    )
    assert_same_bits(first, second)
    assert second.notes["restored"] == 4
    low, n, key, empty = second.state
    assert (low.dtype, n.dtype, empty.shape) == (jnp.bfloat16, np.int32, (2, 2, 0, 2))
    assert second.history["flag"].dtype == np.bool_
    assert low[:, 0].astype(np.float32).tolist() == [1.5, -2.0]
    assert jax.random.key_impl(key) == jax.random.key_impl(jax.random.key(0))
    assert len(arrays_of(second)) == 7


def test_a_history_may_hold_scalars():
    def fn(point, key):
        return (), {"loss": point["x"], "curve": jnp.full(3, point["x"])}

    points = {"x": np.array([1.0, np.float32(0.1)])}
    result = quiet_sweep(points, 2, fn, metric=("loss", "max"))
    assert result.history["loss"].shape == (2, 2)
    assert result.notes["values"].dtype == np.float64
    assert result.notes["metric"] == ("loss", "max")


def test_the_bar_says_for_each_program_that_it_compiles(capsys):
    def scaled(point, key, *, scale):
        return light({"learning_rate": scale * point["learning_rate"]}, key)

    quiet_sweep(keys=KEYS, fn=scaled, static={"scale": [1.0, 0.5]}, progress=True)
    shown = [line for line in capsys.readouterr().err.split("\n") if line]
    heads = [line.partition("%")[0].split() for line in shown]
    assert heads == [
        ["sweep:", "0"],
        ["sweep:", "compiling:", "0"],
        ["sweep:", "0"],
        ["sweep:", "compiling:", "50"],
        ["sweep:", "50"],
        ["sweep:", "100"],
    ]

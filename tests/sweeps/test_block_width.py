"""The width of blocks: set by the mode, or found by timing the first steps."""

import builtins
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_problems import METRIC, STEPS, assert_same_bits, light, train_fn
from sweep_problems import quiet_sweep as any_sweep

import fngrad.sweeps.running.block_width as block_width
import fngrad.sweeps.running.lane_training as lane_training
import fngrad.sweeps.running.program as program
import fngrad.sweeps.running.width_timing as width_timing
from fngrad.sweeps.running.block_width import balanced
from fngrad.sweeps.running.program import Block

POINT = {"learning_rate": jnp.float32(0.1)}
KEY = jax.random.key(3)


def quiet_sweep(*inputs, fn=light, **options):
    return any_sweep(*inputs, fn=fn, **options)


def width_of(result):
    (how,) = result.notes["modes"]
    return how["width"]


@pytest.mark.parametrize(("mode", "width"), [("map", 1), ("vmap", 15), (7, 7)])
def test_the_mode_sets_the_width(mode, width):
    result = quiet_sweep(mode=mode)
    assert width_of(result) == width
    assert result.notes["modes"][0]["reason"] == "asked for"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Choose widths as on a machine with two cores."""
    monkeypatch.setattr(block_width, "_cores", lambda: 2)


def test_auto_chooses_narrow_blocks_for_lanes_that_carry_much():
    def carrying(size):
        def fn(point, key):
            def step(x, _):
                return x + point["x"], x[0]

            state, curve = jax.lax.scan(step, jnp.zeros(size), None, 3)
            return state[0], {"val/loss": curve}

        return fn

    points = {"x": np.arange(128.0)}
    small, middle, large = (
        quiet_sweep(points, 1, fn=carrying(size), mode="auto")
        for size in (10, 2**13, 2**18)
    )
    assert [width_of(x) for x in (small, middle, large)] == [64, 32, 2]
    assert "relative times" not in small.notes["modes"][0]["reason"]  # it is too short
    np.testing.assert_array_equal(small.notes["values"], middle.notes["values"])


def test_blocks_have_little_padding():
    assert [balanced(n, 64) for n in (1, 64, 65, 100, 129)] == [1, 64, 33, 50, 43]


def test_a_shortened_training_has_the_same_first_steps():
    jaxpr = jax.jit(train_fn).trace(POINT, KEY).jaxpr
    loop = width_timing.heaviest_loop(jaxpr)
    assert loop.length in (1, STEPS)  # blocks between evaluations, or their steps

    def plain(point, key):
        x = jax.random.normal(key, 3) * point["learning_rate"]
        steps = jax.jit(
            lambda x, ys: jax.lax.scan(lambda x, y: (x * 2 + y, x.sum()), x, ys)
        )
        x, curve = steps(x, jnp.arange(9.0))
        return x + 1, {"val/loss": curve}

    jaxpr = jax.jit(plain).trace(POINT, KEY).jaxpr
    assert width_timing.heaviest_loop(jaxpr).length == 9
    _, curve = jax.jit(width_timing.shortened(jaxpr, 4))((POINT, KEY))
    assert curve.shape == (4,)
    expected = plain(POINT, KEY)[1]["val/loss"]
    np.testing.assert_allclose(curve, expected[:4], rtol=1e-6)


def test_a_training_without_a_loop_has_no_heaviest_loop():
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0)
    assert width_timing.heaviest_loop(jaxpr) is None


@pytest.fixture
def slow_map(monkeypatch):
    """Time other widths always, and report four times the width as the fastest."""
    monkeypatch.setattr(width_timing, "MAX_SHARE", 1e9)
    monkeypatch.setattr(lane_training, "MIN_ROUNDS", 0)

    def seconds(block: Block) -> float:
        return {1: 1.0, 2: 0.5, 8: 0.1}[block.width] * block.lanes

    monkeypatch.setattr(width_timing, "_seconds", seconds)
    monkeypatch.setattr("fngrad.sweeps.running.block_width.CPU_WIDTHS", (2, 2))


def test_auto_chooses_the_fastest_width(slow_map, tmp_path):
    points = {"learning_rate": np.full(16, 0.1)}
    result = quiet_sweep(points, 1, mode="auto", folder=tmp_path)
    assert width_of(result) == 8
    reason = result.notes["modes"][0]["reason"]
    assert "relative times of the first steps: 1: 10.00, 2: 5.00, 8: 1.00" in reason
    assert_same_bits(result, quiet_sweep(points, 1, mode=8))
    again = quiet_sweep(points, 1, mode="auto", folder=tmp_path)
    assert (width_of(again), again.notes["restored"]) == (8, 16)


def test_auto_keeps_the_first_block_if_its_width_is_fastest(
    slow_map, monkeypatch, tmp_path
):
    monkeypatch.setattr(width_timing, "_seconds", lambda block: float(block.lanes))
    points = {"learning_rate": np.full(6, 0.1)}
    result = quiet_sweep(points, 1, mode="auto", folder=tmp_path)
    assert width_of(result) == 2
    assert_same_bits(result, quiet_sweep(points, 1, mode=2))
    again = quiet_sweep(points, 1, mode="auto", folder=tmp_path)
    assert again.notes["restored"] == 6


def test_the_metric_of_the_problem_is_the_default():
    assert quiet_sweep(mode=4).notes["metric"] == METRIC


def test_blocks_are_trained_concurrently_and_collected_in_order(monkeypatch):
    together = threading.Barrier(2, timeout=60)  # breaks if blocks wait for others
    to_host = program.to_host

    def meets(outputs):
        together.wait()
        return to_host(outputs)

    alone = quiet_sweep(mode=4)
    monkeypatch.setattr(lane_training, "to_host", meets)
    assert_same_bits(quiet_sweep(mode=4), alone)


def test_the_free_memory_is_known_or_guessed_on_every_system(monkeypatch):
    def no_file(*_, **__):
        raise FileNotFoundError

    assert 0 < block_width._free_host_memory() < 2**50
    monkeypatch.setattr(builtins, "open", no_file)
    if hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert block_width._free_host_memory() == total
        monkeypatch.delattr(os, "sysconf")
    assert block_width._free_host_memory() == 8 * 2**30  # as on Windows

"""The choice between the loops, their chunks, and the memory that they keep."""

import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import (
    DATA,
    OPTIMIZER,
    PARAMS,
    STEP,
    first_state,
    loss_fn,
    quiet_fit,
)

import fngrad.fitting.loops as loops
from fngrad.fitting.inputs import Feed
from fngrad.fitting.intervals import CHUNK_SECONDS, next_chunk
from fngrad.fitting.nonfinite import NonFiniteError
from fngrad.fitting.training_loop import fit
from fngrad.training import init_state, make_step


def timed_choice(
    monkeypatch, python, scan, remaining=10**9, interrupted=None, compiling=0.0
):
    """Return the choice between loops that take so many seconds per step.

    Also return the loops that were called, with their steps, and the seconds of it all.
    The clock is not the machine's, which may be busy with something else.
    """
    calls, now = [], [0.0]

    def make_loop(name, step, feed, placement, peers):
        def advance(carry, length):
            is_compiled = any(name == called for called, _ in calls)
            now[0] += 0.0 if is_compiled else compiling
            calls.append((name, length))
            now[0] += length * {"python": python, "scan": scan}[name]
            return carry, length

        return advance

    monkeypatch.setattr(loops, "make_loop", make_loop)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    carry = loops.begin(first_state(), {"loss": jnp.zeros(())})
    choice = loops.choose(STEP, Feed(DATA), carry, remaining, interrupted)
    return choice, calls, now[0]


def chosen(monkeypatch, python, scan, **options):
    """Return the choice between loops, and the steps that it took."""
    choice, calls, _ = timed_choice(monkeypatch, python, scan, **options)
    return choice, sum(length for _, length in calls)


def test_auto_takes_the_faster_loop(monkeypatch):
    assert chosen(monkeypatch, python=1e-3, scan=2e-4)[0].loop == "scan"
    assert chosen(monkeypatch, python=2e-4, scan=1e-3)[0].loop == "python"


def test_a_slow_step_is_timed_once(monkeypatch):
    choice, steps = chosen(monkeypatch, python=2e-2, scan=0.0)
    assert (choice.loop, steps) == ("python", 2)


def test_a_few_steps_are_not_timed(monkeypatch):
    choice, steps = chosen(monkeypatch, python=1e-3, scan=0.0, remaining=10)
    assert (choice.loop, steps) == ("python", 0)


def test_an_interrupt_ends_the_timing_of_loops(monkeypatch):
    interrupted = threading.Event()
    interrupted.set()
    choice, steps = chosen(monkeypatch, 1e-3, 1e-4, interrupted=interrupted)
    assert (choice.loop, steps) == ("python", 1)


@pytest.mark.parametrize("compiling", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("seconds", [1e-4, 1e-3, 9e-3])
@pytest.mark.parametrize("remaining", [10, 50, 200, 10**3, 10**4, 10**5, 10**6])
def test_the_choice_takes_a_tenth_of_the_run_at_most(
    monkeypatch, compiling, seconds, remaining
):
    choice, calls, spent = timed_choice(
        monkeypatch, seconds, seconds / 4, remaining=remaining, compiling=compiling
    )
    own = compiling if calls else 0.0  # of the Python loop, whose program is used
    assert spent - own <= 0.1 * seconds * remaining + 1e-9
    assert ("scan" in dict(calls)) == (choice.loop == "scan")
    if 0.1 * seconds * remaining > compiling + 1.0:
        assert choice.loop == "scan"


@pytest.mark.parametrize("seconds", [1e-4, 1.1e-3, 3.9e-3, 9e-3])
def test_the_choice_is_made_in_every_run_that_is_ten_times_as_long(
    monkeypatch, seconds
):
    options = {"python": seconds, "scan": seconds, "compiling": 0.5}
    _, calls, spent = timed_choice(monkeypatch, **options)
    assert "scan" in dict(calls)
    least = 10 * (spent - 0.5) / seconds  # the Python loop's program is used
    for share, is_timed in ((0.95, False), (1.05, True)):
        remaining = round(share * least)
        _, calls, spent = timed_choice(monkeypatch, remaining=remaining, **options)
        assert ("scan" in dict(calls)) == is_timed
        assert spent - 0.5 <= 0.1 * seconds * remaining + 1e-9


def test_a_loop_that_is_twice_as_slow_is_timed_in_one_round(monkeypatch):
    _, calls, _ = timed_choice(monkeypatch, python=1e-3, scan=1e-2)
    assert sum(name == "scan" for name, _ in calls) == 2  # compiled, and timed
    _, calls, _ = timed_choice(monkeypatch, python=1e-3, scan=1.9e-3)
    assert sum(name == "scan" for name, _ in calls) == 1 + loops.PROBE_ROUNDS


def test_chunks_grow_to_a_quarter_of_a_second():
    assert next_chunk(1, length=1, seconds=1e-5) == 4
    assert next_chunk(64, length=64, seconds=64 * CHUNK_SECONDS) == 1
    assert next_chunk(64, length=64, seconds=1e-6) == 256
    assert next_chunk(loops.ROWS, length=loops.ROWS, seconds=1e-6) == loops.ROWS


def test_integer_metrics_keep_every_digit():
    def counting(params, batch):
        return loss_fn(params, batch), {"count": jnp.int32(2**24 + 1)}

    step = make_step(counting, OPTIMIZER)
    state = init_state(PARAMS, OPTIMIZER, 0)
    result = fit(step, state, DATA, num_steps=2, progress=False)
    np.testing.assert_array_equal(result.history["count"], 2**24 + 1)
    assert result.history["count"].dtype == np.int32


def test_unsigned_metrics_do_not_wrap():
    def counting(params, batch):
        return loss_fn(params, batch), {"count": jnp.uint32(3_000_000_000)}

    step = make_step(counting, OPTIMIZER)
    state = init_state(PARAMS, OPTIMIZER, 0)
    result = fit(step, state, DATA, num_steps=2, progress=False)
    np.testing.assert_array_equal(result.history["count"], 3_000_000_000)


def test_a_loss_that_is_not_finite_raises_for_steps_of_any_kind():
    def bad_step(state, batch):
        return STEP(state, batch)[0], {"loss": jnp.float32(jnp.nan)}

    with pytest.raises(NonFiniteError, match="got step 1 with loss=nan"):
        fit(bad_step, first_state(), DATA, num_steps=4, progress=False)


def test_a_step_needs_a_real_metric_but_no_loss():
    def with_metrics(metrics):
        return lambda state, batch: (STEP(state, batch)[0], metrics)

    state = first_state()
    size = {"size": jnp.float32(2.0)}
    result = fit(with_metrics(size), state, DATA, num_steps=2, progress=False)
    np.testing.assert_array_equal(result.history["size"], 2.0)
    for bad, words in (
        ({}, "at least one metric"),
        ({"z": jnp.zeros((), complex)}, r"got complex64\[\] for 'z'"),
        ({"v": jnp.zeros(2)}, r"got float32\[2\] for 'v'"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(with_metrics(bad), state, DATA, num_steps=2, progress=False)


def test_steps_of_earlier_fits_are_garbage_collected():
    def fit_once():
        scale = jnp.ones(())
        step = make_step(lambda p, b: scale * loss_fn(p, b), OPTIMIZER)
        fit(step, first_state(), DATA, num_steps=1, progress=False)
        return weakref.ref(step)

    steps = [fit_once() for _ in range(2)]
    loops._programs.cache_clear()
    jax.clear_caches()
    gc.collect()
    assert [step() for step in steps] == [None, None]
    assert loops._programs.cache_info().maxsize == 8


@pytest.mark.parametrize("log_every", [None, 7])
def test_an_evaluation_follows_the_last_batch_of_an_iterable(log_every):
    batches = [DATA.batch(t) for t in range(7)]
    with pytest.warns(UserWarning, match="cannot be resumed"):
        result = quiet_fit(
            data=batches,
            metric_fn=lambda p, b: {"x": b["x"][:, 0]},
            eval_data=DATA,
            eval_every=3,
            log_every=log_every,
        )
    np.testing.assert_array_equal(result.history.steps("val/x"), [3, 6, 7])


def test_a_metric_with_the_name_of_an_evaluation_is_refused():
    def named_alike(params, batch):
        return loss_fn(params, batch), {"val/x": 1.0}

    step = make_step(named_alike, OPTIMIZER)
    with pytest.raises(ValueError, match=r"not taken, got \['val/x'\]"):
        fit(
            step,
            init_state(PARAMS, OPTIMIZER, 0),
            DATA,
            num_steps=2,
            progress=False,
            metric_fn=lambda p, b: {"x": b["x"][:, 0]},
            eval_data=DATA,
        )

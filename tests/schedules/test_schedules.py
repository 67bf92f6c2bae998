"""Schedules against their definitions in float64, at their ends and at their joins."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad import schedules

MAX = 2**31 - 1
STEPS = np.arange(0, 131)


def part(t, begin, length):
    return np.clip((t - begin) / length, 0.0, 1.0)


def cosine_weight(f, p):
    return (0.5 * (1 + np.cos(np.pi * f))) ** p


def warmup_cosine(t, first, peak, warmup, total, end=0.0, p=1.0):
    rise = first + part(t, 0, max(warmup, 1)) * (peak - first)
    fall = end + cosine_weight(part(t, warmup, total - warmup), p) * (peak - end)
    return np.where(t < warmup, rise, fall)


def exponential(t, staircase, rate, bound):
    exponent = np.maximum(t - 7, 0) / 10
    with np.errstate(over="ignore"):
        value = 0.3 * rate ** (np.floor(exponent) if staircase else exponent)
    return np.maximum(value, bound) if rate < 1 else np.minimum(value, bound)


def one_cycle(t, knots, values, shape):
    out = np.full(t.shape, values[-1])
    for (a, b), (v, w) in zip(pairwise(knots), pairwise(values), strict=True):
        f = (t - a) / (b - a)
        f = f if shape == "linear" else (1 - np.cos(np.pi * f)) / 2
        out = np.where((t >= a) & (t < b), v + f * (w - v), out)
    return out


def wsd(t, first, peak, warmup, stable, decay, end, p):
    f = part(t, warmup + stable, decay) ** p
    rise = first + part(t, 0, warmup) * (peak - first)
    return np.where(t < warmup, rise, peak + f * (end - peak))


S = schedules
CYCLES = [
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 3, "decay_steps": 20},
    {
        "init_value": 0.2,
        "peak_value": 0.5,
        "warmup_steps": 0,
        "decay_steps": 40,
        "end_value": 0.1,
    },
]

# name: (schedule, what it is by definition)
CASES = {
    "constant": (S.constant(0.3), lambda t: np.full(t.shape, 0.3)),
    "linear": (
        S.linear(0.3, 0.01, transition_steps=100, transition_begin=7),
        lambda t: 0.3 + part(t, 7, 100) * (0.01 - 0.3),
    ),
    "polynomial": (
        S.polynomial(0.3, 0.01, 2.5, transition_steps=100, transition_begin=7),
        lambda t: (0.3 - 0.01) * (1 - part(t, 7, 100)) ** 2.5 + 0.01,
    ),
    "cosine": (
        S.cosine(0.3, 100, alpha=0.1, exponent=1.5),
        lambda t: 0.3 * (0.9 * cosine_weight(part(t, 0, 100), 1.5) + 0.1),
    ),
    "warmup_cosine": (
        S.warmup_cosine(0.01, 0.3, 10, 100, 0.02, 1.5),
        lambda t: warmup_cosine(t, 0.01, 0.3, 10, 100, 0.02, 1.5),
    ),
    "warmup_cosine without warm-up": (
        S.warmup_cosine(0.01, 0.3, 0, 100),
        lambda t: warmup_cosine(t, 0.01, 0.3, 0, 100),
    ),
    "cosine_restarts": (
        S.cosine_restarts(CYCLES),
        lambda t: np.where(
            t < 20,
            warmup_cosine(t, 0.1, 1.0, 3, 20),
            warmup_cosine(t - 20, 0.2, 0.5, 0, 40, 0.1),
        ),
    ),
    "exponential": (
        S.exponential(0.3, 10, 0.5, 7, end_value=0.01),
        lambda t: exponential(t, False, 0.5, 0.01),
    ),
    "exponential staircase": (
        S.exponential(0.3, 10, 0.5, 7, True),
        lambda t: exponential(t, True, 0.5, 0.0),
    ),
    "exponential growth": (
        S.exponential(0.3, 10, 1.5, 7, end_value=0.7),
        lambda t: exponential(t, False, 1.5, 0.7),
    ),
    "piecewise_constant": (
        S.piecewise_constant(0.3, {50: 3.0, 10: 0.5}),
        lambda t: 0.3 * np.where(t >= 10, 0.5, 1) * np.where(t >= 50, 3.0, 1),
    ),
    "one_cycle": (
        S.one_cycle(101, 0.3, 0.2, 20.0, 100.0),
        lambda t: one_cycle(t, [0, 20, 101], [0.015, 0.3, 1.5e-4], "cosine"),
    ),
    "one_cycle of three lines": (
        S.one_cycle(101, 0.3, 0.2, 20.0, 100.0, pct_final=0.9, anneal="linear"),
        lambda t: one_cycle(t, [0, 20, 90, 101], [0.015, 0.3, 0.015, 1.5e-4], "linear"),
    ),
    "inverse_sqrt": (
        S.inverse_sqrt(0.01, 0.3, 10),
        lambda t: np.where(
            t < 10, 0.01 + t * 0.029, 0.3 * np.sqrt(10 / np.maximum(t, 1))
        ),
    ),
    "warmup_stable_decay": (
        S.warmup_stable_decay(0.01, 0.3, 10, 40, 60, 0.02, power=0.5),
        lambda t: wsd(t, 0.01, 0.3, 10, 40, 60, 0.02, 0.5),
    ),
    "join": (
        S.join([S.linear(0.0, 1.0, 10), S.cosine(1.0, 30), S.constant(0.1)], [10, 50]),
        lambda t: np.select(
            [t < 10, t < 50], [t / 10, cosine_weight(part(t, 10, 30), 1)], 0.1
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_is_its_definition(name):
    schedule, definition = CASES[name]
    np.testing.assert_allclose(
        jax.jit(schedule)(STEPS), definition(STEPS), rtol=2e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", CASES)
def test_schedule_takes_an_int_an_array_and_a_tracer(name):
    schedule, _ = CASES[name]
    value = jax.jit(schedule)(jnp.int32(13))
    assert value.shape == ()
    assert value.dtype == jnp.result_type(float)
    assert not value.weak_type
    np.testing.assert_allclose(value, schedule(13), rtol=2e-7)
    np.testing.assert_allclose(value, schedule(jnp.arange(14))[-1], rtol=4e-7)
    np.testing.assert_allclose(schedule(np.int64(13)), schedule(13), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_schedule_is_finite_and_settled_at_the_largest_step(name):
    schedule, definition = CASES[name]
    last = np.array([MAX - 1, MAX])
    np.testing.assert_allclose(
        jax.jit(schedule)(last), definition(last), rtol=2e-6, atol=1e-30
    )


ENDS = {
    "linear": (S.linear(0.3, 0.7, 77, 5), {0: 0.3, 5: 0.3, 82: 0.7, 83: 0.7}),
    "polynomial": (S.polynomial(0.3, 0.7, 3.0, 77), {0: 0.3, 77: 0.7, MAX: 0.7}),
    "cosine": (S.cosine(0.7, 77, alpha=0.5), {0: 0.7, 77: 0.35, MAX: 0.35}),
    "warmup_cosine": (
        S.warmup_cosine(0.1, 0.7, 7, 77, 0.3),
        {0: 0.1, 7: 0.7, 77: 0.3, MAX: 0.3},
    ),
    "one_cycle": (
        S.one_cycle(100, 0.7, 0.25, 2.0, 4.0),
        {0: 0.35, 25: 0.7, 100: 0.0875, MAX: 0.0875},
    ),
    "inverse_sqrt": (S.inverse_sqrt(0.1, 0.7, 7), {0: 0.1, 7: 0.7, 28: 0.35}),
    "inverse_sqrt from the peak": (S.inverse_sqrt(0.1, 0.7, 0), {0: 0.7, 4: 0.35}),
    "warmup_stable_decay": (
        S.warmup_stable_decay(0.1, 0.7, 7, 10, 20, 0.3),
        {0: 0.1, 7: 0.7, 17: 0.7, 37: 0.3, MAX: 0.3},
    ),
    "exponential": (S.exponential(0.7, 10, 0.5), {0: 0.7, 10: 0.35, 20: 0.175}),
    "long": (S.linear(0.3, 0.7, 2**24 + 1), {0: 0.3, 2**24 + 1: 0.7, MAX: 0.7}),
    "late": (S.linear(0.0, 1.0, 4, 2**30), {2**30: 0.0, 2**30 + 1: 0.25}),
    "beyond int32": (S.linear(1.0, 0.0, 2**40, 0), {0: 1.0}),
    "late stairs": (
        S.exponential(1.0, 10, 0.5, 2**30, staircase=True),
        {2**30 + 9: 1.0, 2**30 + 10: 0.5},
    ),
    "joined late": (
        S.join([S.constant(1.0), S.linear(0.0, 1.0, 4)], [2**30]),
        {2**30 - 1: 1.0, 2**30: 0.0, 2**30 + 3: 0.75},
    ),
    "late decay": (
        S.warmup_stable_decay(0.0, 1.0, 2**30, 2**30, 4, 0.0),
        {2**30: 1.0, MAX: 1.0},
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_schedule_is_exact_at_its_ends(name):
    schedule, values = ENDS[name]
    got = {t: float(schedule(t)) for t in values}
    assert got == {t: float(np.float32(v)) for t, v in values.items()}


CONTINUOUS = {
    "warmup_cosine": (S.warmup_cosine(0.0, 1.0, 1000, 3000), [1000, 3000]),
    "one_cycle": (S.one_cycle(3000, 1.0, pct_final=0.8), [900, 2400, 3000]),
    "inverse_sqrt": (S.inverse_sqrt(0.0, 1.0, 1000), [1000]),
    "warmup_stable_decay": (
        S.warmup_stable_decay(0.0, 1.0, 1000, 1000, 1000),
        [1000, 2000, 3000],
    ),
    "linear": (S.linear(0.0, 1.0, 1000, 500), [500, 1500]),
    "polynomial": (S.polynomial(0.0, 1.0, 2.0, 1000, 500), [500, 1500]),
    "cosine": (S.cosine(1.0, 1000), [1000]),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_schedule_is_continuous_at_its_joins(name):
    schedule, joins = CONTINUOUS[name]
    for join in joins:
        values = np.asarray(schedule(jnp.arange(join - 2, join + 3)))
        assert np.abs(np.diff(values)).max() < 5e-3, (join, values)


FALLING = {
    "linear": S.linear(1.0, 0.1, 300),
    "polynomial": S.polynomial(1.0, 0.1, 2.0, 300),
    "cosine": S.cosine(1.0, 300, 0.1),
    "exponential": S.exponential(1.0, 30, 0.5, end_value=0.1),
    "piecewise_constant": S.piecewise_constant(1.0, {30: 0.5, 100: 0.1}),
    "warmup_cosine": S.warmup_cosine(1.0, 1.0, 10, 300),
    "inverse_sqrt": S.inverse_sqrt(1.0, 1.0, 10),
    "warmup_stable_decay": S.warmup_stable_decay(1.0, 1.0, 10, 20, 270),
}


@pytest.mark.parametrize("name", FALLING)
def test_decay_never_rises(name):
    values = np.asarray(FALLING[name](jnp.arange(400)))
    assert np.all(np.diff(values) <= 6e-8)
    assert values[-1] < values[0]


# Each takes two numbers that a sweep varies: a value and a length.
SWEPT = {
    "constant": lambda v, n: S.constant(v),
    "linear": lambda v, n: S.linear(v, 0.1, n, n),
    "polynomial": lambda v, n: S.polynomial(0.3, v, v, n, 3),
    "cosine": lambda v, n: S.cosine(v, n, v, v),
    "warmup_cosine": lambda v, n: S.warmup_cosine(0.0, v, 5, n, v, v),
    "warm-up": lambda v, n: S.warmup_cosine(v, v, n, 40),
    "cosine_restarts": lambda v, n: S.cosine_restarts(
        [dict(cycle, peak_value=v, decay_steps=n) for cycle in CYCLES]
    ),
    "exponential": lambda v, n: S.exponential(v, n, v, n, end_value=v),
    "piecewise_constant": lambda v, n: S.piecewise_constant(v, [(n, v)]),
    "one_cycle": lambda v, n: S.one_cycle(n, v, v, v, v),
    "inverse_sqrt": lambda v, n: S.inverse_sqrt(v, v, n),
    "warmup_stable_decay": lambda v, n: S.warmup_stable_decay(0.1, v, n, n, n, v, v),
    "join": lambda v, n: S.join([S.constant(v), S.linear(v, 0.0, n)], [n]),
}


@pytest.mark.parametrize("name", SWEPT)
def test_sweep_over_values_and_lengths_equals_each_alone(name):
    make, values, lengths = SWEPT[name], [0.25, 0.75], [8, 20]
    steps = jnp.arange(50)
    swept = jax.vmap(lambda v, n: make(v, n)(steps))(
        jnp.array(values), jnp.array(lengths)
    )
    alone = [make(v, n)(steps) for v, n in zip(values, lengths, strict=True)]
    np.testing.assert_allclose(swept, np.stack(alone), rtol=3e-7, atol=1e-8)


def test_value_in_the_program_has_the_bits_of_one_passed_as_data():
    steps = jnp.arange(200)
    baked = jax.jit(lambda t: S.warmup_cosine(0.0, 0.3, 10, 97)(t))(steps)
    passed = jax.jit(lambda t, v, n: S.warmup_cosine(0.0, v, 10, n)(t))(steps, 0.3, 97)
    np.testing.assert_array_equal(baked, passed)


def test_length_may_be_a_float_and_a_traced_length_below_one_counts_as_one():
    assert float(S.linear(0.0, 1.0, 2.5)(1)) == pytest.approx(0.4)
    short = jax.jit(lambda n: S.linear(0.3, 0.7, n)(jnp.arange(3)))(jnp.int32(0))
    np.testing.assert_array_equal(short, np.array([0.3, 0.7, 0.7], np.float32))


def test_schedule_has_gradients_in_its_values():
    def value(peak, power):
        return S.warmup_stable_decay(0.0, peak, 2, 2, 10, power=power)(9)

    d_peak, d_power = jax.jit(jax.grad(value, (0, 1)))(2.0, 1.0)
    np.testing.assert_allclose(d_peak, 0.5, rtol=1e-6)  # 1 - f
    np.testing.assert_allclose(d_power, -2 * 0.5 * np.log(0.5), rtol=1e-6)


def test_join_takes_functions_that_return_numbers_and_gives_them_no_negative_step():
    seen = []

    def later(step):
        seen.append(int(step))
        return 2.0

    schedule = S.join([lambda step: 1.0, later], [10])
    assert [float(schedule(t)) for t in (0, 9, 10, 12)] == [1.0, 1.0, 2.0, 2.0]
    assert seen == [0, 0, 0, 2]


def test_schedule_is_float64_under_x64(x64):
    value = jax.jit(S.cosine(0.3, 100, 0.1))(33)
    assert value.dtype == jnp.float64
    exact = 0.3 * (0.9 * cosine_weight(0.33, 1) + 0.1)
    np.testing.assert_allclose(value, exact, rtol=1e-15)


BAD = [
    (lambda: S.linear(1.0, 0.0, 0), "1 <= transition_steps"),
    (lambda: S.linear(1.0, 0.0, 5, -1), "0 <= transition_begin"),
    (lambda: S.linear(float("nan"), 0.0, 5), "init_value=nan"),
    (lambda: S.constant(float("nan")), "value=nan"),
    (lambda: S.polynomial(1.0, 0.0, 0.0, 5), "power > 0, got power=0.0"),
    (lambda: S.cosine(1.0, 0), "1 <= decay_steps"),
    (lambda: S.cosine(1.0, 5, exponent=-1), "exponent > 0"),
    (
        lambda: S.warmup_cosine(0.0, 1.0, 10, 10),
        "need warmup_steps < decay_steps.*warmup_steps=10 decay_steps=10",
    ),
    (lambda: S.warmup_cosine(0.0, 1.0, -1, 10), "0 <= warmup_steps"),
    (lambda: S.cosine_restarts([]), "at least one schedule"),
    (
        lambda: S.cosine_restarts([{"init_value": 0.0, "peak_value": 1.0}] * 2),
        "need each cycle's warmup_steps, got",
    ),
    (
        lambda: S.cosine_restarts(
            [{k: v for k, v in CYCLES[0].items() if k != "decay_steps"}, CYCLES[1]]
        ),
        "need each cycle's decay_steps, got",
    ),
    (lambda: S.cosine(1.0, 5, exponent=np.float32(-1)), "exponent > 0"),
    (lambda: S.exponential(1.0, 0, 0.5), "1 <= transition_steps"),
    (lambda: S.exponential(1.0, 10, 0.0), "decay_rate > 0"),
    (lambda: S.piecewise_constant(1.0, {-1: 0.5}), "0 <= boundary"),
    (lambda: S.piecewise_constant(1.0, {1: -0.5}), "0.0 <= scale"),
    (lambda: S.one_cycle(0, 1.0), "1 <= transition_steps"),
    (lambda: S.one_cycle(10, 1.0, 1.0), "0 <= pct_start < pct_final < 1"),
    (lambda: S.one_cycle(10, 1.0, 0.3, pct_final=0.2), "pct_final=0.2"),
    (lambda: S.one_cycle(10, 1.0, div_factor=0), "div_factor > 0"),
    (lambda: S.one_cycle(10, 1.0, anneal="cubic"), "anneal='cubic'"),  # pyright: ignore
    (lambda: S.inverse_sqrt(0.0, 1.0, -1), "0 <= warmup_steps"),
    (lambda: S.warmup_stable_decay(0.0, 1.0, 1, 1, 0), "1 <= decay_steps"),
    (lambda: S.warmup_stable_decay(0.0, 1.0, 1, -1, 1), "0 <= stable_steps"),
    (lambda: S.join([S.constant(1.0)], [10]), "one boundary fewer"),
    (lambda: S.join([S.constant(1.0)] * 3, [10, 5]), "not decreasing"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_number_raises(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_value_that_is_not_a_scalar_raises():
    with pytest.raises(ValueError, match=r"scalar hyperparameter, got shape \(2,\)"):
        S.constant(jnp.ones(2))(0)


@pytest.mark.parametrize("rate", [0.99999, 0.9999999, 1.00001, 0.9, 0.5])
@pytest.mark.parametrize("steps", [1, 1000, 10**6])
def test_a_decay_rate_given_as_a_number_keeps_all_of_its_digits(rate, steps):
    want = rate**steps
    got = float(schedules.exponential(1.0, 1, rate)(steps))
    assert got == pytest.approx(want, rel=2e-6, abs=1e-37)


def test_a_decay_rate_that_float32_holds_has_the_same_bits_as_a_number_and_as_data():
    rate, steps = float(np.float32(0.99999)), jnp.arange(0, 10**6, 997)
    written = schedules.exponential(1.0, 1, rate)(steps)
    passed = jax.jit(lambda r: schedules.exponential(1.0, 1, r)(steps))(
        jnp.float32(rate)
    )
    np.testing.assert_array_equal(written, passed)

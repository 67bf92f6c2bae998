"""Stochastic rounding of 16-bit parameters keeps sums of small steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.optimizers import sgd
from fngrad.transforms.core import apply_updates, chain
from fngrad.transforms.laws import check_transform
from fngrad.transforms.rounding import stochastic_round
from fngrad.transforms.scaling import scale

NARROW = [jnp.bfloat16, jnp.float16]


def wide(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


def add_many(optimizer, dtype, size=1024, times=10_000):
    params = jnp.ones(size, dtype)

    def add(carry, _):
        params, state = carry
        updates, state = optimizer.update(jnp.full(size, 1e-4), state, params)
        return (apply_updates(params, updates), state), None

    carry = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(add, c, None, times))(carry)
    return wide(params)


def test_ten_thousand_small_additions_make_two_of_one():
    # An entry's spread is sqrt(10**4 * 10**-4 * 2**-7) = 0.09, the mean's 0.003.
    summed = add_many(chain(scale(1.0), stochastic_round(key=0)), jnp.bfloat16)
    np.testing.assert_allclose(np.mean(summed), 2.0, rtol=0.01)
    assert np.std(summed) < 0.12


def test_without_stochastic_rounding_one_stays_one():
    np.testing.assert_array_equal(add_many(scale(1.0), jnp.bfloat16), 1.0)


@jax.jit
def landed(params, step):
    """Return p + u as applied."""
    optimizer = chain(scale(1.0), stochastic_round(key=0))
    updates, _ = optimizer.update(step, optimizer.init(params), params)
    return apply_updates(params, updates)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_sum_that_is_applied_is_a_neighbour_of_the_exact_one(dtype):
    params = jax.random.normal(jax.random.key(0), (20_000,)).astype(dtype)
    step = 0.2 * jax.random.normal(jax.random.key(1), params.shape)
    exact = wide(params) + np.asarray(step, np.float64)
    got = wide(landed(params, step))
    near = (exact / wide(params) > 0.51) & (exact / wide(params) < 1.98)
    unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - jnp.finfo(dtype).nmant)
    np.testing.assert_array_less(np.abs(got - exact)[near], unit[near])
    assert np.mean(near) > 0.7
    error = (got - exact)[near] / unit[near]
    assert abs(np.mean(error)) < 4.5 * np.std(error) / np.sqrt(error.size)


@pytest.mark.parametrize("dtype", NARROW)
def test_steps_larger_than_the_parameter_are_also_right_on_average(dtype):
    params = jax.random.normal(jax.random.key(0), (20_000,)).astype(dtype)
    step = 3.0 * jax.random.normal(jax.random.key(1), params.shape)
    exact = wide(params) + np.asarray(step, np.float64)
    error = wide(landed(params, step)) - exact
    unit = float(jnp.finfo(dtype).eps) * (np.abs(wide(params)) + np.abs(step))
    np.testing.assert_array_less(np.abs(error), 2.0 * unit)
    assert abs(np.mean(error)) < 4.5 * np.std(error) / np.sqrt(error.size)


def test_leaves_steps_and_keys_have_independent_draws():
    params = {"a": jnp.ones(2000, jnp.bfloat16), "b": jnp.ones(2000, jnp.bfloat16)}
    step = jax.tree.map(lambda p: jnp.full(p.shape, 0.004), params)
    transform, other_key = stochastic_round(key=0), stochastic_round(key=1)
    update = jax.jit(transform.update)  # the key is in the state
    first, state = update(step, transform.init(params), params)
    second, _ = update(step, state, params)
    other, _ = update(step, other_key.init(params), params)
    moves = [first["a"], first["b"], second["a"], other["a"]]
    draws = np.stack([wide(move) > 0 for move in moves])
    np.testing.assert_allclose(np.corrcoef(draws), np.eye(4), atol=0.1)


def test_wide_and_complex_leaves_pass_unchanged():
    params = {"w": jnp.ones(3), "z": jnp.ones(2, jnp.complex64)}
    step = {"w": jnp.full(3, 1e-5), "z": jnp.full(2, 1e-5 + 2e-5j)}
    transform = stochastic_round(key=0)
    updates, _ = transform.update(step, transform.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, step)


def test_a_float_is_refused_as_a_key():
    with pytest.raises(TypeError, match="need an int or a typed key"):
        stochastic_round(key=0.5)


def test_the_laws_hold():
    check_transform(stochastic_round(key=0))


def test_a_run_in_sixteen_bits_reaches_what_float32_reaches():
    # f = |w - c|^2 / 2 with steps far below half a unit of c.
    centre = jnp.linspace(1.0, 2.0, 512)

    def distance(optimizer, dtype):
        params = jnp.zeros(512, dtype)

        def descend(carry, _):
            params, state = carry
            gradient = params.astype(jnp.float32) - centre
            updates, state = optimizer.update(gradient, state, params)
            return (apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        (params, _), _ = jax.jit(lambda c: jax.lax.scan(descend, c, None, 4000))(carry)
        return np.abs(np.mean(wide(params) - np.asarray(centre)))

    assert distance(chain(sgd(2e-3), stochastic_round(0)), jnp.bfloat16) < 4e-3
    assert distance(sgd(2e-3), jnp.bfloat16) > 0.2


@pytest.mark.parametrize("update", [5e-8, -5e-8])
@pytest.mark.parametrize("start", [1.0, -3.0])
@pytest.mark.parametrize(("dtype", "slack"), [(jnp.bfloat16, 0.8), (jnp.float16, 0.4)])
def test_an_update_that_float32_would_lose_arrives_on_average(
    dtype, slack, start, update
):
    """Few entries move, each by a unit in the last place; the slack is 5 sigma."""
    rule, count, rounds = stochastic_round(key=0), 2**20, 8
    params = jnp.full(count, start, dtype)
    state, advance = rule.init(params), jax.jit(rule.update)
    total = 0.0
    for _ in range(rounds):
        updates, state = advance(jnp.full(count, update), state, params)
        total += float(np.sum(np.asarray(updates, np.float64)))
    assert abs(total / (rounds * count * update) - 1) < slack

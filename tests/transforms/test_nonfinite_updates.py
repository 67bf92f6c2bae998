"""Steps that would write a NaN are not taken, and are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.data as data
import fngrad.tree as tree
from fngrad.fitting.nonfinite import NonFiniteError
from fngrad.fitting.training_loop import fit
from fngrad.optimizers import adam, sgd
from fngrad.training import init_state, make_step
from fngrad.transforms.accumulation import accumulate
from fngrad.transforms.core import Transform, chain, named
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import partition
from fngrad.transforms.noise import add_noise
from fngrad.transforms.nonfinite_updates import skip_nonfinite

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
GOOD = jax.tree.map(lambda p: 0.3 * p, PARAMS)


def poisoned(value):
    return {**GOOD, "w": jnp.array([1.0, value])}


def assert_same_bits(a, b):
    def compare(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

    jax.tree.map(compare, a, b)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    optimizer = skip_nonfinite(chain(add_noise(0.1, 0.5, key=0), adam(0.1)))
    update = jax.jit(optimizer.update)
    _, state = update(GOOD, optimizer.init(PARAMS), PARAMS)
    updates, new = update(poisoned(value), state, PARAMS)
    assert_same_bits(updates, tree.zeros_like(PARAMS))
    before, after = state["skip_nonfinite"], new["skip_nonfinite"]
    assert_same_bits(before.inner, after.inner)
    assert (after.consecutive, after.total) == (1, 1)


def test_on_finite_gradients_it_is_the_inner_transform_bit_for_bit():
    guarded, plain = skip_nonfinite(adam(0.1)), adam(0.1)
    state, plain_state = guarded.init(PARAMS), plain.init(PARAMS)
    for _ in range(3):
        got, state = guarded.update(GOOD, state, PARAMS)
        want, plain_state = plain.update(GOOD, plain_state, PARAMS)
        assert_same_bits(got, want)
    assert_same_bits(state["skip_nonfinite"].inner, plain_state)


def test_an_update_that_overflows_is_skipped():
    optimizer = skip_nonfinite(sgd(1e30))
    updates, _ = optimizer.update(poisoned(1e30), optimizer.init(PARAMS), PARAMS)
    assert_same_bits(updates, tree.zeros_like(PARAMS))


def test_a_state_that_overflows_is_skipped_though_the_update_is_finite():
    def update(updates, sums, params):
        return tree.zeros_like(updates), jax.tree.map(
            lambda s, g: s + g * g, sums, updates
        )

    plain, params = Transform(tree.zeros_like, update), jnp.ones(1)
    huge = jnp.full(1, 1e30)  # its square is above the largest float32
    updates, sums = plain.update(huge, plain.init(params), params)
    assert np.all(np.isfinite(updates))
    assert np.isinf(sums[0])
    guarded = skip_nonfinite(plain)
    _, state = guarded.update(huge, guarded.init(params), params)
    assert state["skip_nonfinite"].total == 1
    [kept] = jax.tree.leaves(state["skip_nonfinite"].inner)
    assert kept[0] == 0


def loss_fn(params, batch):
    return jnp.sum(params * batch)


def reports(optimizer, values, metrics="norms"):
    step = jax.jit(make_step(loss_fn, optimizer, metrics=metrics))
    state, told = init_state(jnp.ones(2), optimizer, 0), []
    for value in values:
        state, metrics = step(state, jnp.full(2, value))
        told.append(metrics)
    return state, {name: [float(m[name]) for m in told] for name in told[0]}


@pytest.mark.parametrize("metrics", ["norms", "loss"])
def test_after_the_limit_it_reports_that_and_still_skips(metrics):
    values = [1.0, *[np.nan] * 2, 1.0, *[np.nan] * 4, 1.0]
    state, told = reports(skip_nonfinite(sgd(0.1), 2), values, metrics)
    assert told["skip_nonfinite/consecutive"] == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert told["skip_nonfinite/total"] == [0, 1, 2, 2, 3, 4, 5, 6, 6]
    assert told["skip_nonfinite/gave_up"] == [0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert told["is_finite"] == [1, 1, 1, 1, 1, 1, 0, 0, 1]
    np.testing.assert_allclose(state.params, np.full(2, 1.0 - 3 * 0.1), rtol=1e-6)


def test_a_bad_group_outside_of_it_makes_the_step_not_finite():
    def two_losses(params, batch):
        return jnp.sum(params["safe"] * batch) + jnp.sum(params["bare"] * batch)

    groups = [("safe", named("guard", skip_nonfinite(sgd(0.1)))), ("bare", sgd(0.1))]
    optimizer = partition(groups)
    params = {"safe": jnp.ones(2), "bare": jnp.ones(2)}
    state = init_state(params, optimizer, 0)
    state, metrics = make_step(two_losses, optimizer)(state, jnp.full(2, jnp.nan))
    assert np.all(np.isfinite(state.params["safe"]))
    assert not metrics["is_finite"]


def test_fit_continues_after_skips_and_stops_at_the_limit():
    def stopped_at(values):
        optimizer = skip_nonfinite(sgd(0.1), 1)
        dataset = data.from_arrays(jnp.array(values), 1, shuffle=False)
        state = init_state(jnp.ones(1), optimizer, 0)
        step = make_step(loss_fn, optimizer)
        return fit(step, state, dataset, num_epochs=1, progress=False).state

    end = stopped_at([1.0, np.nan, 1.0, np.nan, 1.0])
    np.testing.assert_allclose(end.params, [0.7], rtol=1e-6)
    with pytest.raises(NonFiniteError, match=r"got step 5 .*gave_up=1"):
        stopped_at([1.0, np.nan, 1.0, np.nan, np.nan, np.nan])


def test_around_an_accumulation_it_drops_one_micro_batch():
    optimizer = skip_nonfinite(accumulate(sgd(1.0), 2))
    state, told = reports(optimizer, [1.0, np.nan, 3.0])
    np.testing.assert_allclose(state.params, [-1.0, -1.0])
    assert told["is_finite"] == [1, 1, 1]


def test_the_derivative_through_a_skipped_step_is_finite():
    def end(learning_rate):
        optimizer, params = skip_nonfinite(sgd(learning_rate)), jnp.ones(2)
        gradient = jnp.array([1.0, jnp.nan])
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return jnp.sum(params + updates)

    assert jax.grad(end)(0.1) == 0


def test_the_laws_hold():
    check_transform(skip_nonfinite(adam(0.1), 2))


@pytest.mark.parametrize("limit", [-1, 1.5, True])
def test_the_limit_is_an_int_of_at_least_zero(limit):
    with pytest.raises(ValueError, match="need an int max_consecutive >= 0, got max_c"):
        skip_nonfinite(sgd(0.1), limit)

"""Accumulated micro-batches equal one large batch, at the memory of one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import adam, momentum, rmsprop, sgd
from fngrad.training import init_state, make_step
from fngrad.transforms.accumulation import accumulate
from fngrad.transforms.clipping import clip_by_global_norm
from fngrad.transforms.core import chain, report
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, partition

PARTS = 4


def falling(step):
    return 1.0 / (1.0 + step.astype(jnp.result_type(float)))


OPTIMIZERS = {
    "momentum": momentum(0.1, nesterov=True),
    "clip then adam": chain(clip_by_global_norm(0.1), adam(0.1)),
    "falling rmsprop": rmsprop(falling, momentum=0.9),
}


def loss_fn(params, batch):
    outputs = jnp.tanh(batch["x"] @ params["weight"] + params["bias"][None])
    return jnp.mean((outputs - batch["y"]) ** 2)


def problem(num_batches):
    rng = np.random.default_rng(0)
    params = {"weight": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    sizes = {"x": (num_batches, 4 * PARTS, 3), "y": (num_batches, 4 * PARTS, 2)}
    batches = {name: jnp.asarray(rng.normal(size=s)) for name, s in sizes.items()}
    return jax.tree.map(jnp.asarray, params), batches


def trained(optimizer, params, batches):
    step = make_step(loss_fn, optimizer, metrics="loss")
    start = init_state(params, optimizer, 0)
    return jax.jit(lambda s, b: jax.lax.scan(step, s, b)[0])(start, batches).params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_micro_batches_are_one_big_batch(name, x64):
    params, whole = problem(num_batches=3)
    micro = jax.tree.map(lambda b: b.reshape(-1, 4, b.shape[-1]), whole)
    want = trained(OPTIMIZERS[name], params, whole)
    got = trained(accumulate(OPTIMIZERS[name], PARTS), params, micro)
    assert tree.norm(tree.sub(want, params)) > 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


def test_between_updates_nothing_moves():
    optimizer, params = accumulate(adam(0.1), 3), jnp.ones(2)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for count in range(1, 3):
        updates, new = update(jnp.full(2, 7.0), state, params)
        np.testing.assert_array_equal(updates, np.zeros(2))
        before, after = state["accumulate"], new["accumulate"]
        jax.tree.map(np.testing.assert_array_equal, before.inner, after.inner)
        assert after.mini_step == count
        state = new
    updates, state = update(jnp.full(2, 7.0), state, params)
    assert np.all(updates != 0)
    assert state["accumulate"].mini_step == 0
    np.testing.assert_array_equal(state["accumulate"].total, np.zeros(2))


def test_every_one_is_the_inner_transform():
    params = {"w": jnp.ones(2)}
    plain, wrapped = (t.init(params) for t in (adam(0.1), accumulate(adam(0.1), 1)))
    assert jax.tree.structure(plain) == jax.tree.structure(wrapped)


def test_schedules_count_updates_and_reports_are_of_the_mean_so_far():
    inner = chain(clip_by_global_norm(1.0), sgd(falling))
    optimizer, params = accumulate(inner, 2), jnp.zeros(2)
    state, told = optimizer.init(params), []
    for size in (3.0, 5.0, 7.0, 9.0):
        gradient = jnp.array([size, 0.0])
        told.append(report(optimizer, gradient, state, params))
        _, state = optimizer.update(gradient, state, params)
    prefix = "accumulate/"
    norms = [r[prefix + "clip_by_global_norm/norm_before"] for r in told]
    rates = [r[prefix + "scale_by_learning_rate/learning_rate"] for r in told]
    assert [int(r[prefix + "mini_step"]) for r in told] == [0, 1, 0, 1]
    np.testing.assert_allclose(norms, [3.0, 4.0, 7.0, 8.0])
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.5, 0.5])


def test_bfloat16_gradients_are_added_in_float32():
    optimizer, params = accumulate(sgd(1.0), 256), jnp.zeros((), jnp.bfloat16)
    state = optimizer.init(params)
    gradients = jnp.ones(256, jnp.bfloat16)  # a bfloat16 sum would end at 256 or below
    gradients = gradients.at[0].set(128.0)

    def body(state, gradient):
        _, state = optimizer.update(gradient, state, params)
        return state, state["accumulate"].total

    _, totals = jax.lax.scan(body, state, gradients)
    assert totals.dtype == jnp.float32
    assert totals[-2] == 128 + 254


def test_frozen_leaves_cost_nothing():
    params = {"table": jnp.ones(100), "ids": jnp.arange(9), "head": jnp.ones(2)}
    inner = partition([("head", adam(0.1)), ("**", freeze())])
    optimizer = accumulate(inner, 2)
    assert optimizer.trainable
    assert not optimizer.trainable("table", params["table"])
    state = optimizer.init(params)
    assert state["accumulate"].total["table"] is None
    step = jax.jit(make_step(lambda p, batch: jnp.sum(p["head"] * batch), optimizer))
    trained_state = init_state(params, optimizer, 0)
    for _ in range(2):
        trained_state, _ = step(trained_state, jnp.ones(2))
    np.testing.assert_array_equal(trained_state.params["ids"], params["ids"])
    assert np.all(trained_state.params["head"] < 1)


def test_it_stores_one_more_gradient_and_no_temporary_of_that_size():
    size = 2**16
    params = jnp.zeros(size)

    def memory(optimizer):
        def step(params, state, gradient):
            updates, state = optimizer.update(gradient, state, params)
            return params + updates, state

        arguments = params, optimizer.init(params), params
        program = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
        analysis = program.memory_analysis()
        return analysis.argument_size_in_bytes, analysis.temp_size_in_bytes

    kept, temporary = memory(adam(0.1))
    kept_more, temporary_more = memory(accumulate(adam(0.1), 4))
    assert kept_more - kept == 4 * size + 4  # and the count
    assert temporary_more - temporary <= 2 * 4 * size + 1024


def test_the_laws_hold():
    check_transform(accumulate(momentum(0.1), 2))


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None])
def test_every_is_an_int_of_at_least_one(every):
    with pytest.raises(ValueError, match=f"need an int every >= 1, got every={every}"):
        accumulate(sgd(0.1), every)


def growing(step):
    """Return 1, 1, 2, 2.6 and then 4 batches for an update."""
    return jnp.array([1.0, 0.2, 2.0, 2.6, 4.0])[jnp.minimum(step, 4)]


def test_a_schedule_gives_each_update_its_number_of_batches(x64):
    sizes = [1, 1, 2, 3, 4]
    params, whole = problem(num_batches=3)
    micro = jax.tree.map(lambda b: b.reshape(-1, 4, b.shape[-1])[:11], whole)
    adaptive = adam(0.1)
    got = trained(accumulate(adaptive, growing), params, micro)
    step = make_step(loss_fn, adaptive, metrics="loss")
    want, first = init_state(params, adaptive, 0), 0
    for size in sizes:
        batch = jax.tree.map(
            lambda b, i=first, k=size: b[i : i + k].reshape(-1, b.shape[-1]), micro
        )
        want, _ = step(want, batch)
        first += size
    assert first == 11
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want.params
    )


def test_a_scheduled_number_of_batches_is_reported_and_compiled_once():
    optimizer, params = accumulate(sgd(falling), growing), jnp.zeros(2)
    traces, told = [], []

    @jax.jit
    def update(gradient, state):
        traces.append(1)
        metrics = report(optimizer, gradient, state, params)
        return optimizer.update(gradient, state, params)[1], metrics

    state = optimizer.init(params)
    for _ in range(7):
        state, metrics = update(jnp.ones(2), state)
        told.append(metrics)
    assert [int(r["accumulate/every"]) for r in told] == [1, 1, 2, 2, 3, 3, 3]
    assert [int(r["accumulate/mini_step"]) for r in told] == [0, 0, 0, 1, 0, 1, 2]
    rates = [r["accumulate/scale_by_learning_rate/learning_rate"] for r in told]
    np.testing.assert_allclose(rates, 1 / np.array([1, 2, 3, 3, 4, 4, 4]), rtol=1e-6)
    assert state["accumulate"].step == 4
    assert len(traces) == 1


def test_a_constant_schedule_equals_the_number_bit_by_bit():
    params, whole = problem(num_batches=1)
    micro = jax.tree.map(lambda b: b.reshape(-1, 4, b.shape[-1]), whole)
    number = trained(accumulate(adam(0.1), 2), params, micro)
    scheduled = trained(accumulate(adam(0.1), lambda step: 2), params, micro)
    jax.tree.map(np.testing.assert_array_equal, number, scheduled)


def test_the_laws_hold_with_a_schedule():
    check_transform(accumulate(momentum(0.1), growing))

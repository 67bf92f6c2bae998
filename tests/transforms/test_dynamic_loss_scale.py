"""The loss scale: its sequence, what it saves, and what a run makes of an overflow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import bits

import fngrad as fg
from fngrad.transforms.dynamic_loss_scale import (
    MAX_SCALE,
    LossScalingState,
    loss_scaling,
    scale_in_force,
)
from fngrad.transforms.nonfinite_updates import skip_nonfinite

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def simulated(is_finite, init_scale, growth_interval, min_scale):
    """Return the scale, the skips and whether it gave up, at each of the steps."""
    scale, good, consecutive, total, rows = init_scale, 0, 0, 0, []
    for is_good in is_finite:
        in_force = scale
        gave_up = not is_good and scale == min_scale
        if is_good:
            good, consecutive = good + 1, 0
            if good == growth_interval:
                scale, good = min(2 * scale, 2.0**24), 0
        else:
            scale, good = max(scale / 2, min_scale), 0
            consecutive, total = consecutive + 1, total + 1
        rows.append((in_force, consecutive, total, gave_up))
    return np.array(rows)


SCRIPTS = {
    "few overflows": (0.1, 2.0**15, 3, 1.0),
    "half overflow": (0.5, 4.0, 2, 0.25),
    "none, up to the largest": (0.0, 2.0**20, 1, 1.0),
    "all, down to the smallest": (1.0, 8.0, 5, 1.0),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scale_follows_the_overflows(script):
    rate, init_scale, growth_interval, min_scale = SCRIPTS[script]
    is_finite = np.random.default_rng(0).uniform(size=60) >= rate
    optimizer = loss_scaling(fg.sgd(0.1), init_scale, growth_interval, min_scale)

    def advance(state, is_good):
        gradient = jnp.where(is_good, 1.0, jnp.inf)
        gradients = jax.tree.map(lambda p: p * gradient, PARAMS)
        _, state, told = optimizer.report(gradients, state, PARAMS)
        return state, told

    run = jax.jit(lambda state: jax.lax.scan(advance, state, jnp.asarray(is_finite)))
    _, told = run(optimizer.init(PARAMS))
    names = ("scale", "consecutive", "total", "gave_up")
    got = np.stack([told[f"loss_scaling/{name}"] for name in names], axis=1)
    expected = simulated(is_finite, init_scale, growth_interval, min_scale)
    np.testing.assert_array_equal(got, expected)


def test_a_skipped_step_leaves_no_trace_but_the_count():
    optimizer = loss_scaling(fg.chain(fg.add_noise(0.1, 0.5, key=0), fg.adam(0.1)))
    update = jax.jit(optimizer.update)
    _, state = update(PARAMS, optimizer.init(PARAMS), PARAMS)
    bad = PARAMS | {"b": jnp.array(jnp.nan)}
    updates, new = update(bad, state, PARAMS)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    before, after = state["loss_scaling"], new["loss_scaling"]
    assert list(map(bits, jax.tree.leaves(before.inner))) == list(
        map(bits, jax.tree.leaves(after.inner))
    )
    assert (after.scale, after.total) == (2.0**14, 1)


def test_without_overflow_it_is_the_inner_transform_bit_for_bit():
    scaled, plain = loss_scaling(fg.adam(0.1)), fg.adam(0.1)
    state, plain_state = scaled.init(PARAMS), plain.init(PARAMS)
    for _ in range(3):
        got, state = scaled.update(PARAMS, state, PARAMS)
        want, plain_state = plain.update(PARAMS, plain_state, PARAMS)
        assert list(map(bits, jax.tree.leaves(got))) == list(
            map(bits, jax.tree.leaves(want))
        )


def test_the_laws_hold():
    fg.check_transform(loss_scaling(fg.adam(0.1), growth_interval=2))


NESTED = {
    "chain": lambda t: fg.chain(fg.clip(1.0), t, fg.ema_params(0.9)),
    "named": lambda t: fg.chain(fg.named("scaled", t)),
    "accumulate": lambda t: fg.accumulate(t, 2),
    "lookahead": lambda t: fg.lookahead(t, 2),
    "partition": lambda t: fg.partition([("b", fg.freeze()), ("**", t)]),
    "masked": lambda t: fg.masked(t, "w"),
    "stack_leaves": fg.stack_leaves,
    "quantize_state": lambda t: fg.quantize_state(t, min_size=0),
    "tunable": lambda t: fg.tunable(lambda rate: fg.chain(t, fg.scale(rate)), rate=1.0),
}


@pytest.mark.parametrize("name", NESTED)
def test_the_scale_is_found_at_any_depth(name):
    inner = loss_scaling(fg.adam(0.1), init_scale=64.0)
    state = jax.jit(NESTED[name](inner).init)(PARAMS)
    assert scale_in_force(state) == 64
    assert scale_in_force(fg.adam(0.1).init(PARAMS)) is None


def scaled(rate):
    return loss_scaling(fg.sgd(rate))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            fg.partition([("w", scaled(0.1)), ("**", scaled(0.2))]),
            "need one loss_scaling, around the whole optimizer, got 2: ",
        ),
        (
            loss_scaling(fg.accumulate(scaled(0.1), 2)),
            r"got 2: \['loss_scaling', 'loss_scaling/inner/accumulate/inner/",
        ),
        (
            skip_nonfinite(scaled(0.1)),
            "need loss_scaling around skip_nonfinite, got it inside",
        ),
    ],
)
def test_one_scale_adapts_to_the_loss_of_a_step(optimizer, message):
    state = fg.init_state(PARAMS, optimizer, 0)
    with pytest.raises(ValueError, match=message):
        fg.make_step(lambda params, batch: jnp.sum(params["w"]), optimizer)(state, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_scale": 1000.0}, "need a power of two, at most 1.67772e.07, as init"),
        ({"init_scale": 2 * MAX_SCALE}, "at most"),
        ({"init_scale": 0.0}, "need init_scale > 0"),
        ({"init_scale": np.inf}, "need a power of two"),
        ({"init_scale": 1.0, "min_scale": 2.0**-127}, "need a power of two"),
        ({"min_scale": 2.0**16}, "need a power of two, at most 32768, as min_scale"),
        ({"growth_interval": 0}, "need an int growth_interval >= 1"),
        ({"growth_interval": 2.5}, "need an int growth_interval >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_scaling(fg.sgd(0.1), **options)


@pytest.mark.parametrize("scale", [True, "8", lambda step: 8.0, jnp.float32(8)])
def test_a_scale_is_a_python_number(scale):
    with pytest.raises(TypeError, match="need a number as init_scale, got "):
        loss_scaling(fg.sgd(0.1), init_scale=scale)


# The gradient of a mean over 8192 errors of this size, and over a fourth of them, is
# below half the smallest float16, 6e-8.
SIZE, SLOPE = 8192, 5e-6
X = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
SMALL = {"x": X, "y": (SLOPE * X).astype(np.float32)}


def small_loss(w, batch):
    return fg.losses.squared_error(w * batch["x"], batch["y"]).mean()


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_float16_trains_with_a_scale_and_stands_still_without(micro_batches):
    data = fg.data.from_arrays(SMALL, "all")

    def trained(optimizer):
        step = fg.make_step(
            small_loss, optimizer, precision="float16", micro_batches=micro_batches
        )
        state = fg.init_state(jnp.zeros(()), optimizer, 0)
        state, history = jax.jit(lambda s: fg.run(step, s, data, 60))(state)
        return state.params, history

    w, history = trained(fg.sgd(0.3))
    assert w == 0
    assert not np.any(history["grad_norm"])
    w, history = trained(loss_scaling(fg.sgd(0.3)))
    np.testing.assert_allclose(w, SLOPE, rtol=0.02)
    np.testing.assert_allclose(
        history["grad_norm"][0], 2 * SLOPE * np.mean(X.astype(float) ** 2), rtol=0.02
    )


def steep(w, batch):
    """Return a loss with the slope 1000: times more than 65 it overflows in float16."""
    return jnp.sum(w * batch)


def run_of(optimizer, values, metrics="norms", **options):
    step = fg.make_step(
        steep, optimizer, precision="float16", metrics=metrics, **options
    )
    state, told = fg.init_state(jnp.zeros(()), optimizer, 0), []
    advance = jax.jit(step)
    for value in values:
        state, metrics = advance(state, jnp.full((2,), value, jnp.float32))
        told.append(metrics)
    return state, {name: [float(m[name]) for m in told] for name in told[0]}


@pytest.mark.parametrize("metrics", ["norms", "loss"])
def test_an_overflow_halves_the_scale_until_the_gradient_fits(metrics):
    state, told = run_of(loss_scaling(fg.sgd(1e-3)), [500.0] * 12, metrics)
    assert told["loss_scaling/scale"] == [2.0**n for n in range(15, 6, -1)] + [64.0] * 3
    assert told["is_finite"] == [1] * 12
    assert told["loss_scaling/consecutive"][-4:] == [9, 0, 0, 0]
    np.testing.assert_allclose(state.params, -3 * 1e-3 * 1000, rtol=1e-6)


def test_the_model_does_not_see_the_scale():
    values = [500.0] * 4
    _, told = run_of(loss_scaling(fg.sgd(1e-3), init_scale=4.0), values)
    _, plain = run_of(fg.sgd(1e-3), values)
    assert {name: told[name] for name in plain} == plain


def test_gradients_of_16_bit_parameters_are_divided_in_float32():
    optimizer = loss_scaling(fg.sgd(1.0))
    params = jnp.ones((), jnp.float16)
    step = fg.make_step(lambda w, batch: w.astype(jnp.float32) * 1e-9, optimizer)
    state, metrics = step(fg.init_state(params, optimizer, 0), None)
    np.testing.assert_allclose(metrics["grad_norm"], 1e-9, rtol=5e-3)
    assert state.params.dtype == jnp.float16


def fitted(values, optimizer=None, **options):
    optimizer = optimizer or loss_scaling(fg.sgd(1e-3), 4.0)
    data = fg.data.from_arrays(np.array(values, np.float32), 1, shuffle=False)
    step = fg.make_step(steep, optimizer, precision="float16")
    state = fg.init_state(jnp.zeros(()), optimizer, 0)
    return fg.fit(step, state, data, num_epochs=1, progress=False, **options)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_fit_goes_on_after_an_overflow_and_ends_where_the_scale_gives_up(on_nonfinite):
    steps = fitted([1e3, 6e4, 6e4, 1e3], on_nonfinite=on_nonfinite).history
    assert list(steps["loss_scaling/total"]) == [0, 1, 2, 2]
    with pytest.raises(fg.NonFiniteError, match=r"got step 4 .*gave_up=1"):
        fitted([1e3, *[np.nan] * 20])


@pytest.mark.parametrize(
    "make",
    [
        fg.make_step,
        fg.steps.sam,
        fg.steps.polyak,
        fg.steps.line_search,
        functools.partial(fg.steps.line_search, condition="strong_wolfe"),
        fg.steps.sophia,
        lambda *args: fg.steps.differentially_private(*args, 1e9, 0.0),
    ],
    ids=["make_step", "sam", "polyak", "armijo", "strong_wolfe", "sophia", "private"],
)
def test_every_step_that_takes_a_gradient_scales_its_loss(make):
    optimizer = loss_scaling(fg.sophia(0.1))
    step = make(fg.mixed_precision(small_loss, "float16"), optimizer)
    state = fg.init_state(jnp.zeros(()), optimizer, 0)
    _, metrics = jax.jit(step)(state, SMALL)
    expected = 2 * SLOPE * np.mean(X.astype(float) ** 2)
    np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=0.02)


def test_every_lane_has_a_scale_of_its_own():
    optimizer = loss_scaling(fg.sgd(1e-3))
    step = fg.make_step(steep, optimizer, precision="float16")

    def end(value):
        state = fg.init_state(jnp.zeros(()), optimizer, 0)
        state, _ = fg.run(step, state, lambda t: jnp.full((2,), value), 12)
        return state.params, scale_in_force(state.opt_state)

    values = jnp.array([0.5, 500.0, 5000.0])
    together = jax.jit(jax.vmap(end))(values)
    alone = [jax.jit(end)(value) for value in values]
    np.testing.assert_array_equal(together[1], [s for _, s in alone])
    np.testing.assert_array_equal(together[0], [w for w, _ in alone])
    assert list(together[1]) == [2.0**15, 64.0, 8.0]


def test_around_an_accumulation_it_drops_one_micro_batch():
    state, told = run_of(
        loss_scaling(fg.accumulate(fg.sgd(1e-3), 2), 4.0), [1e3, 6e4, 1e3]
    )
    assert told["loss_scaling/total"] == [0, 1, 1]
    np.testing.assert_allclose(state.params, -2.0, rtol=1e-6)


def test_a_state_is_what_its_class_says():
    state = loss_scaling(fg.sgd(0.1)).init(PARAMS)["loss_scaling"]
    assert isinstance(state, LossScalingState)
    assert [str(x.dtype) for x in state[:4]] == ["float32", "int32", "int32", "int32"]
    assert not any(x.weak_type for x in jax.tree.leaves(state))

"""Laws for every transform and every optimizer, from one table."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import REGISTRY, adam, adamw, momentum, rmsprop, sgd
from fngrad.optimizers.adagrad import scale_by_rss
from fngrad.optimizers.adam import scale_by_adam
from fngrad.optimizers.rmsprop import scale_by_rms, scale_by_stddev
from fngrad.transforms.clipping import (
    adaptive_clip,
    centralize,
    clip,
    clip_by_global_norm,
    clip_by_norm,
)
from fngrad.transforms.core import Transform, apply_updates, chain, identity, named
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.momentum_buffers import ema, trace
from fngrad.transforms.noise import add_noise
from fngrad.transforms.scaling import (
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from fngrad.transforms.tunable_hyperparameters import tunable


def falling(step):
    return 0.1 / (1.0 + step.astype(jnp.float32))


TRANSFORMS = {
    "identity": identity(),
    "scale": scale(-0.5),
    "scale_by_learning_rate": scale_by_learning_rate(falling),
    "scale_by_schedule": scale_by_schedule(falling),
    "trace": trace(0.9, nesterov=True, dampening=0.1, damp_first=False),
    "ema": ema(0.9),
    "scale_by_rms": scale_by_rms(bias_correction=True),
    "scale_by_stddev": scale_by_stddev(eps=1e-3, bias_correction=True),
    "scale_by_rss": scale_by_rss(),
    "scale_by_adam": scale_by_adam(nesterov=True),
    "clip": clip(0.5),
    "clip_by_norm": clip_by_norm(0.5),
    "clip_by_global_norm": clip_by_global_norm(0.5),
    "adaptive_clip": adaptive_clip(0.1),
    "centralize": centralize(),
    "add_decayed_weights": add_decayed_weights(falling, "**/weight"),
    "add_noise": add_noise(0.1, 0.55, key=0),
    "partition": partition([("layers/**", adam(0.1)), ("**", freeze())]),
    "masked": masked(trace(0.9), "**/weight", otherwise=identity()),
    "freeze": freeze(),
    "named": named("slow", chain(clip(0.5), trace(0.99))),
    "tunable": tunable(rmsprop, learning_rate=0.1, momentum=0.9),
    "chain": chain(clip_by_global_norm(1.0), rmsprop(falling, centered=True)),
}
OPTIMIZERS = {name: factory(0.1) for name, factory in REGISTRY.items()}


@pytest.mark.parametrize("name", [*TRANSFORMS, *OPTIMIZERS])
def test_the_laws_hold(name):
    check_transform({**TRANSFORMS, **OPTIMIZERS}[name])


ZERO = np.zeros((), np.float32)


def bare(init=lambda params: (), update=lambda u, s, p: (u, s), **more) -> Transform:
    return Transform(init, update, **more)


def counting() -> Transform:
    calls = []

    def update(updates, state, params):
        calls.append(None)
        return tree.scale(float(len(calls)), updates), state

    return bare(update=update)


def handing_out_one_array() -> Transform:
    zero = jnp.zeros(())
    return bare(lambda p: zero, lambda u, s, p: (u, s + 1.0))


def refusing_batches(updates, state, params):
    spec = jax.ShapeDtypeStruct((), jnp.float32)
    one = jax.pure_callback(lambda x: np.ones_like(x), spec, updates["scale"])
    return tree.scale(one, updates), state


def low_moment(updates, state, params):
    def average(moment, u):
        decay = jnp.asarray(0.999, moment.dtype)  # 1 in bfloat16
        return decay * moment + (1 - decay) * u.astype(moment.dtype)

    new = jax.tree.map(average, state, updates)
    return tree.widen(new), new


BROKEN = {
    "reads values in init": (
        bare(lambda p: jnp.full((), float(p["scale"])), lambda u, s, p: (u, s)),
        "init needs only shapes",
    ),
    "keeps the parameters": (
        bare(lambda p: p),
        r"the state is fresh.*own, got params 'layers/0/bias' in state",
    ),
    "lets its state grow": (
        bare(tree.zeros_like, lambda u, s, p: (u, tree.widen(s))),
        r"the state keeps its form.*needs dtype bfloat16, got float32",
    ),
    "drops a leaf": (
        bare(update=lambda u, s, p: ({"scale": u["scale"]}, s)),
        "updates fit the parameters.*'layers/0/bias' is missing",
    ),
    "changes a dtype": (
        bare(update=lambda u, s, p: (tree.zeros_like(u, jnp.bfloat16), s)),
        "updates fit the parameters.*needs dtype float32, got bfloat16",
    ),
    "branches on values": (
        bare(update=lambda u, s, p: (u if u["scale"] > 0 else p, s)),
        "the state keeps its form",
    ),
    "counts its calls": (counting(), "jit equals eager: need .* at .*, got "),
    "starts with a weak type": (
        bare(lambda p: jnp.asarray(0.0), lambda u, s, p: (u, s + ZERO)),
        "one trace for three calls, got 2",
    ),
    "refuses batches": (bare(update=refusing_batches), "vmap equals one by one"),
    "hands out one array": (handing_out_one_array(), "first step can be donated"),
    "keeps low moments": (
        bare(tree.zeros_like, low_moment),
        "low precision is float32, rounded: need .* at .*, got",
    ),
    "divides by zero": (
        bare(update=lambda u, s, p: (jax.tree.map(lambda x: x / abs(x), u), s)),
        "zero gradients give finite updates.*nan.* at 'layers/0/bias'",
    ),
    "reports arrays": (
        bare(name="loud", report=lambda u, s, p: (u, s, {"all": jnp.ones(3)})),
        r"a report contains scalars.*shape \(3,\) at 'loud/all'",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_transform_is_caught(fault):
    broken, message = BROKEN[fault]
    with pytest.raises(ValueError, match=f"(?s)law broken: .*{message}"):
        check_transform(broken)


# Values at which every argument shows within a few steps.
MOVING = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.9},
    "amsgrad": {"learning_rate": 3.0},
    "adopt": {"eps": 0.7},
    "signum": {"learning_rate": 0.85},
    "lion": {"learning_rate": 1.15, "b2": 0.5},
    "rprop": {"learning_rate": 0.6, "eta_minus": 0.03, "max_step_size": 0.65},
    "lars": {"trust_coefficient": 0.5, "eps": 1.0},
    "adadelta": {"eps": 0.1},
    "adafactor": {"min_scale": 5.0},
    "prodigy": {"learning_rate": 1.0, "estim_lr0": 0.01},
    "dadapt_sgd": {"learning_rate": 1.0, "estim_lr0": 0.01, "weight_decay": 0.5},
    "dadapt_adamw": {"learning_rate": 1.0, "estim_lr0": 0.01},
    "dog": {"learning_rate": 10.0, "eps": 1.0},
}
STEPS = {"radam": 8, "adopt": 8, "prodigy": 8, "dadapt_sgd": 8, "dadapt_adamw": 8}
# What counts only while the learning rate changes; the oracles' does.
SILENT = {"weight_lr_power"}
# Where a statistic lacks rank its basis is rounding's choice, of eigh alone or batched.
SWEEP_TOLERANCE = {"soap": 1e-3}
PARAMS = {"w": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(0.3)}
MATRIX = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)


def float_arguments(name: str) -> dict[str, float]:
    signature = inspect.signature(REGISTRY[name]).parameters
    floats = {k: p.default for k, p in signature.items() if type(p.default) is float}
    return {**floats, "learning_rate": 0.1, **MOVING.get(name, {})}


def another(value: float) -> float:
    return 0.7 * value + 0.02 if np.isfinite(value) else 1.02


def steps_of(name: str, hyperparameters: dict[str, Any], params: Any) -> Any:
    optimizer = REGISTRY[name](**hyperparameters)

    def step(carry, _):
        params, state = carry
        gradients = jax.tree.map(lambda p: p - 0.25, params)
        updates, state = optimizer.update(gradients, state, params)
        return (apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, length=STEPS.get(name, 3))[0][0]


@pytest.mark.parametrize("name", REGISTRY)
def test_a_sweep_equals_runs_one_by_one_that_compile_once(name):
    base = float_arguments(name)
    lanes = [base] + [{**base, k: another(v)} for k, v in base.items()]
    traces = []

    def run(hyperparameters):
        traces.append(None)
        params = jax.tree.map(jnp.asarray, {**PARAMS, "matrix": MATRIX})
        return steps_of(name, hyperparameters, params)

    jitted = jax.jit(run)
    alone = [jitted(jax.tree.map(jnp.float32, lane)) for lane in lanes]
    assert len(traces) == 1
    stacked = {k: jnp.array([lane[k] for lane in lanes]) for k in base}
    together = jax.jit(jax.vmap(run))(stacked)
    for lane, params in enumerate(alone):
        got = jax.tree.map(lambda x, lane=lane: x[lane], together)
        tolerance = SWEEP_TOLERANCE.get(name, 2e-6)
        for leaf in params:
            np.testing.assert_allclose(got[leaf], params[leaf], tolerance, atol=1e-7)
        moved = any(
            not np.allclose(params[leaf], alone[0][leaf], rtol=1e-5) for leaf in params
        )
        argument = list(base)[lane - 1]
        assert moved or lane == 0 or argument in SILENT, f"{argument} is ignored"


@pytest.mark.parametrize("name", REGISTRY)
def test_a_value_in_the_program_and_one_passed_to_it_give_the_same_bits(name):
    # Of one update: in a loop inside a program XLA chooses its fusions, and with
    # them the rounding of multiply-adds, by what is constant.
    base, factory = float_arguments(name), REGISTRY[name]
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = factory(**base).init(params)
    written = jax.jit(factory(**base).update)
    passed = jax.jit(lambda h, *args: factory(**h).update(*args))
    for _ in range(3):
        updates, new_state = passed(base, params, state, params)
        want = written(params, state, params)
        jax.tree.map(np.testing.assert_array_equal, (updates, new_state), want)
        params, state = apply_updates(params, updates), new_state


LR = "scale_by_learning_rate/step"
ADAM = [
    *("scale_by_adam/mu/b", "scale_by_adam/mu/w"),
    *("scale_by_adam/nu/b", "scale_by_adam/nu/w", "scale_by_adam/step"),
]
TRACE = ["trace/step", "trace/trace/b", "trace/trace/w"]
RMS = ["scale_by_rms/nu/b", "scale_by_rms/nu/w", "scale_by_rms/step"]
STATE_PATHS: list[tuple[Transform, list[str]]] = [
    (sgd(0.1), [LR]),
    (sgd(0.1, momentum=0.0), [LR, *TRACE]),
    (momentum(0.1), [LR, *TRACE]),
    (momentum(0.1, nesterov=True, learning_rate_first=True), [LR, *TRACE]),
    (rmsprop(0.1), [LR, *RMS]),
    (rmsprop(0.1, bias_correction=True, eps_in_sqrt=False), [LR, *RMS]),
    (rmsprop(falling, momentum=0.9), [LR, *RMS, *TRACE]),
    (rmsprop(0.1, momentum=0.9, learning_rate_first=False), [LR, *RMS, *TRACE]),
    (
        rmsprop(0.1, centered=True),
        [
            *("scale_by_stddev/mu/b", "scale_by_stddev/mu/w", "scale_by_stddev/step"),
            *("scale_by_stddev/variance/b", "scale_by_stddev/variance/w", LR),
        ],
    ),
    (
        REGISTRY["adagrad"](0.1),
        [
            LR,
            "scale_by_rss/step",
            "scale_by_rss/sum_of_squares/b",
            "scale_by_rss/sum_of_squares/w",
        ],
    ),
    (adam(0.1), [*ADAM, LR]),
    (adam(falling, b1=falling), [*ADAM, LR]),
    (chain(clip_by_global_norm(1.0), adam(0.1)), [*ADAM, LR]),
    (chain(chain(clip(1.0)), chain(centralize(), adam(0.1))), [*ADAM, LR]),
    (adamw(0.1), ["add_decayed_weights/step", *ADAM, LR]),
    (adamw(0.1, mask="w", nesterov=True), ["add_decayed_weights/step", *ADAM, LR]),
    (ema(0.9), ["ema/ema/b", "ema/ema/w", "ema/step"]),
    (ema(0.9, debias=False), ["ema/ema/b", "ema/ema/w", "ema/step"]),
    (add_noise(0.1, 0.5, key=0), ["add_noise/key", "add_noise/step"]),
]


@pytest.mark.parametrize(("transform", "paths"), STATE_PATHS)
def test_state_paths_stay_where_checkpoints_know_them(transform, paths):
    state = jax.eval_shape(transform.init, PARAMS)
    assert sorted(tree.leaf_paths(state)) == sorted(paths)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_scan_with_mixed_precision_keeps_every_dtype(name):
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((), jnp.float16)}
    optimizer = REGISTRY[name](0.1)

    def body(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (apply_updates(params, updates), state), None

    gradients = jax.tree.map(lambda x: jnp.ones((3, *x.shape)), params)
    start = params, optimizer.init(params)
    (end, state), _ = jax.eval_shape(
        lambda s, g: jax.lax.scan(body, s, g), start, gradients
    )
    assert tree.mismatch(params, end) is None
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}


def run_three(transform, params, gradients):
    state, visited = transform.init(params), []
    for _ in range(3):
        updates, state = transform.update(gradients, state, params)
        visited.append(updates)
    return visited


def test_a_partition_equals_its_groups_run_apart():
    params = {"a": {"x": jnp.ones(3), "y": jnp.ones(2)}, "b": jnp.ones(4)}
    gradients = jax.tree.map(lambda x: jnp.arange(1.0, x.size + 1), params)
    inside = chain(clip_by_global_norm(1.0), adam(0.1))
    together = partition([("a/**", inside), ("**", rmsprop(falling, momentum=0.9))])
    updates = run_three(together, params, gradients)
    a = run_three(inside, params["a"], gradients["a"])
    b = run_three(rmsprop(falling, momentum=0.9), params["b"], gradients["b"])
    for step in range(3):
        jax.tree.map(np.testing.assert_array_equal, updates[step]["a"], a[step])
        np.testing.assert_array_equal(updates[step]["b"], b[step])


@pytest.mark.parametrize("name", REGISTRY)
def test_an_unselected_leaf_never_receives_its_raw_gradient(name):
    params = jax.tree.map(jnp.asarray, PARAMS)
    visited = run_three(masked(REGISTRY[name](0.1), "w"), params, params)
    for updates in visited:
        assert updates["b"] == 0
    assert np.all(visited[-1]["w"] != 0)


def test_learning_rate_and_norms_can_be_read():
    optimizer = chain(clip_by_global_norm(1.0), adamw(falling))
    params, gradient = jnp.ones(2), jnp.array([3.0, 4.0])
    state = optimizer.init(params)
    _, state = optimizer.update(gradient, state, params)
    _, _, told = optimizer.report(gradient, state, params)
    want = {
        "clip_by_global_norm/norm_before": 5.0,
        "clip_by_global_norm/norm_after": 1.0,
        "scale_by_learning_rate/learning_rate": 0.05,
    }
    assert told.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-6)


class Foreign:
    """Code of another library: no fields but these two, arithmetic of its own."""

    def init(self, params):
        return {"momentum": jax.tree.map(jnp.zeros_like, params)}

    def update(self, updates, state, params=None):
        new = jax.tree.map(lambda m, g: 0.5 * m + g, state["momentum"], updates)
        return jax.tree.map(lambda m: -0.1 * m, new), {"momentum": new}


def test_a_foreign_object_can_be_chained():
    with jax.numpy_dtype_promotion("standard"):
        check_transform(Foreign())
        optimizer = chain(clip_by_global_norm(1.0), Foreign())
        params = {"w": jnp.ones(2, jnp.bfloat16)}
        gradient = {"w": jnp.array([3.0, 4.0])}
        updates = run_three(optimizer, params, gradient)[1]
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        updates["w"].astype(jnp.float32), [-0.09, -0.12], rtol=1e-2
    )

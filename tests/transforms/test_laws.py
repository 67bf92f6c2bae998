"""The laws hold for every transform, and broken transforms are caught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.transforms.laws as laws
import fngrad.tree as tree
from fngrad.optimizers import adam, adamw, rmsprop
from fngrad.transforms.blocks import clip_by_block_rms, scale_by_param_block_rms
from fngrad.transforms.clipping import (
    adaptive_clip,
    centralize,
    clip,
    clip_by_global_norm,
    clip_by_norm,
)
from fngrad.transforms.core import Transform, chain, identity, named
from fngrad.transforms.decay import (
    add_cautious_weight_decay,
    add_decayed_weights,
    proximal_decay,
)
from fngrad.transforms.depth import gradual_unfreezing, scale_by_depth
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.momentum_buffers import ema, trace
from fngrad.transforms.noise import add_noise
from fngrad.transforms.scaling import (
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from fngrad.transforms.trust_ratio import scale_by_trust_ratio
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
    "clip": clip(0.5),
    "clip_by_norm": clip_by_norm(0.5),
    "clip_by_global_norm": clip_by_global_norm(0.5),
    "adaptive_clip": adaptive_clip(0.1),
    "centralize": centralize(),
    "add_decayed_weights": add_decayed_weights(falling, "**/weight"),
    "add_cautious_weight_decay": add_cautious_weight_decay(falling, "**/weight"),
    "proximal_decay": proximal_decay(0.1, 0.5, "**/weight"),
    "clip_by_block_rms": clip_by_block_rms(0.5),
    "scale_by_param_block_rms": scale_by_param_block_rms(),
    "scale_by_trust_ratio": scale_by_trust_ratio(eps=falling, mask="**/weight"),
    "add_noise": add_noise(0.1, 0.55, key=0),
    "partition": partition([("layers/**", adam(0.1)), ("**", freeze())]),
    "masked": masked(trace(0.9), "**/weight", otherwise=identity()),
    "freeze": freeze(),
    "scale_by_depth": scale_by_depth(["layers/**", "**"], 0.5),
    "gradual_unfreezing": gradual_unfreezing(["layers/**", "**"], 2),
    "named": named("slow", chain(clip(0.5), trace(0.99))),
    "tunable": tunable(rmsprop, learning_rate=0.1, momentum=0.9),
    "chain": chain(clip_by_global_norm(1.0), rmsprop(falling, centered=True)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_laws_hold(name):
    check_transform(TRANSFORMS[name])


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


def hiding_behind_an_infinity() -> Transform:
    calls = []

    def update(updates, state, params):
        calls.append(None)
        return jax.tree.map(first_infinite, tree.scale(len(calls), updates)), state

    return bare(update=update)


def first_infinite(x):
    return jnp.where(jnp.arange(x.size).reshape(x.shape) == 0, jnp.inf, x)


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
        r"the state is fresh.*alias .*, got params 'layers/0/bias' in state",
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
    "hides its calls": (
        hiding_behind_an_infinity(),
        "jit equals eager: need .* at .*, got ",
    ),
    "has a number as its state": (
        bare(lambda p: 0),
        "need jax arrays in the state, got int at .*; use jnp.asa",
    ),
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


def test_a_report_of_another_update_is_caught():
    other = bare(name="two", report=lambda u, s, p: (tree.scale(1 + 1e-5, u), s, {}))
    law = "report is the update with metrics"
    with pytest.raises(ValueError, match=f"(?s)law broken: {law}: need .*, got "):
        check_transform(other)


def test_a_nan_leaves_the_tolerance_for_rounding():
    want, got = jnp.array([jnp.nan, 1.0]), jnp.array([jnp.nan, 1.0 + 5e-7])
    laws._require_same(want, got, laws.ROUNDING)


def run_three(transform, params, gradients):
    state, visited = jax.jit(transform.init)(params), []
    update = jax.jit(transform.update)
    for _ in range(3):
        updates, state = update(gradients, state, params)
        visited.append(updates)
    return visited


def test_a_partition_equals_its_groups_run_apart():
    params = {"a": {"x": np.ones(3), "y": np.ones(2)}, "b": np.ones(4)}
    gradients = jax.tree.map(lambda x: np.arange(1.0, x.size + 1), params)
    inside = chain(clip_by_global_norm(1.0), adam(0.1))
    together = partition([("a/**", inside), ("**", rmsprop(falling, momentum=0.9))])
    updates = run_three(together, params, gradients)
    a = run_three(inside, params["a"], gradients["a"])
    b = run_three(rmsprop(falling, momentum=0.9), params["b"], gradients["b"])
    for step in range(3):
        jax.tree.map(np.testing.assert_array_equal, updates[step]["a"], a[step])
        np.testing.assert_array_equal(updates[step]["b"], b[step])


def test_learning_rate_and_norms_are_reported():
    optimizer = chain(clip_by_global_norm(1.0), adamw(falling))

    @jax.jit
    def second_report(gradient, params):
        _, state = optimizer.update(gradient, optimizer.init(params), params)
        return optimizer.report(gradient, state, params)

    _, _, told = second_report(jnp.array([3.0, 4.0]), jnp.ones(2))
    want = {
        "clip_by_global_norm/norm_before": 5.0,
        "clip_by_global_norm/norm_after": 1.0,
        "scale_by_learning_rate/learning_rate": 0.05,
    }
    assert told.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-6)


class Foreign:
    """A transform of another library: two methods, and its own arithmetic."""

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

"""The laws hold for every optimizer and its parts."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.optimizers as optimizers
import fngrad.tree as tree
from fngrad.optimizers import REGISTRY, momentum, sgd
from fngrad.optimizers.adabelief import scale_by_belief
from fngrad.optimizers.adadelta import scale_by_adadelta
from fngrad.optimizers.adafactor import scale_by_factored_rms
from fngrad.optimizers.adagrad import adagrad, scale_by_rss
from fngrad.optimizers.adam import adam, adamw, scale_by_adam
from fngrad.optimizers.adamax import scale_by_adamax
from fngrad.optimizers.adan import scale_by_adan
from fngrad.optimizers.ademamix import scale_by_ademamix
from fngrad.optimizers.adopt import scale_by_adopt
from fngrad.optimizers.amsgrad import scale_by_amsgrad
from fngrad.optimizers.laprop import scale_by_laprop
from fngrad.optimizers.lars import scale_by_lars
from fngrad.optimizers.lion import scale_by_lion
from fngrad.optimizers.madgrad import scale_by_madgrad
from fngrad.optimizers.mars import scale_by_mars
from fngrad.optimizers.muon import scale_by_muon
from fngrad.optimizers.nadam import scale_by_nadam
from fngrad.optimizers.novograd import scale_by_block_norm
from fngrad.optimizers.radam import scale_by_radam
from fngrad.optimizers.rmsprop import rmsprop, scale_by_rms, scale_by_stddev
from fngrad.optimizers.rprop import scale_by_rprop
from fngrad.optimizers.shampoo import scale_by_shampoo
from fngrad.optimizers.sign_sgd import scale_by_sign
from fngrad.optimizers.simplified_ademamix import scale_by_simplified_ademamix
from fngrad.optimizers.sm3 import scale_by_sm3
from fngrad.optimizers.soap import scale_by_soap
from fngrad.optimizers.stable_adamw import scale_by_stable_adamw
from fngrad.optimizers.yogi import scale_by_yogi
from fngrad.transforms.clipping import centralize, clip, clip_by_global_norm
from fngrad.transforms.core import Transform, apply_updates, chain
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import masked
from fngrad.transforms.momentum_buffers import ema
from fngrad.transforms.noise import add_noise
from fngrad.transforms.tunable_hyperparameters import tunable


def falling(step):
    return 0.1 / (1.0 + step.astype(jnp.float32))


PARTS = {
    "scale_by_rms": scale_by_rms(bias_correction=True),
    "scale_by_stddev": scale_by_stddev(eps=1e-3, bias_correction=True),
    "scale_by_rss": scale_by_rss(),
    "scale_by_adam": scale_by_adam(nesterov=True),
    "scale_by_sign": scale_by_sign(),
    "scale_by_lion": scale_by_lion(falling, falling),
    "scale_by_rprop": scale_by_rprop(falling, max_step_size=falling),
    "scale_by_adadelta": scale_by_adadelta(falling),
    "scale_by_madgrad": scale_by_madgrad(falling, falling),
    "scale_by_block_norm": scale_by_block_norm(falling),
    "scale_by_factored_rms": scale_by_factored_rms(True, falling, 0, 2),
    "scale_by_sm3": scale_by_sm3(falling),
    "scale_by_lars": scale_by_lars(falling, "**/weight", separate_norms=True),
    "scale_by_shampoo": scale_by_shampoo(
        0.9, 1e-3, update_every=2, max_size=2, graft="diagonal"
    ),
    "scale_by_soap": scale_by_soap(
        precondition_frequency=2, precondition_1d=True, skip_first=False
    ),
}
ADAM_RELATIVES = {
    rule.__name__: rule()
    for rule in (
        *(scale_by_adamax, scale_by_amsgrad, scale_by_nadam, scale_by_radam),
        *(scale_by_belief, scale_by_adan, scale_by_adopt, scale_by_ademamix),
        *(scale_by_yogi, scale_by_laprop, scale_by_mars, scale_by_stable_adamw),
        scale_by_simplified_ademamix,
    )
}
VARIANTS: dict[str, Transform] = {
    "schedule_free_sgd with warmup": optimizers.schedule_free_sgd(0.1, warmup_steps=3),
    "schedule_free_adamw decays": optimizers.schedule_free_adamw(0.1, weight_decay=0.1),
    "prodigy with a mask": optimizers.prodigy(mask="**/weight", weight_decay=0.1),
    "dadapt_adamw without epsilon": optimizers.dadapt_adamw(eps=0.0),
    "dadapt_sgd with momentum": optimizers.dadapt_sgd(momentum=0.9),
    "dog with averaging": optimizers.dog(averaging=8.0, eps=0.0),
    "dog by layers": optimizers.dog(layerwise=True),
}
OPTIMIZERS = {name: factory(0.1) for name, factory in REGISTRY.items()}
LAWFUL = {**PARTS, **ADAM_RELATIVES, **VARIANTS, **OPTIMIZERS}


@pytest.mark.parametrize(
    "name",
    # The fast tests check the recipes, which have these parts.
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in OPTIMIZERS))
        for name in LAWFUL
    ],
)
def test_the_laws_hold(name):
    check_transform(LAWFUL[name])


MATRICES = {"a": jnp.linspace(-1.0, 2.0, 6).reshape(3, 2), "b": jnp.ones((2, 3, 2))}
OF_MATRICES = {
    "muon of kernels": optimizers.muon(0.1, matrices="a", ns_dtype=jnp.bfloat16),
    "scale_by_muon": scale_by_muon(adaptive=True, consistent_rms=0.2),
}


@pytest.mark.parametrize("name", OF_MATRICES)
def test_the_laws_hold_for_matrices(name):
    check_transform(OF_MATRICES[name], MATRICES)


@pytest.mark.parametrize("name", ADAM_RELATIVES)
def test_states_declare_their_moments(name):
    (state,) = jax.eval_shape(ADAM_RELATIVES[name].init, jnp.zeros(2)).values()
    for field in (*state.signed, *state.non_negative):
        assert field in state._fields
    assert "mu" in state.signed
    assert "nu" in state.non_negative


@pytest.mark.parametrize(
    ("rule", "signed", "non_negative"),
    [
        (scale_by_muon(), ("mu",), ()),
        (scale_by_shampoo(0.9, 1e-3, update_every=2, graft="diagonal"), (), ("nu",)),
        (scale_by_soap(precondition_frequency=2), ("mu",), ("nu",)),
    ],
    ids=["muon", "shampoo", "soap"],
)
def test_moments_that_may_be_quantised_are_declared(rule, signed, non_negative):
    (state,) = rule.init(jnp.ones((3, 2))).values()
    assert getattr(type(state), "signed", ()) == signed
    assert getattr(type(state), "non_negative", ()) == non_negative
    assert {*signed, *non_negative} <= set(state._fields)


@functools.cache
def updates_beside(name, *shapes):
    """Return the first updates of a matrix and of leaves without entries."""
    params = {"w": jnp.array([[1.0, 2.0], [-3.0, 0.5], [0.25, -1.0]])}
    params |= {f"empty {shape}": jnp.zeros(shape) for shape in shapes}
    optimizer = REGISTRY[name](0.1)
    return optimizer.update(params, optimizer.init(params), params)[0]


@pytest.mark.parametrize("name", ["muon", "shampoo", "soap"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0,)])
def test_a_leaf_without_entries_changes_nothing_for_the_others(name, shape):
    want, got = updates_beside(name), updates_beside(name, shape)
    assert got[f"empty {shape}"].shape == shape
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-7)


# Values at which every argument has an effect within a few steps.
MOVING = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.9},
    "amsgrad": {"learning_rate": 3.0},
    "adamuon": {"learning_rate": 3.0},
    "adopt": {"eps": 0.7},
    "signum": {"learning_rate": 0.85},
    "lion": {"learning_rate": 1.15, "b2": 0.5},
    "rprop": {"learning_rate": 0.6, "eta_minus": 0.03, "max_step_size": 0.65},
    "lars": {"trust_coefficient": 0.5, "eps": 1.0},
    "adadelta": {"eps": 0.1},
    "adafactor": {"min_scale": 5.0},
    "mars": {"max_norm": 0.5, "gamma": 1.0, "eps": 0.1},
    "prodigy": {"learning_rate": 1.0, "estim_lr0": 0.01},
    "dadapt_sgd": {"learning_rate": 1.0, "estim_lr0": 0.01, "weight_decay": 0.5},
    "dadapt_adamw": {"learning_rate": 1.0, "estim_lr0": 0.01},
    "dog": {"learning_rate": 10.0, "eps": 1.0},
}
STEPS = {"radam": 8, "adopt": 8, "prodigy": 8, "dadapt_sgd": 8, "dadapt_adamw": 8}
STEPS["schedule_free_radam"] = 8
# Has an effect only while the learning rate changes.
SILENT = {"weight_lr_power"}
# Where a statistic is rank-deficient, rounding determines its basis, and a batched
# eigh rounds differently.
SWEEP_TOLERANCE = {"soap": 1e-3}
PARAMS = {"w": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(0.3)}
MATRIX = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)


def float_arguments(name: str) -> dict[str, float]:
    signature = inspect.signature(REGISTRY[name]).parameters
    floats = {k: p.default for k, p in signature.items() if type(p.default) is float}
    return {**floats, "learning_rate": 0.1, **MOVING.get(name, {})}


def another(value: float) -> float:
    return 0.7 * value + 0.02 if np.isfinite(value) else 1.02


START = {**jax.tree.map(np.asarray, PARAMS), "matrix": MATRIX}


@functools.cache
def update_of(name: str) -> tuple[Any, list[None]]:
    """Return the jitted update, whose program takes the arguments, and its traces."""
    traces: list[None] = []

    def update(hyperparameters, *args):
        traces.append(None)
        return REGISTRY[name](**hyperparameters).update(*args)

    return jax.jit(update), traces


def visited(
    name: str, update: Any, init: Any, hyperparameters: Any, params: Any
) -> Any:
    """Return the parameters after a few updates of a quadratic."""
    state = init(hyperparameters, params)
    for _ in range(STEPS.get(name, 3)):
        gradients = jax.tree.map(lambda p: p - np.float32(0.25), params)
        updates, state = update(hyperparameters, gradients, state, params)
        params = jax.tree.map(np.add, params, jax.device_get(updates))
    return params


@pytest.mark.parametrize("name", REGISTRY)
def test_a_sweep_equals_runs_one_by_one_that_compile_once(name):
    base = float_arguments(name)
    lanes = [base] + [{**base, k: another(v)} for k, v in base.items()]
    lanes = [jax.tree.map(jnp.float32, lane) for lane in lanes]
    update, traces = update_of(name)

    def init(hyperparameters, params):
        return REGISTRY[name](**hyperparameters).init(params)

    alone = [visited(name, update, init, lane, START) for lane in lanes]
    assert len(traces) == 1
    stacked = {k: jnp.stack([x[k] for x in lanes]) for k in base}
    starts = {k: np.stack([x] * len(lanes)) for k, x in START.items()}
    batched = jax.jit(jax.vmap(update)), jax.jit(jax.vmap(init))
    together = visited(name, *batched, stacked, starts)
    for lane, params in enumerate(alone):
        got = {k: x[lane] for k, x in together.items()}
        tolerance = SWEEP_TOLERANCE.get(name, 2e-6)
        for leaf in params:
            np.testing.assert_allclose(got[leaf], params[leaf], tolerance, atol=1e-7)
        moved = any(
            not np.allclose(params[leaf], alone[0][leaf], rtol=1e-5) for leaf in params
        )
        argument = list(base)[lane - 1]
        assert moved or lane == 0 or argument in SILENT, f"{argument} is ignored"


OTHERWISE = {"adan", "shampoo"}  # with XLA's quick settings rounding differs


@pytest.mark.xla_defaults
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in OTHERWISE))
        for name in REGISTRY
    ],
)
def test_a_constant_and_an_argument_of_the_program_give_the_same_bits(name):
    # The program is one update: in a loop XLA chooses its fusions, and so the rounding
    # of multiply-adds, by what is constant.
    base, factory = float_arguments(name), REGISTRY[name]
    params, (passed, _) = START, update_of(name)
    scalars = jax.tree.map(jnp.float32, base)
    state = factory(**base).init(params)
    written = jax.jit(factory(**base).update)
    for _ in range(3):
        updates, new_state = passed(scalars, params, state, params)
        want = written(params, state, params)
        jax.tree.map(np.testing.assert_array_equal, (updates, new_state), want)
        params = jax.tree.map(np.add, params, jax.device_get(updates))
        state = new_state


@pytest.mark.xla_defaults
@pytest.mark.parametrize(
    ("factory", "numbers"),
    [
        (adagrad, {"initial_accumulator_value": 0.1, "eps": 1e-7}),
        (rmsprop, {"decay": 0.9, "eps": 1e-8, "initial_scale": 0.0}),
    ],
)
def test_steps_of_a_tunable_have_the_bits_of_constant_hyperparameters(factory, numbers):
    start = {"w": jnp.arange(6.0).reshape(3, 2) / 4 - 0.6, "v": jnp.array([0.3, -0.2])}
    for rate in (0.1, 0.3, 0.7):
        ends = []
        for make in (factory, functools.partial(tunable, factory)):
            optimizer = make(learning_rate=rate, **numbers)

            @jax.jit
            def step(params, state, t, optimizer=optimizer):
                gradient = jax.tree.map(lambda p: p + 0.3 * jnp.cos(7 * p + t), params)
                updates, state = optimizer.update(gradient, state, params)
                return apply_updates(params, updates), state

            params, state = start, optimizer.init(start)
            for t in range(4):
                params, state = step(params, state, jnp.float32(t))
            ends.append(params)
        jax.tree.map(np.testing.assert_array_equal, *ends)


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
def test_state_paths_are_those_in_saved_checkpoints(transform, paths):
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


def run_steps(transform, params, gradients, steps):
    state, visited = transform.init(params), []
    for _ in range(steps):
        updates, state = transform.update(gradients, state, params)
        visited.append(updates)
    return visited


@pytest.mark.parametrize("name", REGISTRY)
def test_an_unselected_leaf_never_receives_its_raw_gradient(name):
    params = jax.tree.map(jnp.asarray, PARAMS)
    visited = run_steps(
        masked(REGISTRY[name](0.1), "w"), params, params, STEPS.get(name, 3)
    )
    for updates in visited:
        assert updates["b"] == 0
    assert np.all(visited[-1]["w"] != 0)

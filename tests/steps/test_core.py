"""Properties of all steps that evaluate the loss themselves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.steps as steps
import fngrad.tree as tree
from fngrad.optimizers import adam, sgd
from fngrad.optimizers.lbfgs import lbfgs
from fngrad.optimizers.sophia import sophia
from fngrad.training import init_state, make_step, run, snapshot
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.damping import adaptive_damping
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.plateau import reduce_on_plateau
from fngrad.transforms.step_length import scale_by_step_length

X = jnp.arange(12.0).reshape(6, 2) / 10
BATCH = {"x": X, "y": jnp.sin(3 * X[:, 0]) + 1}
PARAMS = {"w": jnp.array([0.5, 0.5]), "b": jnp.array(0.1)}
SEARCHED = chain(sgd(1.0), scale_by_step_length())
DAMPED = chain(adaptive_damping(), sgd(1.0))
TIMID = chain(adam(0.1), reduce_on_plateau())


def residuals(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) + params["b"] - batch["y"]


def loss_fn(params, batch):
    return jnp.mean(residuals(params, batch) ** 2)


def watched(fn, optimizer):
    return steps.plateau(make_step(fn, optimizer))


def wolfe(fn, optimizer):
    return steps.line_search(fn, optimizer, "strong_wolfe")


def unclipped(fn, optimizer):
    return steps.differentially_private(fn, optimizer, 1e3, 0.0)


# name: (optimizer, builder, what it reports beyond every step)
ON_LOSSES = {
    "sam": (adam(0.1), steps.sam, ["sharpness"]),
    "polyak": (sgd(1.0), steps.polyak, ["step_length"]),
    "armijo": (
        SEARCHED,
        steps.line_search,
        [
            *("step_length", "next_loss", "evaluations"),
            "scale_by_step_length/step_length",
        ],
    ),
    "lbfgs": (
        lbfgs(),
        wolfe,
        ["step_length", "next_loss", "evaluations", "scale_by_lbfgs/pairs"],
    ),
    "sophia": (sophia(0.1), steps.sophia, ["scale_by_sophia/clipped"]),
    "differentially_private": (sgd(0.1), unclipped, ["clipped_fraction"]),
    "plateau": (TIMID, watched, ["reduce_on_plateau/scale"]),
}
ON_RESIDUALS = {
    "gauss_newton": (sgd(1.0), steps.gauss_newton, []),
    "levenberg_marquardt": (
        DAMPED,
        steps.levenberg_marquardt,
        ["damping", "gain_ratio", "is_accepted"],
    ),
}
STEPS = {**ON_LOSSES, **ON_RESIDUALS}
STANDARD = [
    *("loss", "learning_rate", "is_finite", "grad_norm", "update_norm", "param_norm"),
]


def function_of(name):
    return residuals if name in ON_RESIDUALS else loss_fn


@functools.cache
def compiled(name):
    """Return the step as a program that donates its state, and its traces so far."""
    optimizer, build, _ = STEPS[name]
    step, traces = build(function_of(name), optimizer), []

    def counted(state, batch):
        traces.append(None)
        return step(state, batch)

    return jax.jit(counted, donate_argnums=0), traces


@jax.jit
def slope_at(params):
    return jax.grad(loss_fn)(params, BATCH)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_reports_what_every_step_does_and_its_own(name):
    optimizer, _, own = STEPS[name]
    state = init_state(PARAMS, optimizer, 0)
    new, metrics = compiled(name)[0](snapshot(state), BATCH)
    assert sorted(metrics) == sorted([*STANDARD, *own])
    assert all(jnp.shape(value) == () for value in metrics.values())
    r = residuals(PARAMS, BATCH)
    loss = 0.5 * r @ r if name in ON_RESIDUALS else loss_fn(PARAMS, BATCH)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    gradient = slope_at(PARAMS)
    factor = len(r) / 2 if name in ON_RESIDUALS else 1
    np.testing.assert_allclose(
        metrics["grad_norm"], factor * tree.norm(gradient), rtol=1e-5
    )
    moved = tree.sub(new.params, PARAMS)
    np.testing.assert_allclose(metrics["update_norm"], tree.norm(moved), rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"], tree.norm(PARAMS), rtol=1e-6)
    assert bool(metrics["is_finite"])
    assert metrics["learning_rate"] in (jnp.float32(0.1), 1)
    assert new.step == 1
    assert tree.mismatch(state, new) is None


@pytest.mark.parametrize("name", STEPS)
def test_a_step_compiles_once_and_takes_donated_states(name):
    step, traces = compiled(name)
    state = snapshot(init_state(PARAMS, STEPS[name][0], 0))
    for _ in range(3):
        state, metrics = step(state, BATCH)
    assert len(traces) == 1
    assert bool(metrics["is_finite"])


FEW = ("polyak", "lbfgs", "levenberg_marquardt")  # the other steps are slow
MOSTLY_SLOW = [
    pytest.param(x, marks=[pytest.mark.slow] * (x not in FEW)) for x in STEPS
]


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_states_can_be_mapped_and_scanned(name):
    optimizer, build, _ = STEPS[name]
    step = build(function_of(name), optimizer)

    def trained(factor):
        state = init_state(tree.scale(factor, PARAMS), optimizer, 0)
        return run(step, state, lambda step: BATCH, 3)

    lanes = jnp.array([1.0, -2.0])
    together, _ = jax.jit(jax.vmap(trained))(lanes)
    alone = [jax.jit(trained)(lane)[0] for lane in lanes]
    for i, state in enumerate(alone):
        lane = jax.tree.map(lambda x, i=i: x[i], together.params)
        chex.assert_trees_all_close(lane, state.params, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_only_trainable_leaves_move(name):
    optimizer, build, _ = STEPS[name]
    params = {"net": PARAMS, "table": jnp.arange(3)}
    held = partition([("table", freeze()), ("net/b", freeze()), ("**", optimizer)])

    def inner(params, batch):
        offset = params["table"].astype(float)[0]
        return function_of(name)(params["net"], batch) + 0.0 * offset

    step = jax.jit(build(inner, held))
    state, metrics = step(init_state(params, held, 0), BATCH)
    np.testing.assert_array_equal(state.params["table"], params["table"])
    np.testing.assert_array_equal(state.params["net"]["b"], PARAMS["b"])
    assert np.all(state.params["net"]["w"] != PARAMS["w"])
    moved = tree.norm(tree.sub(state.params["net"]["w"], PARAMS["w"]))
    np.testing.assert_allclose(metrics["update_norm"], moved, rtol=1e-5)


@pytest.mark.parametrize("name", [x for x in STEPS if x != "differentially_private"])
def test_key_metrics_and_model_state_work_in_every_step(name):
    optimizer, build, own = STEPS[name]
    inner = function_of(name)

    def with_all(params, model_state, batch, key):
        noise = jax.random.normal(key, ())
        noisy = {**batch, "y": batch["y"] + noise}
        return inner(params, noisy), ({"noise": noise}, model_state + 1)

    step = jax.jit(build(with_all, optimizer))
    state = init_state(PARAMS, optimizer, 7, model_state=jnp.int32(0))
    state, _ = step(state, BATCH)
    before = state.params
    state, metrics = step(state, BATCH)
    assert state.model_state == 2
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), 1), ())
    np.testing.assert_allclose(metrics["noise"], noise)
    if "next_loss" in own:  # one function, the same noise at all its points
        noisy = {**BATCH, "y": BATCH["y"] + noise}
        there = inner(state.params, noisy)
        np.testing.assert_allclose(metrics["next_loss"], there, rtol=1e-5)
        assert there <= inner(before, noisy)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_refuses_other_states_and_losses(name):
    optimizer, build, _ = STEPS[name]
    message = r"need a TrainState from fngrad\.init_state, got dict"
    with pytest.raises(TypeError, match=message):
        build(function_of(name), optimizer)({}, BATCH)
    with pytest.raises(TypeError, match="two required arguments"):
        build(lambda params: 0.0, optimizer)


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (steps.sophia, "scale_by_sophia"),
        (watched, "reduce_on_plateau"),
        (steps.levenberg_marquardt, "adaptive_damping"),
    ],
)
def test_a_missing_part_is_named(build, part):
    fn = residuals if part == "adaptive_damping" else loss_fn
    step = build(fn, sgd(0.1))
    with pytest.raises(ValueError, match=f"need an optimizer with .*part {part}"):
        jax.eval_shape(step, init_state(PARAMS, sgd(0.1), 0), BATCH)


PARTS: dict[str, Transform] = {
    "lbfgs": lbfgs(memory_size=2),
    "sophia": sophia(0.1),
    "reduce_on_plateau": reduce_on_plateau(),
    "scale_by_step_length": scale_by_step_length(0.5),
    "adaptive_damping": adaptive_damping(),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_keep_the_laws(name):
    check_transform(PARTS[name])

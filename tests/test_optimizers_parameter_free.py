"""Schedule-free and learning-rate-free rules against their oracles, on whole trees.

Norms and products go over all leaves, and iterates are differences of large numbers,
so the comparison is of all leaves at once, and allows for rounding of the parameters.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_parameter_free as oracles
import problems
import pytest
from precision import x64
from trajectories import (
    STEPS,
    Family,
    case_id,
    cases,
    check_table,
    compiled,
    pairs,
    ulp,
    wide,
)

from fngrad.evaluation_point import evaluation_point
from fngrad.leaves import Stacked
from fngrad.optimizers import averaged_iterates, parameter_free
from fngrad.transforms.averaging import average_params
from fngrad.transforms.core import apply_updates, chain, report
from fngrad.transforms.laws import check_transform
from fngrad.transforms.scaling import scale_by_learning_rate

ADAM = {"betas": ({}, (0.9, 0.999), (0.8, 0.9)), "eps": ({}, 1e-8, 1e-2)}
ESTIMATE = {
    "learning_rate": ({}, 1.0, 0.7),
    "estim_lr0": ({}, 1e-6, 1e-4),
    "growth_rate": ({"estim_lr0": 1e-3}, float("inf"), 1.01),
}
AVERAGE = {
    "learning_rate": ({}, 0.1, 0.03),
    "warmup_steps": ({}, None, 5),
    "b1": ({}, 0.9, 0.5),
    "weight_lr_power": ({"warmup_steps": 5}, 2.0, 0.0),
}


def decay(**context: Any) -> dict[str, tuple[dict[str, Any], Any, Any]]:
    return {
        "weight_decay": (context, 0.0, 0.1),
        "mask": ({"weight_decay": 0.1, **context}, None, "decayed/**"),
    }


ARGUMENTS: dict[str, dict[str, tuple[dict[str, Any], Any, Any]]] = {
    "schedule_free_sgd": {**AVERAGE, **decay()},
    "schedule_free_adamw": {
        **AVERAGE,
        **decay(),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
    },
    "prodigy": {
        **ADAM,
        **ESTIMATE,
        **decay(estim_lr0=1e-2),
        "beta3": ({}, None, 0.8),
        "estim_lr_coef": ({"estim_lr0": 1e-2}, 1.0, 2.0),
        "safeguard_warmup": ({"estim_lr0": 1e-2}, False, True),
        "use_bias_correction": ({}, True, False),
    },
    "dadapt_adamw": {
        **ADAM,
        **ESTIMATE,
        **decay(estim_lr0=1e-2),
        "use_bias_correction": ({}, True, False),
    },
    "dadapt_sgd": {**ESTIMATE, **decay(estim_lr0=0.1), "momentum": ({}, 0.0, 0.9)},
    "dog": {
        "learning_rate": ({}, 1.0, 0.7),
        "init_step": ({}, ("heuristic", 1e-6), ("distance", 0.1)),
        "eps": ({}, 1e-8, 10.0),
        **decay(init_step=("distance", 0.1)),
        "layerwise": ({"init_step": ("distance", 0.1)}, False, True),
        "averaging": ({}, None, 8.0),
    },
}
CONVENTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ARGUMENTS),
    ("schedule_free_sgd", {"b1": 0.0}),
    ("schedule_free_sgd", {"b1": 1.0}),
    ("schedule_free_adamw", {"eps": 0.0, "warmup_steps": 5, "b2": 0.9}),
    (
        "prodigy",
        {
            "safeguard_warmup": True,
            "growth_rate": 1.2,
            "estim_lr_coef": 0.5,
            "eps": 0.0,
        },
    ),
    ("prodigy", {"use_bias_correction": False, "estim_lr0": 1e-2}),
    ("dadapt_adamw", {"eps": 0.0, "estim_lr0": 1e-2, "growth_rate": 1.2}),
    ("dog", {"init_step": ("learning_rate", 0.1), "eps": 0.0}),
    ("dog", {"layerwise": True}),
]
NAMES = list(ARGUMENTS)
RECIPES = SimpleNamespace(
    **{
        name: getattr(averaged_iterates, name, None) or getattr(parameter_free, name)
        for name in NAMES
    }
)
FAMILY = Family(RECIPES, oracles, ARGUMENTS)
CASES, PAIRS = cases(FAMILY, CONVENTIONS), pairs(FAMILY)
SHAPES = {"decayed": {"w": (2, 2)}, "rest": {"b": (1,), "s": ()}}
BLOCKS = (slice(0, 4), slice(4, 5), slice(5, 6))
DECAYED = np.array([1, 1, 1, 1, 0, 0])


def tree_of(rows, dtype, steps=()):
    """Cut rows of six into the leaves of SHAPES."""
    leaves, treedef = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    parts = zip(leaves, BLOCKS, strict=True)
    cut = [jnp.asarray(rows[..., b].reshape((*steps, *s)), dtype) for s, b in parts]
    return jax.tree.unflatten(treedef, cut)


def rows_of(tree, steps=STEPS):
    return np.concatenate([x.reshape(steps, -1) for x in jax.tree.leaves(tree)], axis=1)


def gradients():
    """Return hard gradients, two of whose columns keep their sign: distances grow."""
    noise = problems.hard_gradients(STEPS, huge=30.0, tiny=1e-2)
    return noise + np.array([3.0, 0, 0, 0, 60.0, 0])


def full(name, arguments, dtype=float):
    """Return the learning rates, and all arguments, rounded as the program has them."""
    signature = inspect.signature(getattr(RECIPES, name)).parameters
    defaults = {k: p.default for k, p in signature.items()}
    defaults["learning_rate"] = ARGUMENTS[name]["learning_rate"][1]
    arguments = {**defaults, **arguments}  # all floats are data: fewer programs
    rates = problems.decaying(arguments.pop("learning_rate"), STEPS)
    return rates.astype(dtype), {k: rounded(v, dtype) for k, v in arguments.items()}


def rounded(value, dtype):
    if isinstance(value, tuple):
        return tuple(rounded(v, dtype) for v in value)
    return float(dtype(value)) if isinstance(value, float) else value


def visited(name, arguments, dtype, gradient_dtype=None, is_double=False):
    """Return gradients, parameters and updates as rows of six."""
    rates, arguments = full(name, arguments)
    floats = {k: v for k, v in arguments.items() if isinstance(v, float)}
    static = tuple((k, v) for k, v in arguments.items() if k not in floats)
    program = compiled(getattr(RECIPES, name), static, is_double)
    params = tree_of(np.linspace(-2, 2, 6), dtype)
    given = tree_of(gradients(), gradient_dtype or dtype, (STEPS,))
    params, updates = program(floats, jnp.asarray(rates), params, given)
    return rows_of(given), rows_of(params), rows_of(updates)


def expected(name, arguments, given, params, dtype=float):
    rates, arguments = full(name, arguments, dtype)
    if arguments.pop("mask", None):
        arguments["weight_decay"] = arguments["weight_decay"] * DECAYED
    if arguments.pop("layerwise", False):
        arguments["blocks"] = BLOCKS
    return getattr(oracles, name)(wide(given), wide(params), rates, **arguments)


def assert_close(got, want, params, tolerance, slack=0.0):
    """Compare relative to entry and column; parameters are rounded to 8 tolerances."""
    scale = np.abs(want) + 0.1 * np.max(np.abs(want), axis=0)
    scale = scale + 0.1 * np.max(np.abs(wide(params)), axis=0)
    excess = np.abs(wide(got) - want) - tolerance * scale - slack
    assert np.all(excess <= 0), f"step {np.argmax(np.max(excess, 1))}: {got=} {want=}"


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=case_id)
def test_updates_in_float64_are_the_oracles(name, arguments):
    with x64():
        given, params, got = visited(name, arguments, jnp.float64, is_double=True)
    want, _ = expected(name, arguments, given, params)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=4e-15 * np.abs(params).max())


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=case_id)
def test_updates_in_lower_precision_are_the_oracles_rounded(name, arguments):
    # The laws below compare all arguments' narrow updates with float32's.
    narrow = [] if arguments else [(jnp.float16,) * 2, (jnp.bfloat16, jnp.float32)]
    for dtype, given_dtype in [(jnp.float32,) * 2, *narrow]:
        given, params, got = visited(name, arguments, dtype, given_dtype)
        want, _ = expected(name, arguments, given, params, np.float32)
        assert got.dtype == dtype
        if dtype == jnp.float32:
            assert_close(got, want, params, 1e-5)
        else:
            assert_close(got, wide(want.astype(got.dtype)), params, 1e-5, ulp(got))


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_in_the_table(name):
    check_table(FAMILY, name)


@pytest.mark.parametrize(
    ("name", "argument"), [p for p in PAIRS if p != ("dog", "averaging")]
)
def test_every_argument_changes_the_updates(name, argument):
    context, value, other = ARGUMENTS[name][argument]
    first, second = (
        visited(name, {**context, argument: v}, jnp.float32)[2] for v in (value, other)
    )
    assert not np.allclose(wide(first), wide(second), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_the_estimates_of_these_trajectories_grow(name):
    rows = np.tile(np.linspace(-2, 2, 6), (STEPS, 1))
    _, still = expected(name, {"estim_lr0": 1e-6}, gradients(), rows)
    assert still[0] == 1e-6
    with x64():
        given, params, _ = visited(name, {}, jnp.float64, is_double=True)
    _, estimates = expected(name, {}, given, params)
    assert np.all(np.diff(estimates) >= 0)
    assert estimates[-1] > 1.5 * estimates[0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("schedule_free_sgd", {"learning_rate": 0.1, "warmup_steps": 3}),
        ("schedule_free_adamw", {"learning_rate": 0.1, "weight_decay": 0.1}),
        ("prodigy", {"mask": "**/weight", "weight_decay": 0.1}),
        ("dadapt_adamw", {"eps": 0.0}),
        ("dadapt_sgd", {"momentum": 0.9}),
        ("dog", {"averaging": 8.0, "eps": 0.0}),
        ("dog", {"layerwise": True}),
    ],
    ids=case_id,
)
def test_the_laws_hold(name, arguments):
    check_transform(getattr(RECIPES, name)(**arguments))


@pytest.mark.parametrize(
    ("name", "steps"),
    [("prodigy", 300), ("dadapt_adamw", 300), ("dadapt_sgd", 600), ("dog", 2000)],
)
def test_a_quadratic_is_minimised_without_a_learning_rate(name, steps):
    A = jnp.asarray(problems.quadratic(np.array([1.0, 2.0, 4.0])), jnp.float32)
    optimizer = getattr(RECIPES, name)()

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(A @ x, state, x)
        return (x + updates, state), None

    x = jnp.full(3, 5.0)
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), length=steps)
    assert x @ A @ x < 1e-2 * (jnp.full(3, 5.0) @ A @ jnp.full(3, 5.0))


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_a_report_tells_the_distance_and_the_step_size(name):
    optimizer, params = getattr(RECIPES, name)(0.5), jnp.array([3.0, 4.0])
    told = report(optimizer, params, optimizer.init(params), params)
    kinds = {key.rpartition("/")[2]: float(value) for key, value in told.items()}
    factor = {"prodigy": 0.5, "dadapt_adamw": 0.5, "dadapt_sgd": 0.5 / 5.0}[name]
    if name != "dadapt_sgd":
        factor *= 0.001**0.5 / 0.1  # Adam's correction of the first step
    assert kinds["d"] == pytest.approx(1e-6)
    assert kinds["learning_rate"] == pytest.approx(1e-6 * factor, rel=1e-4)


def test_dog_reports_the_distance_and_the_largest_step_size():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    optimizer = RECIPES.dog(init_step=("heuristic", 0.1), layerwise=True, eps=0.0)
    told = report(optimizer, params, optimizer.init(params), params)
    assert told["scale_by_dog/distance"] == pytest.approx(0.1 * (1 + 5))
    assert told["scale_by_dog/step_size"] == pytest.approx(0.1 * (1 + 1) / 1)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_a_learning_rate_that_begins_at_zero_leaves_the_estimate_alone(name):
    optimizer = getattr(RECIPES, name)(lambda t: jnp.where(t < 2, 0.0, 1.0))
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    for t in range(3):
        updates, state = optimizer.update(params, state, params)
        assert bool(jnp.all(updates == 0)) == (t < 2)
        assert bool(jnp.all(jnp.isfinite(updates)))


def test_dadapt_sgd_takes_its_scale_from_the_first_gradient_that_is_not_zero():
    optimizer, params = RECIPES.dadapt_sgd(estim_lr0=0.1), jnp.array([1.0, 1.0])
    state = optimizer.init(params)
    updates, state = optimizer.update(jnp.zeros(2), state, params)
    np.testing.assert_array_equal(updates, [0.0, 0.0])
    updates, state = optimizer.update(jnp.array([3.0, 4.0]), state, params)
    np.testing.assert_allclose(updates, [-0.06, -0.08], rtol=1e-5)


def test_a_derivative_through_the_estimate_is_finite():
    def end(coefficient):
        optimizer, x = RECIPES.prodigy(estim_lr_coef=coefficient), jnp.array([1.0, 0.0])
        state = optimizer.init(x)
        for _ in range(4):
            updates, state = optimizer.update(2 * x, state, x)
            x = x + updates
        return jnp.sum(x)

    assert jnp.isfinite(jax.grad(end)(1.0))


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_complex_parameters_are_refused(name):
    with pytest.raises(TypeError, match=f"need real parameters for {name}.*complex64"):
        getattr(RECIPES, name)().init(jnp.ones(2, jnp.complex64))


def test_dog_takes_complex_parameters():
    z, w = jnp.array([1 + 2j]), jnp.array([1.0, 2.0])
    steps = []
    for params in (z, w):
        optimizer = RECIPES.dog(init_step=("distance", 0.5))
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        steps.append(np.asarray(updates))
    np.testing.assert_allclose(steps[0].view(np.float32), steps[1], rtol=1e-6)


def test_dogs_average_is_the_oracles():
    arguments: dict[str, Any] = {"init_step": ("distance", 0.1), "averaging": 8.0}
    with x64():
        optimizer = RECIPES.dog(**arguments)
        params = jnp.linspace(-2.0, 2.0, 6)
        state, given, at, got = optimizer.init(params), gradients(), [], []
        for g in given:
            at.append(params)
            updates, state = optimizer.update(jnp.asarray(g), state, params)
            params = apply_updates(params, updates)
            got.append(evaluation_point(state, params))
    _, want = oracles.dog(given, np.array(at), np.ones(STEPS), **arguments)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_stacked_leaves_move_like_single_ones():
    rows = jnp.array([[1.0, -2.0], [30.0, 0.5]])
    for name, arguments in (
        ("prodigy", {}),
        ("dadapt_adamw", {}),
        ("dadapt_sgd", {}),
        ("schedule_free_sgd", {}),
        ("dog", {"averaging": 8.0}),
        ("dog", {"layerwise": True}),
    ):
        optimizer = getattr(RECIPES, name)(**arguments)
        got = []
        for params in ({"stack": Stacked(rows)}, {"a": rows[0], "b": rows[1]}):
            state = optimizer.init(params)
            for _ in range(2):
                updates, state = optimizer.update(params, state, params)
            got.append(np.concatenate([x.ravel() for x in jax.tree.leaves(updates)]))
        np.testing.assert_allclose(got[0], got[1], rtol=1e-5)


def test_average_params_with_gamma_zero_is_the_mean():
    optimizer = chain(scale_by_learning_rate(0.5), average_params(0.0))
    params = jnp.array([4.0])
    state, seen = optimizer.init(params), []
    for _ in range(5):
        updates, state = optimizer.update(params, state, params)
        params = apply_updates(params, updates)
        seen.append(params)
    average = state["average_params"].eval_params(params)
    np.testing.assert_allclose(average, np.mean(seen, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("schedule_free_sgd", {"warmup_steps": 0}, "need warmup_steps >= 1 or None"),
        ("schedule_free_sgd", {"b1": 1.5}, "need 0.0 <= b1 <= 1.0"),
        ("schedule_free_sgd", {"learning_rate": -1.0, "warmup_steps": 2}, "-1.0"),
        ("schedule_free_adamw", {"b2": 1.0}, "need decay < 1 to correct for bias"),
        ("schedule_free_adamw", {"weight_lr_power": -1.0}, "<= weight_lr_power"),
        ("prodigy", {"estim_lr0": 0.0}, "need estim_lr0 > 0"),
        ("prodigy", {"estim_lr_coef": -1.0}, "need estim_lr_coef > 0"),
        ("prodigy", {"betas": (0.9, 1.0)}, r"need betas\[1\] < 1"),
        ("prodigy", {"betas": (0.9,)}, r"need betas=\(b1, b2\), got betas=\(0.9,\)"),
        ("prodigy", {"beta3": 1.5}, "need 0.0 <= beta3 <= 1.0"),
        ("dadapt_adamw", {"growth_rate": 0.9}, "need 1.0 <= growth_rate"),
        ("dadapt_adamw", {"learning_rate": -0.1}, "need 0.0 <= learning_rate"),
        ("dadapt_sgd", {"momentum": 1.5}, "need 0.0 <= momentum <= 1.0"),
        ("dog", {"init_step": ("reps_rel", 1e-6)}, r"need init_step=\(kind, value\)"),
        ("dog", {"init_step": ("distance", 0.0)}, "distance of init_step > 0"),
        ("dog", {"eps": -1.0}, "need 0.0 <= eps"),
        ("dog", {"averaging": -1.0}, "need 0.0 <= gamma"),
    ],
    ids=case_id,
)
def test_a_hyperparameter_out_of_range_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(RECIPES, name)(**arguments)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd", "dog"])
def test_a_mask_that_selects_nothing_is_refused(name):
    optimizer = getattr(RECIPES, name)(weight_decay=0.1, mask="weights")
    with pytest.raises(ValueError, match="need a mask that selects a leaf, got 'weig"):
        optimizer.init({"weight": jnp.ones(2)})

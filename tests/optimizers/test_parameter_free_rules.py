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

import fngrad.optimizers as optimizers
from fngrad.transforms.core import apply_updates
from fngrad.transforms.evaluation_point import evaluation_point
from fngrad.transforms.laws import check_transform

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
RECIPES = SimpleNamespace(**{name: getattr(optimizers, name) for name in NAMES})
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

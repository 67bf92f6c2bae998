"""Every optimizer and every argument against its oracle, update by update."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest
from precision import x64
from trajectories import (
    Family,
    case_id,
    cases,
    check_argument,
    check_double,
    check_single,
    check_table,
    pairs,
)

import fngrad.optimizers as optimizers
from fngrad.optimizers import REGISTRY
from fngrad.transforms.core import apply_updates
from fngrad.types import Hyper, Scalar

# (the other arguments, a value, another value): the two must differ, and the second
# must agree with the oracle. Where epsilon is asked for it is made visible.
LR = (0.1, 0.03)
ARGUMENTS: dict[str, dict[str, tuple[dict[str, Any], Any, Any]]] = {
    "sgd": {
        "learning_rate": ({}, *LR),
        "momentum": ({}, None, 0.9),
        "nesterov": ({"momentum": 0.8}, False, True),
        "learning_rate_first": ({"momentum": 0.9}, False, True),
    },
    "momentum": {
        "learning_rate": ({}, *LR),
        "momentum": ({}, 0.9, 0.5),
        "nesterov": ({}, False, True),
        "learning_rate_first": ({}, False, True),
    },
    "rmsprop": {
        "learning_rate": ({}, *LR),
        "decay": ({}, 0.9, 0.5),
        "eps": ({}, 1e-8, 1e-2),
        "initial_scale": ({}, 0.0, 1.0),
        "eps_in_sqrt": ({"eps": 1e-2}, True, False),
        "centered": ({"eps": 1e-2}, False, True),
        "momentum": ({}, None, 0.9),
        "nesterov": ({"momentum": 0.9}, False, True),
        "bias_correction": ({}, False, True),
        "learning_rate_first": ({"momentum": 0.9}, True, False),
    },
    "adagrad": {
        "learning_rate": ({}, *LR),
        "initial_accumulator_value": ({}, 0.1, 1.0),
        "eps": ({}, 1e-7, 1e-2),
        "eps_in_sqrt": ({"eps": 1e-2}, True, False),
    },
    "adam": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.9, 0.5),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
        "eps_root": ({}, 0.0, 1e-2),
        "nesterov": ({}, False, True),
    },
    "adamw": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.9, 0.5),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
        "eps_root": ({}, 0.0, 1e-2),
        "weight_decay": ({}, 1e-4, 0.1),
        "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        "nesterov": ({}, False, True),
    },
}
CONVENTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ARGUMENTS),
    ("sgd", {"momentum": 0.0}),
    ("rmsprop", {"momentum": 0.9, "nesterov": True, "learning_rate_first": False}),
    ("rmsprop", {"eps": 0.0}),
    ("rmsprop", {"centered": True, "bias_correction": True, "eps": 1e-2}),
    (
        "rmsprop",  # everything at once
        {
            "decay": 0.75,
            "eps": 0.03,
            "initial_scale": 0.5,
            "eps_in_sqrt": False,
            "centered": True,
            "momentum": 0.8,
            "nesterov": True,
            "bias_correction": True,
        },
    ),
    (  # PyTorch's
        "adagrad",
        {"initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False},
    ),
    ("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0}),
    ("adam", {"b1": 0.0}),
    ("adam", {"eps": 0.0, "nesterov": True}),
]
FAMILY = Family(optimizers, oracles, ARGUMENTS)
CASES, PAIRS = cases(FAMILY, CONVENTIONS), pairs(FAMILY)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=case_id)
def test_updates_in_float64_are_the_oracles(name, arguments):
    check_double(FAMILY, name, arguments)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=case_id)
def test_updates_in_lower_precision_are_the_oracles_rounded(name, arguments):
    check_single(FAMILY, name, arguments)


@pytest.mark.parametrize("name", FAMILY.names)
def test_every_argument_is_in_the_table(name):
    check_table(FAMILY, name)


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_every_argument_changes_the_updates(name, argument):
    check_argument(FAMILY, name, argument)


def steps_of(optimizer, gradient, steps=40, params=1.0):
    """Return parameters of shape (steps + 1,) under a constant gradient."""

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(params)
    _, visited = jax.lax.scan(body, (start, optimizer.init(start)), length=steps)
    return np.concatenate([[params], visited])


@pytest.mark.parametrize("gradient", [3e-4, -0.2, 1e5])
def test_adam_without_epsilon_steps_by_the_sign_of_a_constant_gradient(gradient):
    with x64():
        visited = steps_of(REGISTRY["adam"](0.1, eps=0.0), gradient)
    np.testing.assert_allclose(np.diff(visited), -0.1 * np.sign(gradient), rtol=1e-10)


def test_adagrad_steps_fall_with_the_root_of_time():
    adagrad = REGISTRY["adagrad"](0.1, initial_accumulator_value=0.0, eps=0.0)
    with x64():
        visited = steps_of(adagrad, 7.0)
    t = np.arange(1, 41)
    np.testing.assert_allclose(np.diff(visited), -0.1 / np.sqrt(t), rtol=1e-12)


def test_rmsprop_steps_fall_to_the_learning_rate():
    with x64():
        visited = steps_of(REGISTRY["rmsprop"](0.1, decay=0.9, eps=0.0), -2.0)
    t = np.arange(1, 41)
    np.testing.assert_allclose(np.diff(visited), 0.1 / np.sqrt(1 - 0.9**t), rtol=1e-12)


def test_adamw_without_gradients_shrinks_by_learning_rate_times_decay():
    with x64():
        visited = steps_of(REGISTRY["adamw"](0.1, weight_decay=0.2), 0.0)
    np.testing.assert_allclose(visited, (1 - 0.1 * 0.2) ** np.arange(41), rtol=1e-12)


def test_tuned_heavy_ball_converges_at_its_known_rate():
    A = jnp.asarray(problems.quadratic(np.array([1.0, 3.0, 10.0, 100.0])))
    kappa = 100.0
    rate = (kappa**0.5 - 1) / (kappa**0.5 + 1)
    optimizer = REGISTRY["momentum"]((2 / (100.0**0.5 + 1)) ** 2, momentum=rate**2)

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(A @ x, state, x)
        x = x + updates
        return (x, state), jnp.linalg.norm(x)

    x = jnp.ones(4)
    norms = jax.lax.scan(body, (x, optimizer.init(x)), length=60)[1]
    # Twice-repeated eigenvalues at both ends give t rate**t; hence the window.
    np.testing.assert_allclose((norms[59] / norms[29]) ** (1 / 30), rate, rtol=0.03)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("adam", {"learning_rate": 0.02}), ("momentum", {"learning_rate": 1e-3})],
    ids=case_id,
)
def test_rosenbrocks_minimum_is_found(name, arguments):
    optimizer = REGISTRY[name](**arguments)

    def body(carry, _):
        x, state = carry
        gradient = jax.grad(problems.rosenbrock)(x)
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), None

    x = jnp.array([-1.0, 1.0])
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), length=5000)
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-2)


def test_gradient_descent_under_noise_ends_on_its_noise_floor():
    optimizer = REGISTRY["sgd"](0.2)

    def body(carry, key):
        x, state = carry
        gradient = 3.0 * x + 0.5 * jax.random.normal(key, x.shape)
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), None

    x = jnp.zeros(20_000)
    keys = jax.random.split(jax.random.key(0), 50)
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), keys)
    floor = problems.noise_floor(3.0, 0.25, 0.2)
    # The relative error of a variance from n samples is sqrt(2 / n) = 1 %.
    np.testing.assert_allclose(jnp.mean(x**2), floor, rtol=0.04)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sgd", {"learning_rate": -0.1}, r"need 0.0 <= learning_rate <= inf.*-0.1"),
        ("sgd", {"momentum": 1.5}, r"<= momentum <= 1.0, got momentum=1.5"),
        ("rmsprop", {"momentum": 1.5}, r"<= momentum <= 1.0, got momentum=1.5"),
        ("sgd", {"nesterov": True}, "need a momentum to look ahead"),
        ("rmsprop", {"nesterov": True}, "need a momentum to look ahead"),
        ("rmsprop", {"decay": -0.1}, "need 0.0 <= decay <= 1.0"),
        ("rmsprop", {"decay": 1.0, "bias_correction": True}, "need decay < 1"),
        ("rmsprop", {"eps": -1.0, "centered": True}, "need 0.0 <= eps"),
        ("rmsprop", {"initial_scale": -1.0}, "need 0.0 <= initial_scale"),
        ("adagrad", {"eps": float("nan")}, "need 0.0 <= eps"),
        (
            "adagrad",
            {"initial_accumulator_value": -0.1},
            "need 0.0 <= initial_accumulator_value",
        ),
        ("adam", {"b1": 1.0}, "need b1 < 1 to correct for bias"),
        ("adam", {"b2": 2.0}, "need 0.0 <= b2 <= 1.0"),
        ("adam", {"eps_root": -1.0}, "need 0.0 <= eps_root"),
        ("adamw", {"weight_decay": float("nan")}, "weight_decay=nan"),
    ],
    ids=case_id,
)
def test_a_hyperparameter_out_of_range_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        REGISTRY[name](**{"learning_rate": 0.1, **arguments})


NUMBERS = (Hyper, Scalar, Hyper | None, Scalar | None)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_refusal_names_the_argument_that_the_caller_wrote(name):
    factory = REGISTRY[name]
    for argument, parameter in inspect.signature(factory).parameters.items():
        if parameter.annotation in NUMBERS:
            given = {"learning_rate": 0.1, argument: float("nan")}
            with pytest.raises(ValueError, match=f"need .*{argument}=nan"):
                factory(**given)

"""signSGD, Signum, Lion, Rprop, Adadelta and MADGRAD against their oracles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_signs
import pytest
from precision import x64
from trajectories import (
    REAL,
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
from fngrad.optimizers.adadelta import scale_by_adadelta
from fngrad.optimizers.lion import scale_by_lion
from fngrad.optimizers.madgrad import scale_by_madgrad
from fngrad.optimizers.rprop import scale_by_rprop
from fngrad.optimizers.sign_sgd import scale_by_sign
from fngrad.transforms.core import apply_updates, report
from fngrad.transforms.laws import check_transform

LR = (0.1, 0.03)
SIGNS = Family(
    optimizers,
    oracles_signs,
    {
        "sign_sgd": {"learning_rate": ({}, *LR)},
        "signum": {"learning_rate": ({}, *LR), "beta": ({}, 0.9, 0.5)},
        "lion": {
            "learning_rate": ({}, *LR),
            "b1": ({}, 0.9, 0.5),
            "b2": ({}, 0.99, 0.5),
            "weight_decay": ({}, 1e-3, 0.1),
            "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        },
        "rprop": {
            "learning_rate": ({}, *LR),
            "eta_minus": ({}, 0.5, 0.3),
            "eta_plus": ({}, 1.2, 1.5),
            "min_step_size": ({}, 1e-6, 0.04),
            "max_step_size": ({}, 50.0, 0.11),
        },
    },
    double=REAL,
)
STEP_SIZES = Family(
    optimizers,
    oracles_signs,
    {
        "adadelta": {
            "learning_rate": ({}, *LR),
            "rho": ({}, 0.9, 0.5),
            "eps": ({}, 1e-6, 1e-2),
            "weight_decay": ({}, 0.0, 0.1),
            "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        },
    },
)
# Without momentum an update is the difference of two distances from the start, each
# up to a hundred times as long.
DISTANCES = Family(
    optimizers,
    oracles_signs,
    {
        "madgrad": {
            "learning_rate": ({}, *LR),
            "momentum": ({}, 0.9, 0.5),
            "weight_decay": ({}, 0.0, 0.1),
            "eps": ({}, 1e-6, 1e-2),
            "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        },
    },
    single_tolerance=1e-4,
)
FAMILIES = (SIGNS, STEP_SIZES, DISTANCES)
CONVENTIONS: list[tuple[str, dict[str, Any]]] = [
    ("rprop", {"learning_rate": 1e-9}),  # below the smallest step size
    ("adadelta", {"learning_rate": 1.0, "rho": 0.95, "eps": 1e-7}),
    ("adadelta", {"eps": 0.0}),
    ("madgrad", {"momentum": 0.0}),
    ("madgrad", {"eps": 0.0}),
]
ROWS = [
    (family, name, arguments)
    for family in FAMILIES
    for name, arguments in cases(
        family,
        [(name, {}) for name in family.names]
        + [case for case in CONVENTIONS if case[0] in family.names],
    )
]
TABLES = [(family, name) for family in FAMILIES for name in family.names]
PAIRS = [(family, *pair) for family in FAMILIES for pair in pairs(family)]


def row_id(value: Any) -> str:
    return "" if isinstance(value, Family) else case_id(value)


@pytest.mark.parametrize(("family", "name", "arguments"), ROWS, ids=row_id)
def test_updates_in_float64_are_the_oracles(family, name, arguments):
    check_double(family, name, arguments)


@pytest.mark.parametrize(("family", "name", "arguments"), ROWS, ids=row_id)
def test_updates_in_lower_precision_are_the_oracles_rounded(family, name, arguments):
    check_single(family, name, arguments)


@pytest.mark.parametrize(("family", "name"), TABLES, ids=row_id)
def test_every_argument_is_in_the_table(family, name):
    check_table(family, name)


@pytest.mark.parametrize(("family", "name", "argument"), PAIRS, ids=row_id)
def test_every_argument_changes_the_updates(family, name, argument):
    check_argument(family, name, argument)


def falling(step):
    return 0.1 / (1.0 + step.astype(jnp.float32))


PARTS = {
    "scale_by_sign": scale_by_sign(),
    "scale_by_lion": scale_by_lion(falling, falling),
    "scale_by_rprop": scale_by_rprop(falling, max_step_size=falling),
    "scale_by_adadelta": scale_by_adadelta(falling),
    "scale_by_madgrad": scale_by_madgrad(falling, falling),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_laws_hold(name):
    check_transform(PARTS[name])


def descend(optimizer, curvature, steps):
    """Return losses of curvature x**2 / 2 from x = 1."""

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(curvature * x, state, x)
        x = apply_updates(x, updates)
        return (x, state), jnp.sum(curvature * x**2) / 2

    x = jnp.ones_like(curvature)
    return jax.lax.scan(body, (x, optimizer.init(x)), length=steps)[1]


def test_adadelta_descends_with_its_default_learning_rate():
    losses = descend(optimizers.adadelta(), jnp.array([1.0, 30.0]), 300)
    assert losses[0] < 15.5
    assert losses[-1] < 0.5


def test_rprop_finds_a_badly_scaled_minimum():
    losses = descend(optimizers.rprop(0.1), jnp.array([1e-4, 1.0, 1e4]), 150)
    assert losses[-1] < 1e-6


def test_a_changed_learning_rate_leaves_rprops_step_sizes_alone():
    params = jnp.ones(2)
    optimizer = optimizers.rprop(lambda t: jnp.where(t == 0, 0.1, jnp.nan))
    state = optimizer.init(params)
    for want in (0.1, 0.12):
        updates, state = optimizer.update(params, state, params)
        np.testing.assert_allclose(updates, -want * params, rtol=1e-6)


def test_madgrad_reports_the_learning_rate_in_force():
    params = jnp.ones(2)
    optimizer = optimizers.madgrad(falling)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    told = report(optimizer, params, state, params)
    np.testing.assert_allclose(told["scale_by_madgrad/learning_rate"], 0.05)


@pytest.mark.parametrize("name", ["scale_by_adadelta", "scale_by_madgrad"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_derivatives_at_zero_gradients_are_finite(name, eps):
    rule = {
        "scale_by_adadelta": scale_by_adadelta,
        "scale_by_madgrad": scale_by_madgrad,
    }
    arguments = (0.9, eps) if name == "scale_by_adadelta" else (0.1, 0.9, eps)
    optimizer = rule[name](*arguments)
    params = jnp.ones(2)

    def second_update(gradient):
        state = optimizer.init(params)
        _, state = optimizer.update(gradient, state, params)
        return optimizer.update(gradient, state, params)[0]

    assert np.all(np.isfinite(jax.jacobian(second_update)(jnp.zeros(2))))


@pytest.mark.parametrize("name", ["sign_sgd", "signum", "lion", "rprop"])
def test_complex_parameters_are_refused_by_their_path(name):
    params = {"z": jnp.ones(2, jnp.complex64)}
    with pytest.raises(TypeError, match=r"need real parameters for .* at 'z'"):
        getattr(optimizers, name)(0.1).init(params)


BAD = [
    (lambda: optimizers.rprop(0.1, eta_minus=1.5), r"eta_minus <= 1.0, got .*1.5"),
    (lambda: optimizers.rprop(0.1, eta_plus=0.5), r"1.0 <= eta_plus"),
    (lambda: optimizers.rprop(0.1, min_step_size=-1.0), r"0.0 <= min_step_size"),
    (lambda: optimizers.rprop(0.1, max_step_size=-1.0), r"0.0 <= max_step_size"),
    (lambda: optimizers.rprop(-0.1), r"0.0 <= learning_rate"),
    (lambda: optimizers.lion(0.1, b1=1.5), r"b1 <= 1.0"),
    (lambda: optimizers.lion(0.1, b2=-1.0), r"0.0 <= b2"),
    (lambda: optimizers.adadelta(rho=2.0), r"rho <= 1.0"),
    (lambda: optimizers.adadelta(eps=-1.0), r"0.0 <= eps"),
    (lambda: optimizers.madgrad(-0.1), r"0.0 <= learning_rate"),
    (lambda: optimizers.madgrad(0.1, momentum=2.0), r"momentum <= 1.0"),
    (lambda: optimizers.madgrad(0.1, eps=-1.0), r"0.0 <= eps"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=f"need .*{message}"):
        make()


@pytest.mark.parametrize("rule", [optimizers.rprop, optimizers.madgrad])
def test_a_missing_learning_rate_is_refused(rule):
    with pytest.raises(TypeError, match="need a learning_rate, got None"):
        rule(None)


def test_madgrads_first_step_is_its_closed_form():
    with x64():
        params, gradient = jnp.zeros(3), jnp.array([8.0, -1e-3, 2e5])
        optimizer = optimizers.madgrad(0.1, momentum=0.0, eps=0.0)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        want = -(0.1 ** (2 / 3)) * np.cbrt(gradient)
    np.testing.assert_allclose(updates, want, rtol=1e-13)

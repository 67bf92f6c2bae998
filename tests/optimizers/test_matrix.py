"""Muon, Shampoo and SOAP against their oracles, update by update.

Gradients are generic: where singular values are equal, zero or 1e12 apart, singular
vectors are rounding, and no two right answers agree.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles_matrix
import problems
import pytest
from precision import x64
from trajectories import assert_close, case_id, compiled, ulp, wide

import fngrad.optimizers as optimizers

STEPS = 25
FACTORIES = {
    "muon": optimizers.muon,
    "shampoo": optimizers.shampoo,
    "soap": optimizers.soap,
}
SHAPES = {"matrix": (4, 3), "tensor": (2, 3, 2), "vector": (2,)}
SINGLE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# In float32 what is weak along a statistic is known to its root's share of rounding.
TOLERANCE = {"float64": 1e-10, "float32": 2e-3}


def has_axes(path, leaf):
    return leaf.ndim > 1


LR = (0.1, 0.03)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
CUBIC = (1.5, -0.5, 0.0)
MATRIX = [[1.0, 2.0], [-3.0, 0.5], [0.25, -1.0]]
# (the other arguments, a value, another value), as in tests/support/trajectories.py.
ARGUMENTS: dict[str, dict[str, tuple[dict[str, Any], Any, Any]]] = {
    "muon": {
        "learning_rate": ({}, *LR),
        "ns_coeffs": ({}, COEFFICIENTS, CUBIC),
        "ns_steps": ({}, 5, 2),
        "beta": ({}, 0.95, 0.5),
        "eps": ({}, 1e-8, 0.5),
        "weight_decay": ({}, 0.0, 0.1),
        "mask": ({"weight_decay": 0.1, "matrices": has_axes}, None, "decayed/**"),
        "nesterov": ({}, True, False),
        "debias": ({}, True, False),
        "adaptive": ({}, False, True),
        "consistent_rms": ({}, None, 0.2),
        "ns_dtype": ({}, None, jnp.bfloat16),
        "matrices": ({}, None, has_axes),
        "adam_learning_rate": ({}, None, 0.03),
        "adam_b1": ({}, 0.9, 0.5),
        "adam_b2": ({}, 0.999, 0.9),
        "adam_eps_root": ({}, 0.0, 1e-2),
        "adam_weight_decay": ({}, 0.0, 0.1),
    },
    "shampoo": {
        "learning_rate": ({}, *LR),
        "b2": ({}, 1.0, 0.9),
        "eps": ({}, 1e-12, 1e-2),
        "weight_decay": ({}, 0.0, 0.1),
        "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        "update_every": ({"eps": 1e-2}, 1, 3),
        "max_size": ({}, 1024, 2),
        "momentum": ({}, None, 0.9),
        "nesterov": ({"momentum": 0.9}, False, True),
        "full_vectors": ({"eps": 1e-5}, False, True),
        "exponent": ({"eps": 1e-2}, 0.25, 0.1),
        "bias_correction": ({"b2": 0.9}, True, False),
        "graft": ({}, None, "sgd"),
    },
    "soap": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.95, 0.5),
        "b2": ({}, 0.95, 0.5),
        "shampoo_beta": ({"precondition_frequency": 2}, None, 0.5),
        "eps": ({}, 1e-8, 1e-2),
        "weight_decay": ({}, 0.01, 0.1),
        "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        "precondition_frequency": ({}, 10, 1),
        "max_precond_dim": ({}, 10000, 2),
        "precondition_1d": ({}, False, True),
        "skip_first": ({}, True, False),
    },
}
ROUNDED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ARGUMENTS),
    ("shampoo", {"graft": "diagonal", "b2": 0.9, "eps": 1e-2, "momentum": 0.9}),
    ("soap", {"precondition_frequency": 1, "skip_first": False}),
]
CONVENTIONS: list[tuple[str, dict[str, Any]]] = [
    *ROUNDED,
    ("muon", {"debias": False, "nesterov": False}),
    ("muon", {"debias": False, "consistent_rms": 0.2, "matrices": has_axes}),
    ("muon", {"ns_coeffs": (COEFFICIENTS, CUBIC, COEFFICIENTS), "ns_steps": 2}),
    ("shampoo", {"graft": "diagonal"}),
    ("shampoo", {"max_size": 0, "b2": 0.9}),
    ("soap", {"precondition_1d": True, "precondition_frequency": 1}),
]
UNKNOWN_TO_ORACLES = ("ns_dtype",)
PAIRS = [(name, row) for name in ARGUMENTS for row in ARGUMENTS[name]]
ROWS = [
    (name, {**ARGUMENTS[name][row][0], row: ARGUMENTS[name][row][2]})
    for name, row in PAIRS
    if row not in UNKNOWN_TO_ORACLES
]


class Visit(NamedTuple):
    """A leaf's gradients, the parameters visited and the updates made."""

    gradients: Any
    params: Any
    updates: Any


def trajectory(name, arguments, dtypes) -> dict[str, Visit]:
    """Return what happens to each leaf, by its path."""
    factory = FACTORIES[name]
    signature = inspect.signature(factory).parameters
    defaults = {k: p.default for k, p in signature.items() if k != "learning_rate"}
    arguments = {**defaults, **arguments}
    rates = problems.decaying(arguments.pop("learning_rate", 0.1), STEPS)
    floats = {k: v for k, v in arguments.items() if isinstance(v, float)}
    static = tuple((k, v) for k, v in arguments.items() if k not in floats)
    params, gradients = problem(dtypes)
    program = compiled(factory, static, dtypes is not SINGLE)
    visited, updates = program(floats, jnp.asarray(rates), params, gradients)
    return {
        f"{group}/{leaf}": Visit(
            *(t[group][leaf] for t in (gradients, visited, updates))
        )
        for group in params
        for leaf in params[group]
    }


def problem(dtypes):
    """Return parameters and generic gradients, in every shape and dtype."""
    rng = np.random.default_rng(0)
    params, gradients = {"decayed": {}, "rest": {}}, {"decayed": {}, "rest": {}}
    for dtype in dtypes:
        for shape_name, shape in SHAPES.items():
            group = "rest" if shape_name == "tensor" else "decayed"
            leaf = f"{shape_name} {dtype}"
            value, gradient = rng.normal(size=shape), rng.normal(size=(STEPS, *shape))
            if shape_name == "vector":
                # One vector's statistic is singular: epsilon must count beside it.
                gradient *= 1e-2
            params[group][leaf] = jnp.asarray(value, dtypes[dtype])
            gradients[group][leaf] = jnp.asarray(gradient, dtypes[dtype])
    return params, gradients


def expected(name, arguments, path, visit, dtype):
    """Ask the oracle, with hyperparameters as the program's precision holds them."""
    arguments = {
        k: float(dtype(v)) if isinstance(v, float) else v for k, v in arguments.items()
    }
    rates = problems.decaying(arguments.pop("learning_rate", 0.1), STEPS)
    if arguments.pop("mask", None) and path.startswith("rest"):
        arguments["weight_decay"] = 0.0
    if name == "muon":
        order = visit.params.ndim - 1
        takes_more = arguments.pop("matrices", None) is not None
        arguments["is_matrix"] = order > 1 if takes_more else order == 2
    oracle = getattr(oracles_matrix, name)
    gradients, params = wide(visit.gradients), wide(visit.params)
    return oracle(gradients, params, rates.astype(dtype), **arguments)


@pytest.mark.parametrize(("name", "arguments"), CONVENTIONS, ids=case_id)
def test_updates_in_float64_are_the_oracles(name, arguments):
    check_double(name, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), ROWS, ids=case_id)
def test_updates_with_each_argument_are_the_oracles(name, arguments):
    check_double(name, arguments)


def check_double(name, arguments):
    with x64():
        visits = trajectory(name, arguments, {"float64": jnp.float64})
        for path, visit in visits.items():
            want = expected(name, arguments, path, visit, np.float64)
            assert visit.updates.dtype == jnp.float64
            assert_close(visit.updates, want, TOLERANCE["float64"])


@pytest.mark.parametrize(("name", "arguments"), ROUNDED, ids=case_id)
def test_updates_in_lower_precision_are_the_oracles_rounded(name, arguments):
    for path, visit in trajectory(name, arguments, SINGLE).items():
        want = expected(name, arguments, path, visit, np.float32)
        rounded = want.astype(visit.updates.dtype)
        is_low = visit.updates.dtype == jnp.bfloat16
        slack = ulp(rounded) if is_low else 0.0
        assert_close(visit.updates, want, TOLERANCE["float32"], slack)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_argument_is_in_the_table(name):
    assert set(inspect.signature(FACTORIES[name]).parameters) == set(ARGUMENTS[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_every_argument_changes_the_updates(name, argument):
    context, value, other = ARGUMENTS[name][argument]
    with x64():
        first, second = (
            trajectory(name, {**context, argument: v}, {"float64": jnp.float64})
            for v in (value, other)
        )
    changes = [
        np.max(np.abs(wide(first[path].updates) - wide(second[path].updates)))
        for path in first
    ]
    assert max(changes) > 1e-4


def test_muon_in_bfloat16_is_near_muon_in_float32():
    low, full = (
        trajectory("muon", {"ns_dtype": dtype}, SINGLE)
        for dtype in (jnp.bfloat16, None)
    )
    leaf = "decayed/matrix float32"
    error = np.abs(wide(low[leaf].updates) - wide(full[leaf].updates))
    assert 1e-4 < np.max(error) < 0.1 * 0.1  # a tenth of the learning rate


def first_update(optimizer, gradient):
    params = jax.tree.map(jnp.zeros_like, gradient)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def polar(x):
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (2, 5)])
def test_one_step_of_shampoo_is_the_polar_factor_of_the_gradient(shape):
    gradient = np.random.default_rng(1).normal(size=shape)
    for b2 in (1.0, 0.9):
        with x64():
            optimizer = FACTORIES["shampoo"](1.0, b2=b2, eps=0.0)
            update = first_update(optimizer, jnp.asarray(gradient))
        np.testing.assert_allclose(update, -polar(gradient), rtol=1e-7, atol=1e-7)


def test_one_step_of_shampoo_on_a_vector_is_its_direction():
    gradient = jnp.array([3.0, -4.0])
    update = first_update(FACTORIES["shampoo"](1.0, full_vectors=True), gradient)
    np.testing.assert_allclose(update, [-0.6, 0.8], rtol=1e-3)


def test_shampoo_is_diagonal_adagrad_on_vectors():
    gradient = jnp.array([3.0, -4.0, 0.0])
    update = first_update(FACTORIES["shampoo"](1.0), gradient)
    np.testing.assert_allclose(update, [-1.0, 1.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_muon_does_not_see_the_size_of_gradients(scale):
    gradient = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
    muon = FACTORIES["muon"](0.1, eps=0.0)
    want, got = first_update(muon, gradient), first_update(muon, scale * gradient)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("skip_first", [False, True])
def test_soap_without_rotations_is_adamw(skip_first):
    gradients = problems.hard_gradients()
    arguments = {"weight_decay": 0.0, "skip_first": skip_first}
    optimizer = FACTORIES["soap"](0.1, **arguments)
    params, state = jnp.zeros(6), optimizer.init(jnp.zeros(6))
    for t, gradient in enumerate(gradients[:4]):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        if t == 0 and skip_first:
            np.testing.assert_array_equal(updates, 0)
    seen = gradients[1:4] if skip_first else gradients[:4]
    rates = np.full(len(seen), 0.1)
    want = oracles_matrix.oracles.adam(seen, seen, rates, b1=0.95, b2=0.95)
    np.testing.assert_allclose(updates, want[-1], rtol=1e-5)


def test_muon_hands_what_is_no_matrix_to_adamw():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2), "kernel": jnp.ones((2, 3, 2))}
    state = FACTORIES["muon"](0.1).init(params)["masked"]
    assert set(state["selected"]) >= {"scale_by_muon", "add_decayed_weights"}
    orthogonalized = state["selected"]["scale_by_muon"].mu
    rest = state["rest"]["scale_by_adam"].nu
    assert orthogonalized["b"] is None
    assert orthogonalized["kernel"] is None
    assert rest["w"] is None
    chosen = FACTORIES["muon"](0.1, matrices="kernel").init(params)["masked"]
    assert chosen["selected"]["scale_by_muon"].mu["kernel"].shape == (2, 3, 2)
    assert chosen["rest"]["scale_by_adam"].nu["w"].shape == (3, 2)


def test_a_tree_of_bools_says_what_decays_under_muon():
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones((2, 2)), "b": jnp.ones(2)}
    mask = {"w": True, "v": False, "b": False}
    optimizer = FACTORIES["muon"](0.1, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["v"], 0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("muon", {"beta": 1.0}, "need beta < 1 to correct for bias"),
        ("muon", {"eps": -1.0}, "need 0.0 <= eps"),
        ("muon", {"consistent_rms": -0.2}, "need 0.0 <= consistent_rms"),
        ("muon", {"ns_coeffs": (1.0, 2.0)}, "must have three coefficients per step"),
        ("muon", {"ns_coeffs": (COEFFICIENTS,)}, "need coefficients for ns_steps=5"),
        ("muon", {"ns_steps": -1}, "need an int ns_steps >= 0, got ns_steps=-1"),
        ("shampoo", {"b2": 1.5}, "need 0.0 <= b2 <= 1.0"),
        ("shampoo", {"eps": -1.0}, "need 0.0 <= eps"),
        ("shampoo", {"exponent": -0.5}, "need 0.0 <= exponent"),
        (
            "shampoo",
            {"update_every": 0},
            "need an int update_every >= 1, got update_every=0",
        ),
        (
            "shampoo",
            {"graft": "adam"},
            r"need graft to be one of \(None, .*'adam'",
        ),
        ("shampoo", {"momentum": 1.5}, "<= momentum <= 1.0"),
        ("shampoo", {"nesterov": True}, "need a momentum to look ahead"),
        ("soap", {"b1": 1.0}, "need b1 < 1"),
        ("soap", {"b2": -0.1}, "need 0.0 <= b2"),
        ("soap", {"shampoo_beta": 1.0}, "need shampoo_beta < 1"),
        ("soap", {"eps": -1e-8}, "need 0.0 <= eps"),
        (
            "soap",
            {"precondition_frequency": 0},
            "need an int precondition_frequency >= 1",
        ),
    ],
    ids=case_id,
)
def test_a_hyperparameter_out_of_range_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        FACTORIES[name](**{"learning_rate": 0.1, **arguments})


def test_muon_refuses_to_orthogonalise_a_vector():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"need leaves of two axes.*\(2,\) at 'b'"):
        FACTORIES["muon"](0.1, matrices="**").init(params)


@pytest.mark.parametrize("name", FACTORIES)
def test_complex_matrices_are_refused_by_their_path(name):
    params = {"w": jnp.ones((3, 2), jnp.complex64)}
    with pytest.raises(TypeError, match=r"need real parameters for scale_by_.*'w'"):
        FACTORIES[name](0.1).init(params)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0,)])
def test_a_leaf_without_entries_changes_nothing_for_the_others(name, shape):
    alone = {"w": jnp.asarray(MATRIX)}
    optimizer = FACTORIES[name](0.1)
    want, got = (
        optimizer.update(params, optimizer.init(params), params)[0]
        for params in (alone, {**alone, "empty": jnp.zeros(shape)})
    )
    assert got["empty"].shape == shape
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-7)

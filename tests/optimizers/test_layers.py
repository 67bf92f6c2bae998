"""LARS, LAMB, NovoGrad, Adafactor and SM3 against their oracles, and leaf by leaf."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_layers
import pytest
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
import fngrad.tree as tree
from fngrad.optimizers.adafactor import scale_by_factored_rms
from fngrad.optimizers.lars import scale_by_lars
from fngrad.optimizers.novograd import scale_by_block_norm
from fngrad.optimizers.sm3 import scale_by_sm3
from fngrad.transforms.blocks import clip_by_block_rms, scale_by_param_block_rms
from fngrad.transforms.core import chain, report
from fngrad.transforms.laws import check_transform
from fngrad.transforms.trust_ratio import scale_by_trust_ratio
from fngrad.tree import Stacked


def nowhere(path, leaf):
    return False


# The gradients' norm is 1e6 (1e3 in float16): what is added to it must be as large.
LR = (0.1, 0.03)
NORMS = Family(
    optimizers,
    oracles_layers,
    {
        "lars": {
            "learning_rate": ({}, *LR),
            "weight_decay": ({}, 0.0, 1e5),
            "mask": ({"weight_decay": 1e5}, None, "decayed/**"),
            "trust_coefficient": ({}, 0.001, 0.1),
            "eps": ({}, 0.0, 1e5),
            "trust_ratio_mask": ({}, None, nowhere),
            "momentum": ({}, 0.9, 0.5),
            "nesterov": ({}, False, True),
            "separate_norms": ({"weight_decay": 1e5}, False, True),
        },
        "lamb": {
            "learning_rate": ({}, *LR),
            "b1": ({}, 0.9, 0.5),
            "b2": ({}, 0.999, 0.9),
            "eps": ({}, 1e-6, 1e-2),
            "eps_root": ({}, 0.0, 1e-2),
            "weight_decay": ({}, 0.0, 0.1),
            "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
            "decay_outside": ({"weight_decay": 0.1}, False, True),
        },
        "novograd": {
            "learning_rate": ({}, *LR),
            "b1": ({}, 0.9, 0.5),
            "b2": ({}, 0.25, 0.9),
            "eps": ({}, 1e-6, 1e5),
            "eps_root": ({}, 0.0, 1e10),
            "weight_decay": ({}, 0.0, 0.1),
            "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        },
    },
)
SMALL = {"min_dim_size_to_factor": 1}
FACTORS = Family(
    optimizers,
    oracles_layers,
    {
        "adafactor": {
            "learning_rate": ({}, *LR),
            "min_dim_size_to_factor": ({}, 128, 2),
            "decay_rate": (SMALL, 0.8, 0.5),
            "decay_offset": (SMALL, 0, 5),
            "multiply_by_parameter_scale": (SMALL, True, False),
            "clipping_threshold": (SMALL, 1.0, 0.3),
            "momentum": (SMALL, None, 0.9),
            "weight_decay_rate": (SMALL, None, 0.1),
            "eps": (SMALL, 1e-30, 1e-2),
            "factored": (SMALL, True, False),
            "mask": ({**SMALL, "weight_decay_rate": 0.1}, None, "decayed/**"),
            "min_scale": (SMALL, 1e-3, 3.0),
            "relative_step": ({**SMALL, "learning_rate": 3.0}, False, True),
            "factored_dims": (SMALL, "largest", "last"),
        },
        "sm3": {
            "learning_rate": ({}, *LR),
            "momentum": ({}, 0.9, None),
            "eps": ({}, 1e-8, 1e-2),
            "variant": ({}, "II", "I"),
        },
    },
    shape=(3, 1, 2),
)
CONVENTIONS: list[tuple[str, dict[str, Any]]] = [
    ("novograd", {"eps": 0.0}),
    ("lars", {"weight_decay": 1e5, "separate_norms": True, "nesterov": True}),
    ("adafactor", SMALL),
    (
        "adafactor",
        {**SMALL, "clipping_threshold": None, "multiply_by_parameter_scale": False},
    ),
    ("sm3", {"momentum": 0.5, "eps": 0.0}),
]
FAMILIES = (NORMS, FACTORS)
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
    "clip_by_block_rms": clip_by_block_rms(0.5),
    "scale_by_param_block_rms": scale_by_param_block_rms(),
    "scale_by_block_norm": scale_by_block_norm(falling),
    "scale_by_factored_rms": scale_by_factored_rms(True, falling, 0, 2),
    "scale_by_sm3": scale_by_sm3(falling),
    "scale_by_trust_ratio": scale_by_trust_ratio(eps=falling, mask="**/weight"),
    "scale_by_lars": scale_by_lars(falling, "**/weight", separate_norms=True),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_laws_hold(name):
    check_transform(PARTS[name])


STACKABLE = {
    **{name: part for name, part in PARTS.items() if "weight" not in name},
    "scale_by_trust_ratio": scale_by_trust_ratio(),
    "scale_by_lars": scale_by_lars(0.1, separate_norms=True),
    "scale_by_sm3 I": scale_by_sm3(variant="I"),
    "adafactor": optimizers.adafactor(0.1, 1, momentum=0.9, weight_decay_rate=0.1),
    "novograd": optimizers.novograd(0.1),
    "lamb": optimizers.lamb(0.1),
}


def three_updates(transform, params, gradients):
    state, visited = transform.init(params), []
    for scale in (1.0, -0.5, 2.0):
        updates, state = transform.update(tree.scale(scale, gradients), state, params)
        visited.append(updates)
    return visited


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_of_leaves_moves_as_its_leaves_do_alone(name):
    rows = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    gradients = jnp.cos(rows)
    alone = three_updates(STACKABLE[name], list(rows), list(gradients))
    stacked = three_updates(STACKABLE[name], Stacked(rows), Stacked(gradients))
    for want, got in zip(alone, stacked, strict=True):
        np.testing.assert_allclose(got.leaves, jnp.stack(want), rtol=2e-6)


def first_update(transform, gradient, params):
    return transform.update(gradient, transform.init(params), params)[0]


@pytest.mark.parametrize("rule", [scale_by_trust_ratio, scale_by_lars])
@pytest.mark.parametrize(("gradient", "param"), [(2.0, 0.0), (0.0, 3.0), (0.0, 0.0)])
def test_the_trust_ratio_is_one_where_a_norm_is_zero(rule, gradient, param):
    gradients, params = jnp.full(2, gradient), jnp.full(2, param)
    np.testing.assert_array_equal(first_update(rule(), gradients, params), gradients)
    slopes = jax.jacobian(functools.partial(first_update, rule()))(gradients, params)
    assert np.all(np.isfinite(slopes))


def test_larss_two_forms_differ_where_gradient_and_parameters_do_not_align():
    params, gradient = jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])
    for separate, length in ((False, 5.0), (True, 7.0)):
        rule = scale_by_lars(1.0, trust_coefficient=1.0, separate_norms=separate)
        want = 3.0 / length * jnp.array([3.0, 4.0])
        got = first_update(rule, gradient, params)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_norms_are_of_each_leaf_not_of_all():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([100.0])}
    gradients = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([-4.0])}
    updates = first_update(scale_by_trust_ratio(), gradients, params)
    np.testing.assert_allclose(updates["a"], [0.0, 5.0])
    np.testing.assert_allclose(updates["b"], [-100.0])
    updates = first_update(scale_by_block_norm(eps=0.0), gradients, params)
    np.testing.assert_allclose(updates["a"], [0.0, 1.0])
    np.testing.assert_allclose(updates["b"], [-1.0])


@pytest.mark.parametrize(
    ("rule", "argument"),
    [(scale_by_trust_ratio, "mask"), (scale_by_lars, "trust_ratio_mask")],
)
def test_a_leaf_outside_the_trust_mask_passes_unchanged(rule, argument):
    params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([100.0])}
    gradients = {"w": jnp.array([0.0, 2.0]), "b": jnp.array([-4.0])}
    transform = rule(trust_coefficient=0.5, **{argument: "w"})
    updates = first_update(transform, gradients, params)
    np.testing.assert_allclose(updates["w"], [0.0, 2.5])
    np.testing.assert_array_equal(updates["b"], gradients["b"])
    told = report(transform, gradients, transform.init(params), params)
    assert [float(ratio) for ratio in told.values()] == [1.25, 1.25]


def test_the_extreme_trust_ratios_can_be_read():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([8.0]), "c": jnp.zeros(2)}
    gradients = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([-4.0]), "c": jnp.ones(2)}
    for rule in (scale_by_trust_ratio(), scale_by_lars(0.0, trust_coefficient=1.0)):
        told = report(rule, gradients, rule.init(params), params)
        assert sorted(map(float, told.values())) == [1.0, 2.5]
    nothing = scale_by_trust_ratio(mask=nowhere)
    told = report(nothing, gradients, nothing.init(params), params)
    assert set(map(float, told.values())) == {1.0}


def test_a_smallest_norm_lets_zero_parameters_move_in_proportion():
    rule = scale_by_trust_ratio(min_norm=0.1)
    got = first_update(rule, jnp.array([0.0, 2.0]), jnp.zeros(2))
    np.testing.assert_allclose(got, [0.0, 0.1], rtol=1e-6)


def test_a_factored_leaf_keeps_its_rows_and_columns_alone():
    params = {"matrix": jnp.ones((5, 2, 4)), "bias": jnp.ones(4)}
    for kind, row, column in (("largest", (2, 4), (5, 2)), ("last", (5, 2), (5, 4))):
        rule = scale_by_factored_rms(min_dim_size_to_factor=2, factored_dims=kind)
        state = rule.init(params)["scale_by_factored_rms"]
        assert state.nu["matrix"] is None
        assert state.nu["bias"].shape == (4,)
        assert state.factors["bias"] is None
        shapes = {f.shape for f in state.factors["matrix"]}
        assert shapes == {row, column}, kind


def test_a_square_of_rank_one_is_factored_without_loss():
    gradient = jnp.outer(jnp.array([1e-9, 3.0, 2e4]), jnp.array([-2.0, 1e-6]))
    rule = scale_by_factored_rms(min_dim_size_to_factor=1)
    got = first_update(rule, gradient, jnp.ones((3, 2)))
    np.testing.assert_allclose(got, jnp.sign(gradient), rtol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-30])
@pytest.mark.parametrize("name", ["factored", "full", "sm3", "block"])
def test_zero_gradients_and_zero_rows_give_finite_updates_and_derivatives(name, eps):
    rule = {
        "factored": scale_by_factored_rms(min_dim_size_to_factor=1, epsilon=eps),
        "full": scale_by_factored_rms(epsilon=eps),
        "sm3": chain(scale_by_sm3(eps), clip_by_block_rms(1.0)),
        "block": scale_by_block_norm(eps=eps),
    }[name]
    step = functools.partial(first_update, rule, params=jnp.ones((2, 3)))
    slopes_at = jax.jit(jax.jacobian(step))
    for gradient in (jnp.zeros((2, 3)), jnp.ones((2, 3)).at[1].set(0.0)):
        updates = step(gradient)
        assert np.all(np.isfinite(updates))
        np.testing.assert_array_equal(updates[gradient == 0], 0.0)
        assert np.all(np.isfinite(slopes_at(gradient)))


def test_adafactor_without_a_learning_rate_takes_the_papers():
    params = jnp.array([1.0, -2.0])
    paper = optimizers.adafactor()
    relative = optimizers.adafactor(1e-2, relative_step=True)
    got, want = (three_updates(f, params, params) for f in (paper, relative))
    np.testing.assert_array_equal(got, want)
    told = report(paper, params, paper.init(params), params)
    np.testing.assert_allclose(told["scale_by_learning_rate/learning_rate"], 1e-2)


def test_sm3_bounds_the_sum_of_squares_from_above_and_the_second_bound_is_tighter():
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(size=(6, 4, 3)), jnp.float32)
    sums = jnp.sum(gradients**2, axis=0)
    bounds = []
    for variant in ("II", "I"):
        rule = scale_by_sm3(0.0, variant=variant)
        state = rule.init(gradients[0])
        for gradient in gradients:
            updates, state = rule.update(gradient, state, gradient)
        bounds.append((gradients[-1] / updates) ** 2)
    assert np.all(sums <= bounds[0] * (1 + 1e-5))
    assert np.all(bounds[0] <= bounds[1] * (1 + 1e-5))
    assert np.any(bounds[0] < 0.9 * bounds[1])


MISSING = {"w": jnp.ones(2)}
BAD = [
    (lambda: scale_by_trust_ratio(min_norm=-1.0), r"0.0 <= min_norm"),
    (lambda: scale_by_trust_ratio(trust_coefficient=-1.0), r"0.0 <= trust_coeff"),
    (lambda: scale_by_trust_ratio(eps=-1.0), r"0.0 <= eps"),
    (lambda: scale_by_trust_ratio(mask="x").init(MISSING), r"selects.*'x'.*\['w'\]"),
    (lambda: optimizers.lars(0.1, 0.1, "x").init(MISSING), r"selects.*'x'.*\['w'\]"),
    (
        lambda: optimizers.lars(0.1, trust_ratio_mask="x").init(MISSING),
        r"selects.*'x'.*\['w'\]",
    ),
    (lambda: optimizers.lars(0.1, trust_coefficient=-1.0), r"0.0 <= trust_coeff"),
    (lambda: optimizers.lars(0.1, eps=-1.0), r"0.0 <= eps"),
    (lambda: optimizers.lars(0.1, weight_decay=float("nan")), r"<= weight_decay"),
    (lambda: optimizers.novograd(0.1, b2=1.5), r"b2 <= 1.0"),
    (lambda: optimizers.novograd(0.1, eps=-1.0), r"0.0 <= eps"),
    (lambda: optimizers.novograd(0.1, eps_root=-1.0), r"0.0 <= eps_root"),
    (lambda: clip_by_block_rms(0.0), r"threshold > 0, got threshold=0.0"),
    (lambda: optimizers.adafactor(-0.1), r"0.0 <= learning_rate"),
    (lambda: optimizers.adafactor(decay_rate=-1.0), r"0.0 <= decay_rate"),
    (lambda: optimizers.adafactor(decay_offset=-1), r"0.0 <= decay_offset"),
    (lambda: optimizers.adafactor(eps=-1.0), r"0.0 <= eps "),
    (lambda: optimizers.adafactor(min_scale=-1.0), r"0.0 <= min_scale"),
    (lambda: optimizers.adafactor(mask="w"), r"weight_decay_rate to mask.*'w'"),
    (
        lambda: optimizers.adafactor(factored_dims="first"),
        r"\('largest', 'last'\), got factored_dims='first'",
    ),
    (lambda: optimizers.sm3(0.1, eps=-1.0), r"0.0 <= eps"),
    (lambda: optimizers.sm3(0.1, variant="III"), r"\('I', 'II'\), got variant='III'"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=f"need .*{message}"):
        make()

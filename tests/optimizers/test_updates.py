"""The updates of every optimizer are its oracle's, with every argument."""

import inspect

import families_adamw_kin
import families_first_order
import families_layers
import families_matrix
import families_moments
import families_muon
import families_parameter_free
import families_signs
import pytest
from trajectories import DECAY, case_id

from fngrad.optimizers import REGISTRY

FAMILIES = (
    *families_first_order.FAMILIES,
    *families_moments.FAMILIES,
    *families_adamw_kin.FAMILIES,
    *families_signs.FAMILIES,
    *families_layers.FAMILIES,
    *families_matrix.FAMILIES,
    *families_muon.FAMILIES,
    *families_parameter_free.FAMILIES,
)
FAMILY_OF = {name: family for family in FAMILIES for name in family.arguments}


def rows(family, cases):
    return [
        pytest.param(*case, marks=[pytest.mark.slow] * is_slow(family, *case))
        for case in cases
    ]


def is_slow(family, name, case):
    """Return whether a row is slow; a shared mask is fast for sgd alone."""
    shares = family.arguments[name].get("mask") is DECAY["mask"] and name != "sgd"
    return family.slow_rows or (shares and "mask" in case)


CASES = [
    case
    for family in FAMILIES
    for case in (*family.named_cases, *rows(family, family.row_cases))
]
SINGLE_CASES = [
    case
    for family in FAMILIES
    for case in (
        *family.single_cases,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in family.single_rows),
    )
]
PAIRS = [pair for family in FAMILIES for pair in rows(family, family.pairs)]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=case_id)
def test_updates_in_float64_are_the_oracles(name, arguments):
    FAMILY_OF[name].check_double(name, arguments)


@pytest.mark.parametrize(("name", "arguments"), SINGLE_CASES, ids=case_id)
def test_updates_in_lower_precision_are_the_oracles_rounded(name, arguments):
    FAMILY_OF[name].check_single(name, arguments)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_argument_is_in_the_table(name):
    parameters = inspect.signature(REGISTRY[name]).parameters
    assert set(parameters) == set(FAMILY_OF[name].arguments[name])


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_every_argument_changes_the_updates(name, argument):
    FAMILY_OF[name].check_argument(name, argument)

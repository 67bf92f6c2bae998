"""Muon's relatives and their arguments, compared matrix by matrix."""

from fractions import Fraction

import jax.numpy as jnp
import oracles_muon
from families_matrix import COEFFICIENTS, CUBIC, MatrixFamily, has_axes
from trajectories import LR, Case, Rows

import fngrad as fg

SPECTRAL: Rows = {
    "learning_rate": ({}, *LR),
    "ns_coeffs": ({}, COEFFICIENTS, CUBIC),
    "ns_steps": ({}, 5, 2),
    "beta": ({}, 0.95, 0.5),
    "eps": ({}, 1e-8, 0.5),
    "nesterov": ({}, False, True),
    "ns_dtype": ({}, None, jnp.bfloat16),
}
DECAY: Rows = {
    "weight_decay": ({}, 0.0, 0.1),
    "mask": ({"weight_decay": 0.1, "matrices": has_axes}, None, "decayed/**"),
}
GROUPS: Rows = {
    "matrices": ({}, None, has_axes),
    "rest": ({}, None, fg.sgd(0.1)),
}
RMS: Rows = {"consistent_rms": ({}, 0.2, 0.5)}
HALF = Fraction(1, 2)  # determines shapes: not a float, which the tests pass as data


def balls(norm):
    return (("**/vector*", "rms", 3.0), ("**", norm, 2.0))


ARGUMENTS: dict[str, Rows] = {
    "normuon": {**SPECTRAL, **DECAY, **GROUPS, **RMS, "beta2": ({}, 0.95, 0.5)},
    "adamuon": {**SPECTRAL, **DECAY, **GROUPS, **RMS},
    "muonh": {**SPECTRAL, **GROUPS},
    "adamh": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.9, 0.5),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 0.5),
        "eps_root": ({}, 0.0, 0.5),
        "nesterov": ({}, False, True),
        **GROUPS,
    },
    "scion": {
        **{k: row for k, row in SPECTRAL.items() if k != "nesterov"},
        "balls": ({}, (("**", "auto", 1.0),), balls("sign")),
        "constrained": ({}, True, False),
    },
    "dion": {
        "learning_rate": ({}, *LR),
        "rank_fraction": ({}, 1, HALF),
        "beta": ({}, 0.95, 0.5),
        "key": ({"rank_fraction": HALF}, 0, 1),
        **DECAY,
        **GROUPS,
    },
}
CONVENTIONS: list[Case] = [
    ("normuon", {"consistent_rms": None, "nesterov": True, "beta2": 0.5}),
    *(("scion", {"balls": balls(n)}) for n in ("image", "column", "row")),
    ("scion", {"balls": balls("one_hot_sign"), "constrained": False}),
    ("scion", {"balls": balls("rms")}),
]
FAMILY = MatrixFamily(
    oracles_muon,
    ARGUMENTS,
    CONVENTIONS,
    tolerance=1e-10,
    single_tolerance=2e-3,  # as in `families_matrix`
    without_oracle=("ns_dtype", "rest"),
    slow_rows=True,
)
FAMILIES = (FAMILY,)

"""Muon, Shampoo, SOAP and Kron and their arguments, compared matrix by matrix.

Gradients are generic: where singular values are equal, zero or 1e12 apart, rounding
determines the singular vectors, and correct results differ.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import oracles_matrix
from float64_mode import x64
from trajectories import (
    LR,
    STEPS,
    Arguments,
    Case,
    Family,
    Rows,
    Visit,
    assert_close,
    in_dtype,
    ulp,
    wide,
)

SHAPES = {"matrix": (4, 3), "tensor": (2, 3, 2), "vector": (2,)}
DOUBLE = {"float64": jnp.float64}
SINGLE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def has_axes(path, leaf):
    return leaf.ndim > 1


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
CUBIC = (1.5, -0.5, 0.0)
ARGUMENTS: dict[str, Rows] = {
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
        "cautious_weight_decay": ({"weight_decay": 0.1}, False, True),
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
ARGUMENTS["kron"] = {
    "learning_rate": ({}, *LR),
    "b1": ({}, 0.9, 0.5),
    "weight_decay": ({}, 0.0, 0.1),
    "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
    "preconditioner_update_probability": ({}, None, 0.3),
    "max_size_triangular": ({}, 8192, 3),
    "min_ndim_triangular": ({}, 2, 3),
    "memory_save_mode": ({}, None, "one_diag"),
    "momentum_into_precond_update": ({}, True, False),
    "precond_lr": ({}, 0.1, 0.3),
    "precond_init_scale": ({}, 1.0, 0.1),
    "key": ({}, 0, 1),
}
ROUNDED: list[Case] = [
    ("shampoo", {"graft": "diagonal", "b2": 0.9, "eps": 1e-2, "momentum": 0.9}),
    ("soap", {"precondition_frequency": 1, "skip_first": False}),
]
CONVENTIONS: list[Case] = [
    *ROUNDED,
    ("muon", {"debias": False, "nesterov": False}),
    ("muon", {"cautious_weight_decay": True, "weight_decay": 0.1}),
    ("muon", {"debias": False, "consistent_rms": 0.2, "matrices": has_axes}),
    ("muon", {"ns_coeffs": (COEFFICIENTS, CUBIC, COEFFICIENTS), "ns_steps": 2}),
    ("shampoo", {"graft": "diagonal"}),
    ("shampoo", {"max_size": 0, "b2": 0.9}),
    ("soap", {"precondition_1d": True, "precondition_frequency": 1}),
    ("kron", {"memory_save_mode": "all_diag", "precond_lr": 0.5}),
    ("kron", {"min_ndim_triangular": 1}),
]


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
                # The statistic of one vector is singular: epsilon must show in it.
                gradient *= 1e-2
            params[group][leaf] = jnp.asarray(value, dtypes[dtype])
            gradients[group][leaf] = jnp.asarray(gradient, dtypes[dtype])
    return params, gradients


class MatrixFamily(Family):
    """Optimizers that are compared on matrices, tensors and vectors."""

    @property
    def single_cases(self) -> list[Case]:
        return [(name, {}) for name in self.arguments] + ROUNDED

    @property
    def single_rows(self) -> list[Case]:
        return []

    def check_double(self, name: str, arguments: Arguments) -> None:
        with x64():
            visits = self.trajectory(name, arguments, DOUBLE)
            for path, visit in visits.items():
                want = self.expected(name, arguments, path, visit, np.float64)
                assert visit.updates.dtype == jnp.float64
                assert_close(visit.updates, want, self.tolerance)

    def check_single(self, name: str, arguments: Arguments) -> None:
        for path, visit in self.trajectory(name, arguments, SINGLE).items():
            want = self.expected(name, arguments, path, visit, np.float32)
            rounded = want.astype(visit.updates.dtype)
            is_low = visit.updates.dtype == jnp.bfloat16
            slack = ulp(rounded) if is_low else 0.0
            assert_close(visit.updates, want, self.single_tolerance, slack)

    def check_argument(self, name: str, argument: str) -> None:
        context, value, other = self.arguments[name][argument]
        with x64():
            first, second = (
                self.trajectory(name, {**context, argument: v}, DOUBLE)
                for v in (value, other)
            )
        changes = [
            np.max(np.abs(wide(first[path].updates) - wide(second[path].updates)))
            for path in first
        ]
        assert max(changes) > 1e-4

    def trajectory(
        self, name: str, arguments: Arguments, dtypes: dict[str, Any]
    ) -> dict[str, Visit]:
        params, gradients = problem(dtypes)
        double = dtypes is not SINGLE
        visited, updates = self.run(name, arguments, params, gradients, double)
        return {
            f"{group}/{leaf}": Visit(
                *(t[group][leaf] for t in (gradients, visited, updates))
            )
            for group in params
            for leaf in params[group]
        }

    def expected(
        self, name: str, arguments: Arguments, leaf: str, visit: Visit, dtype: Any
    ) -> np.ndarray:
        rates, arguments = self.rates(name, arguments)
        arguments = {k: in_dtype(v, dtype) for k, v in arguments.items()}
        if arguments.pop("mask", None) and leaf.startswith("rest"):
            arguments["weight_decay"] = 0.0
        if "matrices" in self.arguments[name]:
            order = visit.params.ndim - 1
            takes_more = arguments.pop("matrices", None) is not None
            arguments["is_matrix"] = order > 1 if takes_more else order == 2
        oracle = getattr(self.oracles, name)
        gradients, params = wide(visit.gradients), wide(visit.params)
        return oracle(gradients, params, rates.astype(dtype), **arguments)


FAMILY = MatrixFamily(
    oracles_matrix,
    ARGUMENTS,
    CONVENTIONS,
    tolerance=1e-10,
    # The root of a statistic amplifies rounding along its weak directions.
    single_tolerance=2e-3,
    without_oracle=("ns_dtype",),
    slow_rows=True,
)
FAMILIES = (FAMILY,)

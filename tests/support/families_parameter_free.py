"""Schedule-free and learning-rate-free rules and their arguments, on whole trees.

Norms and products are taken over all leaves, and updates are differences of large
numbers, so all leaves are compared at once, with slack for rounding of the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles_parameter_free
import problems
from float64_mode import x64
from trajectories import (
    STEPS,
    Arguments,
    Case,
    Family,
    Rows,
    Visit,
    defaults,
    in_dtype,
    ulp,
    wide,
)

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


def decay(**context: Any) -> Rows:
    return {
        "weight_decay": (context, 0.0, 0.1),
        "mask": ({"weight_decay": 0.1, **context}, None, "decayed/**"),
    }


ARGUMENTS: dict[str, Rows] = {
    "schedule_free_sgd": {**AVERAGE, **decay()},
    "schedule_free_adamw": {
        **AVERAGE,
        **decay(),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
    },
    "schedule_free_radam": {
        "learning_rate": AVERAGE["learning_rate"],
        "b1": AVERAGE["b1"],
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
        **decay(),
        "weight_lr_power": ({}, 2.0, 0.0),
        "silent_sgd_phase": ({}, True, False),
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
CONVENTIONS: list[Case] = [
    ("schedule_free_sgd", {"b1": 0.0}),
    ("schedule_free_sgd", {"b1": 1.0}),
    ("schedule_free_adamw", {"eps": 0.0, "warmup_steps": 5, "b2": 0.9}),
    ("schedule_free_radam", {"b2": 0.6, "weight_decay": 0.1}),  # never rectified
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


def assert_close(got, want, params, tolerance, slack=0.0):
    """Compare relative to each entry, its column and the parameters' column."""
    scale = np.abs(want) + 0.1 * np.max(np.abs(want), axis=0)
    scale = scale + 0.1 * np.max(np.abs(wide(params)), axis=0)
    excess = np.abs(wide(got) - want) - tolerance * scale - slack
    assert np.all(excess <= 0), f"step {np.argmax(np.max(excess, 1))}: {got=} {want=}"


class TreeFamily(Family):
    """Optimizers that combine all leaves: trajectories are rows of six entries."""

    def check_double(self, name: str, arguments: Arguments) -> None:
        with x64():
            visit = self.visit(name, arguments, jnp.float64, double=True)
        want, _ = self.whole(name, arguments, visit)
        assert visit.updates.dtype == np.float64
        atol = 4e-15 * np.abs(visit.params).max()
        np.testing.assert_allclose(visit.updates, want, rtol=1e-10, atol=atol)

    def check_single(self, name: str, arguments: Arguments) -> None:
        # The laws compare narrow updates with float32 for the other arguments.
        narrow = [] if arguments else [(jnp.float16,) * 2, (jnp.bfloat16, jnp.float32)]
        for dtype, gradient_dtype in [(jnp.float32,) * 2, *narrow]:
            visit = self.visit(name, arguments, dtype, gradient_dtype)
            _, params, got = visit
            want, _ = self.whole(name, arguments, visit, np.float32)
            assert got.dtype == dtype
            if dtype == jnp.float32:
                assert_close(got, want, params, 1e-5)
            else:
                assert_close(got, wide(want.astype(got.dtype)), params, 1e-5, ulp(got))

    def check_argument(self, name: str, argument: str) -> None:
        context, value, other = self.arguments[name][argument]
        with x64():
            first, second = (
                self.visit(
                    name, {**context, argument: v}, jnp.float64, double=True
                ).updates
                for v in (value, other)
            )
        assert not np.allclose(wide(first), wide(second), rtol=1e-3, atol=1e-12)

    def visit(
        self,
        name: str,
        arguments: Arguments,
        dtype: Any,
        gradient_dtype: Any = None,
        double: bool = False,
    ) -> Visit:
        """Return gradients, parameters and updates as rows of six."""
        params = tree_of(np.linspace(-2, 2, 6), dtype)
        given = tree_of(gradients(), gradient_dtype or dtype, (STEPS,))
        params, updates = self.run(name, arguments, params, given, double)
        return Visit(rows_of(given), rows_of(params), rows_of(updates))

    def whole(
        self, name: str, arguments: Arguments, visit: Visit, dtype: Any = float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the oracle's updates, and its estimates or points."""
        rates, arguments = self.rates(name, {**defaults(name), **arguments})
        arguments = {k: in_dtype(v, dtype) for k, v in arguments.items()}
        if arguments.pop("mask", None):
            arguments["weight_decay"] = arguments["weight_decay"] * DECAYED
        if arguments.pop("layerwise", False):
            arguments["blocks"] = BLOCKS
        oracle = getattr(self.oracles, name)
        given, params = wide(visit.gradients), wide(visit.params)
        return oracle(given, params, rates.astype(dtype), **arguments)


# DoG's average is only its evaluation point.
FAMILY = TreeFamily(
    oracles_parameter_free, ARGUMENTS, CONVENTIONS, silent=("averaging",)
)
FAMILIES = (FAMILY,)

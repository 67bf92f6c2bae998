"""AdamW's kin since 2020 and their arguments."""

import oracles_adamw_kin
from families_moments import ADAM, MASK
from trajectories import Case, Family, Rows

DECAY: Rows = {"weight_decay": ({}, 0.0, 0.1), "mask": MASK}
LAST: Rows = {name: ADAM[name] for name in ("learning_rate", "b1", "b2", "eps")}
ARGUMENTS: dict[str, Rows] = {
    "laprop": {**ADAM, "eps": ({}, 1e-15, 1e-2), **DECAY},
    "simplified_ademamix": {**ADAM, "alpha": ({}, 0.0, 5.0), **DECAY},
    "mars": {
        **LAST,
        **DECAY,
        "gamma": ({}, 0.025, 0.5),
        "max_norm": ({}, 1.0, 1e5),
    },
    "stable_adamw": {
        **LAST,
        **DECAY,
        "eps": ({}, 1e-6, 1e-2),
        "clipping_threshold": ({}, 1.0, 0.5),
    },
}
CONVENTIONS: list[Case] = [
    ("laprop", {"eps": 0.0}),
    ("laprop", {"b1": 0.0}),
    ("simplified_ademamix", {"b1": 1.0, "alpha": -1.0}),
    ("mars", {"max_norm": float("inf"), "eps": 0.0}),
    ("stable_adamw", {"clipping_threshold": float("inf"), "weight_decay": 0.1}),
]
FACTORED = Family(
    oracles_adamw_kin,
    {
        "came": {
            **LAST,
            **DECAY,
            "eps": ({}, 1e-30, 1e-2),
            "b3": ({}, 0.9999, 0.9),
            "eps_residual": ({}, 1e-16, 1e-2),
            "clipping_threshold": ({"eps_residual": 1e-2}, 1.0, 0.3),
            "min_dim_size_to_factor": ({}, 1, 3),
        }
    },
    shape=(3, 2),
    slow_rows=True,
)
MINI = Family(
    oracles_adamw_kin,
    {"adam_mini": {**LAST, **DECAY, "blocks": ({}, (), (("**", 2),))}},
    [("adam_mini", {"blocks": (("**", k),)}) for k in ("entry", "leaf", "input")],
    shape=(1, 6),
    slow_rows=True,
)
ENTRIES = Family(oracles_adamw_kin, ARGUMENTS, CONVENTIONS, slow_rows=True)
FAMILIES = (ENTRIES, FACTORED, MINI)

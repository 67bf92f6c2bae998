"""signSGD, Signum, Lion, Rprop, Adadelta and MADGRAD and their arguments."""

import oracles_signs
from trajectories import DECAY, LR, REAL, Family

SIGNS = Family(
    oracles_signs,
    {
        "sign_sgd": {"learning_rate": ({}, *LR), **DECAY},
        "signum": {"learning_rate": ({}, *LR), "beta": ({}, 0.9, 0.5), **DECAY},
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
            **DECAY,
        },
    },
    conventions=[("rprop", {"learning_rate": 1e-9})],  # below the smallest step size
    double=REAL,
)
STEP_SIZES = Family(
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
    conventions=[
        ("adadelta", {"learning_rate": 1.0, "rho": 0.95, "eps": 1e-7}),
        ("adadelta", {"eps": 0.0}),
    ],
)
# Without momentum an update is the difference of two distances from the start, each
# up to a hundred times as long.
DISTANCES = Family(
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
    conventions=[("madgrad", {"momentum": 0.0}), ("madgrad", {"eps": 0.0})],
    single_tolerance=1e-4,
)
FAMILIES = (SIGNS, STEP_SIZES, DISTANCES)

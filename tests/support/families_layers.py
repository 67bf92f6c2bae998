"""LARS, LAMB, NovoGrad, Adafactor and SM3 and their arguments."""

import oracles_layers
from trajectories import DECAY, LR, Family


def nowhere(path, leaf):
    return False


# The gradients' norm is 1e6 (1e3 in float16): what is added to it must be as large.
NORMS = Family(
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
            "max_ratio": ({}, None, 0.8),
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
    conventions=[
        ("novograd", {"eps": 0.0}),
        ("lars", {"weight_decay": 1e5, "separate_norms": True, "nesterov": True}),
    ],
)
SMALL = {"min_dim_size_to_factor": 1}
FACTORS = Family(
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
            **DECAY,
        },
    },
    conventions=[
        ("adafactor", SMALL),
        (
            "adafactor",
            {**SMALL, "clipping_threshold": None, "multiply_by_parameter_scale": False},
        ),
        ("sm3", {"momentum": 0.5, "eps": 0.0}),
    ],
    shape=(3, 1, 2),
)
FAMILIES = (NORMS, FACTORS)

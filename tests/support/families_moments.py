"""Adam's relatives and their arguments."""

import oracles_moments
from trajectories import DECAY, LR, Case, Family, Rows

MASK = ({"weight_decay": 0.1}, None, "decayed/**")
ADAM: Rows = {
    "learning_rate": ({}, *LR),
    "b1": ({}, 0.9, 0.5),
    "b2": ({}, 0.999, 0.9),
    "eps": ({}, 1e-8, 1e-2),
    "eps_root": ({}, 0.0, 1e-2),
}
ARGUMENTS: dict[str, Rows] = {
    "adamax": {
        **{name: ADAM[name] for name in ("learning_rate", "b1", "b2", "eps")},
        "weight_decay": ({}, 0.0, 0.1),
        "mask": MASK,
        "eps_in_max": ({"eps": 1e-2, "b2": 0.9}, True, False),
        "decoupled_weight_decay": ({"weight_decay": 0.1}, True, False),
    },
    "adamc": {
        **ADAM,
        "weight_decay": ({}, 1e-4, 0.1),
        "mask": MASK,
        "max_learning_rate": ({"weight_decay": 0.1}, None, 0.5),
        "nesterov": ({}, False, True),
    },
    "amsgrad": {**ADAM, "debias": ({}, "before_max", "after_max"), **DECAY},
    "nadam": {
        **ADAM,
        "weight_decay": ({}, 0.0, 0.1),
        "mask": MASK,
        "momentum_decay": ({}, None, 4e-3),
        "debias_ahead": ({}, True, False),
        "decoupled_weight_decay": (
            {"weight_decay": 0.1, "momentum_decay": 1.0},
            True,
            False,
        ),
    },
    "radam": {
        **ADAM,
        "threshold": ({}, 5.0, 7.5),
        "weight_decay": ({}, 0.0, 0.1),
        "mask": MASK,
        "nesterov": ({}, False, True),
        "unrectified": ({}, "momentum", "skip"),
        "decoupled_weight_decay": ({"weight_decay": 0.1}, True, False),
    },
    "adabelief": {
        **ADAM,
        "eps": ({}, 1e-16, 1e-2),
        "eps_root": ({}, 1e-16, 1e-2),
        "nesterov": ({}, False, True),
        "accumulate_eps": ({"eps_root": 1e-2}, True, False),
        **DECAY,
    },
    "adan": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.98, 0.5),
        "b2": ({}, 0.92, 0.5),
        "b3": ({}, 0.99, 0.5),
        "eps": ({}, 1e-8, 1e-2),
        "eps_root": ({}, 0.0, 1e-2),
        "weight_decay": ({}, 0.0, 0.1),
        "mask": MASK,
        "proximal": ({"weight_decay": 2.0}, True, False),
    },
    "adopt": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.9, 0.5),
        "b2": ({}, 0.9999, 0.9),
        "eps": ({"clip_value_fn": 1e3}, 1e-6, 1e-2),
        "nesterov": ({}, False, True),
        "use_clipping": ({"eps": 1e-2}, True, False),
        "clip_value_fn": ({}, 1.0, 0.5),
        **DECAY,
    },
    "ademamix": {
        **ADAM,
        "b3": ({}, 0.9999, 0.99),
        "alpha": ({"b3": 0.99}, 5.0, 1.0),
        "weight_decay": ({}, 0.0, 0.1),
        "mask": MASK,
    },
    "yogi": {
        **ADAM,
        "eps": ({}, 1e-3, 1e-1),
        "initial_accumulator_value": ({}, 1e-6, 0.1),
        "debias": ({}, True, False),
        **DECAY,
    },
}
CONVENTIONS: list[Case] = [
    ("amsgrad", {"debias": "never"}),
    ("amsgrad", {"eps": 0.0}),
    ("nadam", {"momentum_decay": 1.0, "eps": 1e-7}),  # Keras's
    ("nadam", {"b1": 0.0}),
    ("radam", {"b2": 0.6}),
    ("radam", {"b2": 0.0}),
    ("adabelief", {"eps_root": 0.0, "eps": 1e-3}),
    ("adan", {"eps_root": 1e-8, "weight_decay": 0.1}),
    ("adopt", {"eps": 0.0}),
    ("yogi", {"eps": 0.0, "initial_accumulator_value": 0.0}),
]
FAMILIES = (Family(oracles_moments, ARGUMENTS, CONVENTIONS),)

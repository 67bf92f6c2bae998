"""SGD, RMSProp, Adagrad, Adam and their arguments."""

import oracles
from trajectories import DECAY, LR, Case, Family, Rows

ARGUMENTS: dict[str, Rows] = {
    "sgd": {
        "learning_rate": ({}, *LR),
        "momentum": ({}, None, 0.9),
        "nesterov": ({"momentum": 0.8}, False, True),
        "learning_rate_first": ({"momentum": 0.9}, False, True),
        **DECAY,
    },
    "momentum": {
        "learning_rate": ({}, *LR),
        "momentum": ({}, 0.9, 0.5),
        "nesterov": ({}, False, True),
        "learning_rate_first": ({}, False, True),
        **DECAY,
    },
    "rmsprop": {
        "learning_rate": ({}, *LR),
        "decay": ({}, 0.9, 0.5),
        "eps": ({}, 1e-8, 1e-2),
        "initial_scale": ({}, 0.0, 1.0),
        "eps_in_sqrt": ({"eps": 1e-2}, True, False),
        "centered": ({"eps": 1e-2}, False, True),
        "momentum": ({}, None, 0.9),
        "nesterov": ({"momentum": 0.9}, False, True),
        "bias_correction": ({}, False, True),
        "learning_rate_first": ({"momentum": 0.9}, True, False),
        **DECAY,
    },
    "adagrad": {
        "learning_rate": ({}, *LR),
        "initial_accumulator_value": ({}, 0.1, 1.0),
        "eps": ({}, 1e-7, 1e-2),
        "eps_in_sqrt": ({"eps": 1e-2}, True, False),
        **DECAY,
    },
    "adam": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.9, 0.5),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
        "eps_root": ({}, 0.0, 1e-2),
        "nesterov": ({}, False, True),
        **DECAY,
    },
    "adamw": {
        "learning_rate": ({}, *LR),
        "b1": ({}, 0.9, 0.5),
        "b2": ({}, 0.999, 0.9),
        "eps": ({}, 1e-8, 1e-2),
        "eps_root": ({}, 0.0, 1e-2),
        "weight_decay": ({}, 1e-4, 0.1),
        "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
        "nesterov": ({}, False, True),
    },
}
CONVENTIONS: list[Case] = [
    ("sgd", {"momentum": 0.0}),
    ("rmsprop", {"momentum": 0.9, "nesterov": True, "learning_rate_first": False}),
    ("rmsprop", {"eps": 0.0}),
    ("rmsprop", {"centered": True, "bias_correction": True, "eps": 1e-2}),
    (
        "rmsprop",  # everything at once
        {
            "decay": 0.75,
            "eps": 0.03,
            "initial_scale": 0.5,
            "eps_in_sqrt": False,
            "centered": True,
            "momentum": 0.8,
            "nesterov": True,
            "bias_correction": True,
        },
    ),
    (  # PyTorch's
        "adagrad",
        {"initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False},
    ),
    ("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0}),
    ("adam", {"b1": 0.0}),
    ("adam", {"eps": 0.0, "nesterov": True}),
]
FAMILIES = (Family(oracles, ARGUMENTS, CONVENTIONS),)

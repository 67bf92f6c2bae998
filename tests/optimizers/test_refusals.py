"""Arguments and parameters that optimizers refuse, with their messages."""

import inspect
from typing import Any

import jax.numpy as jnp
import pytest
from trajectories import case_id

from fngrad.optimizers import REGISTRY
from fngrad.types import Hyper, Scalar

REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("sgd", {"learning_rate": -0.1}, r"need 0.0 <= learning_rate <= inf.*-0.1"),
    ("sgd", {"momentum": 1.5}, r"<= momentum <= 1.0, got momentum=1.5"),
    ("rmsprop", {"momentum": 1.5}, r"<= momentum <= 1.0, got momentum=1.5"),
    ("sgd", {"nesterov": True}, "need a momentum to look ahead"),
    ("rmsprop", {"nesterov": True}, "need a momentum to look ahead"),
    ("rmsprop", {"decay": -0.1}, "need 0.0 <= decay <= 1.0"),
    ("rmsprop", {"decay": 1.0, "bias_correction": True}, "need decay < 1"),
    ("rmsprop", {"eps": -1.0, "centered": True}, "need 0.0 <= eps"),
    ("rmsprop", {"initial_scale": -1.0}, "need 0.0 <= initial_scale"),
    ("adagrad", {"eps": float("nan")}, "need 0.0 <= eps"),
    (
        "adagrad",
        {"initial_accumulator_value": -0.1},
        "need 0.0 <= initial_accumulator_value",
    ),
    ("adam", {"b1": 1.0}, "need b1 < 1 to correct for bias"),
    ("adam", {"b2": 2.0}, "need 0.0 <= b2 <= 1.0"),
    ("adam", {"eps_root": -1.0}, "need 0.0 <= eps_root"),
    ("adamw", {"weight_decay": float("nan")}, "weight_decay=nan"),
    ("adam", {"b2": 1}, "need b2 < 1"),
    ("adamax", {"b1": 1.0}, "need b1 < 1 to correct for bias"),
    ("adamax", {"b2": 1.5}, "need 0.0 <= b2 <= 1.0"),
    ("adamax", {"eps": -1.0}, "need 0.0 <= eps"),
    (
        "amsgrad",
        {"debias": "after"},
        r"need debias to be one of .*, got debias='after'",
    ),
    ("amsgrad", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
    ("amsgrad", {"eps_root": -1.0}, "need 0.0 <= eps_root"),
    ("nadam", {"momentum_decay": -1.0}, "need 0.0 <= momentum_decay"),
    ("nadam", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
    ("radam", {"threshold": 3.0}, "need 4.0 <= threshold"),
    ("radam", {"unrectified": "sgd"}, "need unrectified to be one of .*'sgd'"),
    ("radam", {"weight_decay": float("nan")}, "weight_decay=nan"),
    ("adabelief", {"eps_root": -1.0}, "need 0.0 <= eps_root"),
    ("adan", {"b3": 1.0}, "need b3 < 1 to correct for bias"),
    ("adan", {"weight_decay": -0.1}, "need 0.0 <= weight_decay"),
    ("adopt", {"b2": -0.1}, "need 0.0 <= b2 <= 1.0"),
    ("adopt", {"clip_value_fn": -1.0}, "need 0.0 <= clip_value_fn"),
    ("ademamix", {"b3": 1.1}, "need 0.0 <= b3 <= 1.0"),
    ("ademamix", {"alpha": float("nan")}, "alpha=nan"),
    ("laprop", {"b1": 1.0}, "need b1 < 1 to correct for bias"),
    ("simplified_ademamix", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
    ("mars", {"gamma": -0.1}, "need 0.0 <= gamma"),
    ("mars", {"max_norm": -1.0}, "need 0.0 <= max_norm"),
    ("stable_adamw", {"clipping_threshold": 0.0}, "need clipping_threshold > 0"),
    ("came", {"b3": 1.1}, "need 0.0 <= b3 <= 1.0"),
    ("came", {"eps_residual": -1.0}, "need 0.0 <= eps_residual"),
    ("adam_mini", {"blocks": [("**", "row")]}, "need blocks to be one of .*'row'"),
    ("adam_mini", {"blocks": [("**", 0)]}, "need an int blocks >= 1, got blocks=0"),
    ("lamb", {"max_ratio": -1.0}, "need 0.0 <= max_ratio"),
    ("kron", {"b1": 1.0}, "need b1 < 1 to correct for bias"),
    ("kron", {"preconditioner_update_probability": 2.0}, "_probability <= 1.0"),
    ("kron", {"precond_init_scale": 0.0}, "need precond_init_scale > 0"),
    ("kron", {"memory_save_mode": "diag"}, "need memory_save_mode to be one of"),
    ("yogi", {"initial_accumulator_value": -1.0}, "need 0.0 <= initial_accumulator"),
    ("yogi", {"b1": 1.0}, "need b1 < 1 to correct for bias"),
    ("rprop", {"eta_minus": 1.5}, r"need .*eta_minus <= 1.0, got .*1.5"),
    ("rprop", {"eta_plus": 0.5}, r"need .*1.0 <= eta_plus"),
    ("rprop", {"min_step_size": -1.0}, r"need .*0.0 <= min_step_size"),
    ("rprop", {"max_step_size": -1.0}, r"need .*0.0 <= max_step_size"),
    ("rprop", {"learning_rate": -0.1}, r"need .*0.0 <= learning_rate"),
    ("lion", {"b1": 1.5}, r"need .*b1 <= 1.0"),
    ("lion", {"b2": -1.0}, r"need .*0.0 <= b2"),
    ("adadelta", {"rho": 2.0}, r"need .*rho <= 1.0"),
    ("adadelta", {"eps": -1.0}, r"need .*0.0 <= eps"),
    ("madgrad", {"learning_rate": -0.1}, r"need .*0.0 <= learning_rate"),
    ("madgrad", {"momentum": 2.0}, r"need .*momentum <= 1.0"),
    ("madgrad", {"eps": -1.0}, r"need .*0.0 <= eps"),
    ("lars", {"trust_coefficient": -1.0}, r"need .*0.0 <= trust_coeff"),
    ("lars", {"eps": -1.0}, r"need .*0.0 <= eps"),
    ("lars", {"weight_decay": float("nan")}, r"need .*<= weight_decay"),
    ("novograd", {"b2": 1.5}, r"need .*b2 <= 1.0"),
    ("novograd", {"eps": -1.0}, r"need .*0.0 <= eps"),
    ("novograd", {"eps_root": -1.0}, r"need .*0.0 <= eps_root"),
    ("adafactor", {"learning_rate": -0.1}, r"need .*0.0 <= learning_rate"),
    ("adafactor", {"decay_rate": -1.0}, r"need .*0.0 <= decay_rate"),
    ("adafactor", {"decay_offset": -1}, r"need .*0.0 <= decay_offset"),
    ("adafactor", {"eps": -1.0}, r"need .*0.0 <= eps "),
    ("adafactor", {"min_scale": -1.0}, r"need .*0.0 <= min_scale"),
    ("adafactor", {"mask": "w"}, r"need .*weight_decay_rate to mask.*'w'"),
    (
        "adafactor",
        {"factored_dims": "first"},
        r"need .*\('largest', 'last'\), got factored_dims='first'",
    ),
    ("sm3", {"eps": -1.0}, r"need .*0.0 <= eps"),
    ("sm3", {"variant": "III"}, r"need .*\('I', 'II'\), got variant='III'"),
    ("muon", {"beta": 1.0}, "need beta < 1 to correct for bias"),
    ("muon", {"eps": -1.0}, "need 0.0 <= eps"),
    ("muon", {"consistent_rms": -0.2}, "need 0.0 <= consistent_rms"),
    ("muon", {"ns_coeffs": (1.0, 2.0)}, "must have three coefficients per step"),
    (
        "muon",
        {"ns_coeffs": ((3.4445, -4.7750, 2.0315),)},
        "need coefficients for ns_steps=5",
    ),
    ("muon", {"ns_steps": -1}, "need an int ns_steps >= 0, got ns_steps=-1"),
    ("normuon", {"beta": 1.5}, "need 0.0 <= beta <= 1.0"),
    ("normuon", {"beta2": -0.5}, "need 0.0 <= beta2 <= 1.0"),
    ("normuon", {"consistent_rms": -0.2}, "need 0.0 <= consistent_rms"),
    ("adamuon", {"eps": -1.0}, "need 0.0 <= eps"),
    ("adamuon", {"ns_coeffs": "jordan"}, "need ns_coeffs to be one of .*'jordan'"),
    ("muonh", {"beta": 1.0}, "need beta < 1 to correct for bias"),
    ("adamh", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
    ("scion", {"beta": -0.1}, "need 0.0 <= beta <= 1.0"),
    ("scion", {"balls": [("**", "nuclear", 1.0)]}, "need norm to be one of .*'nucl"),
    ("scion", {"balls": [("**", "auto", -1.0)]}, "need 0.0 <= radius"),
    ("dion", {"beta": 1.5}, "need 0.0 <= beta <= 1.0"),
    ("dion", {"rank_fraction": 0}, "0 < rank_fraction <= 1.*got rank_fraction=0"),
    ("adamc", {"max_learning_rate": 0.0}, "need max_learning_rate > 0"),
    ("shampoo", {"b2": 1.5}, "need 0.0 <= b2 <= 1.0"),
    ("shampoo", {"eps": -1.0}, "need 0.0 <= eps"),
    ("shampoo", {"exponent": -0.5}, "need 0.0 <= exponent"),
    (
        "shampoo",
        {"update_every": 0},
        "need an int update_every >= 1, got update_every=0",
    ),
    ("shampoo", {"graft": "adam"}, r"need graft to be one of \(None, .*'adam'"),
    ("shampoo", {"momentum": 1.5}, "<= momentum <= 1.0"),
    ("shampoo", {"nesterov": True}, "need a momentum to look ahead"),
    ("soap", {"b1": 1.0}, "need b1 < 1"),
    ("soap", {"b2": -0.1}, "need 0.0 <= b2"),
    ("soap", {"shampoo_beta": 1.0}, "need shampoo_beta < 1"),
    ("soap", {"eps": -1e-8}, "need 0.0 <= eps"),
    (
        "soap",
        {"precondition_frequency": 0},
        "need an int precondition_frequency >= 1",
    ),
    ("schedule_free_sgd", {"warmup_steps": 0}, "need an int warmup_steps >= 1"),
    ("schedule_free_sgd", {"b1": 1.5}, "need 0.0 <= b1 <= 1.0"),
    ("schedule_free_sgd", {"learning_rate": -1.0, "warmup_steps": 2}, "-1.0"),
    ("schedule_free_adamw", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
    ("schedule_free_radam", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
    ("schedule_free_adamw", {"weight_lr_power": -1.0}, "<= weight_lr_power"),
    ("prodigy", {"estim_lr0": 0.0}, "need estim_lr0 > 0"),
    ("prodigy", {"estim_lr_coef": -1.0}, "need estim_lr_coef > 0"),
    ("prodigy", {"betas": (0.9, 1.0)}, r"need betas\[1\] < 1"),
    ("prodigy", {"betas": (0.9,)}, r"need betas=\(b1, b2\), got betas=\(0.9,\)"),
    ("prodigy", {"beta3": 1.5}, "need 0.0 <= beta3 <= 1.0"),
    ("dadapt_adamw", {"growth_rate": 0.9}, "need 1.0 <= growth_rate"),
    ("dadapt_adamw", {"learning_rate": -0.1}, "need 0.0 <= learning_rate"),
    ("dadapt_sgd", {"momentum": 1.5}, "need 0.0 <= momentum <= 1.0"),
    ("dog", {"init_step": ("reps_rel", 1e-6)}, r"need init_step=\(kind, value\)"),
    ("dog", {"init_step": ("distance", 0.0)}, "distance of init_step > 0"),
    ("dog", {"eps": -1.0}, "need 0.0 <= eps"),
    ("dog", {"averaging": -1.0}, "need 0.0 <= averaging"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSALS, ids=case_id)
def test_a_hyperparameter_out_of_range_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        REGISTRY[name](**{"learning_rate": 0.1, **arguments})


REQUIRED = (Hyper, Scalar)
NUMBERS = (*REQUIRED, Hyper | None, Scalar | None)


def arguments_of(factory, types):
    """Return the names of a function's arguments that are declared so."""
    arguments = inspect.signature(factory, eval_str=True).parameters.items()
    return [name for name, argument in arguments if argument.annotation in types]


@pytest.mark.parametrize("name", REGISTRY)
def test_a_refusal_names_the_argument_that_the_caller_wrote(name):
    factory = REGISTRY[name]
    numbers = arguments_of(factory, NUMBERS)
    assert numbers
    for argument in numbers:
        given = {"learning_rate": 0.1, argument: float("nan")}
        with pytest.raises(ValueError, match=f"need .*{argument}=nan"):
            factory(**given)


@pytest.mark.parametrize("name", REGISTRY)
def test_none_is_refused_where_a_hyperparameter_is_required(name):
    factory = REGISTRY[name]
    for argument in set(arguments_of(factory, REQUIRED)) - {"learning_rate"}:
        with pytest.raises(TypeError, match=rf"need {argument} to be a number.*None"):
            factory(**{"learning_rate": 0.1, argument: None})


@pytest.mark.parametrize("name", ["rprop", "madgrad"])
def test_a_missing_learning_rate_is_refused(name):
    with pytest.raises(TypeError, match="need a learning_rate, got None"):
        REGISTRY[name](None)


COMPLEX = {  # the part of each rule that refuses complex parameters
    "sign_sgd": "scale_by_sign",
    "signum": "scale_by_sign",
    "lion": "scale_by_lion",
    "rprop": "scale_by_rprop",
    "muon": "scale_by_muon",
    "normuon": "scale_by_normuon",
    "adamuon": "scale_by_adamuon",
    "muonh": "scale_by_muon",
    "dion": "scale_by_dion",
    "shampoo": "scale_by_shampoo",
    "soap": "scale_by_soap",
    "kron": "scale_by_kron",
    "prodigy": "prodigy",
    "dadapt_adamw": "dadapt_adamw",
    "dadapt_sgd": "dadapt_sgd",
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_are_refused_by_their_path(name):
    params = {"w": jnp.ones((3, 2), jnp.complex64)}
    want = f"need real parameters for {COMPLEX[name]}, got complex64 at 'w'"
    with pytest.raises(TypeError, match=want):
        REGISTRY[name](0.1).init(params)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd", "dog"])
def test_a_mask_that_selects_nothing_is_refused(name):
    optimizer = REGISTRY[name](weight_decay=0.1, mask="weights")
    with pytest.raises(ValueError, match="need a glob that selects a leaf, got 'weig"):
        optimizer.init({"weight": jnp.ones(2)})

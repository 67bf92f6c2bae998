"""Optimizers by their names: recipes of transforms, from the papers."""

from fngrad.optimizers.adaptive_delta import adadelta
from fngrad.optimizers.adaptive_gradient import adagrad
from fngrad.optimizers.adaptive_moment import adam, adamw
from fngrad.optimizers.averaged_iterates import schedule_free_adamw, schedule_free_sgd
from fngrad.optimizers.dual_averaging import madgrad
from fngrad.optimizers.gradient_descent import momentum, sgd
from fngrad.optimizers.layerwise import lamb, lars, novograd
from fngrad.optimizers.low_memory import adafactor, sm3
from fngrad.optimizers.moment_maximum import adamax, amsgrad
from fngrad.optimizers.moment_memory import ademamix, adopt, yogi
from fngrad.optimizers.moment_variance import adabelief, radam
from fngrad.optimizers.nesterov_moment import adan, nadam
from fngrad.optimizers.orthogonalized import muon
from fngrad.optimizers.parameter_free import dadapt_adamw, dadapt_sgd, dog, prodigy
from fngrad.optimizers.preconditioned import shampoo, soap
from fngrad.optimizers.registry import REGISTRY
from fngrad.optimizers.root_mean_square import rmsprop
from fngrad.optimizers.second_order import lbfgs, sophia
from fngrad.optimizers.sign_descent import lion, rprop, sign_sgd, signum

__all__ = [
    "REGISTRY",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "dadapt_adamw",
    "dadapt_sgd",
    "dog",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "madgrad",
    "momentum",
    "muon",
    "nadam",
    "novograd",
    "prodigy",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "shampoo",
    "sign_sgd",
    "signum",
    "sm3",
    "soap",
    "sophia",
    "yogi",
]

"""Optimizers, one method per file: state, transform, recipe, equations and source."""

from fngrad.optimizers.adabelief import adabelief
from fngrad.optimizers.adadelta import adadelta
from fngrad.optimizers.adafactor import adafactor
from fngrad.optimizers.adagrad import adagrad
from fngrad.optimizers.adam import adam, adamw
from fngrad.optimizers.adamax import adamax
from fngrad.optimizers.adan import adan
from fngrad.optimizers.ademamix import ademamix
from fngrad.optimizers.adopt import adopt
from fngrad.optimizers.amsgrad import amsgrad
from fngrad.optimizers.dadapt import dadapt_adamw, dadapt_sgd
from fngrad.optimizers.dog import dog
from fngrad.optimizers.lamb import lamb
from fngrad.optimizers.lars import lars
from fngrad.optimizers.lbfgs import lbfgs
from fngrad.optimizers.lion import lion
from fngrad.optimizers.madgrad import madgrad
from fngrad.optimizers.muon import muon
from fngrad.optimizers.nadam import nadam
from fngrad.optimizers.novograd import novograd
from fngrad.optimizers.prodigy import prodigy
from fngrad.optimizers.radam import radam
from fngrad.optimizers.registry import REGISTRY
from fngrad.optimizers.rmsprop import rmsprop
from fngrad.optimizers.rprop import rprop
from fngrad.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from fngrad.optimizers.sgd import momentum, sgd
from fngrad.optimizers.shampoo import shampoo
from fngrad.optimizers.sign_sgd import sign_sgd, signum
from fngrad.optimizers.sm3 import sm3
from fngrad.optimizers.soap import soap
from fngrad.optimizers.sophia import sophia
from fngrad.optimizers.yogi import yogi

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


def __dir__() -> list[str]:
    return sorted(__all__)

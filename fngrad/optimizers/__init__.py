"""Optimizers, one method per file: state, transform, recipe, equations and source.

To add an optimizer:

1. Write ``fngrad/optimizers/NAME.py``: the state, ``scale_by_NAME``, and ``NAME`` with
   equations and paper; ``adan.py`` is a model.
2. Import ``NAME`` into ``registry.py`` and list it in ``REGISTRY``: the laws, resuming,
   quantizing and the other tests of every rule then run on it.
3. Export ``NAME`` from here, and ``NAME`` and ``scale_by_NAME`` from ``fngrad``: an
   import and a sorted entry of ``__all__`` in each. Add its name to the README's list.
4. Write its oracle in float64 NumPy, from the paper, in one of
   ``tests/support/oracles*.py``, and a row per argument in the table of its test.

``tests/optimizers/test_methods.py`` fails if ``NAME`` or ``scale_by_NAME`` is defined
in another file or is not exported, or if the file states a displayed formula or a link
twice.
"""

from __future__ import annotations

from fngrad.optimizers.registry import REGISTRY  # explains the keywords of the rest

# isort: split
from fngrad.optimizers.adabelief import adabelief
from fngrad.optimizers.adadelta import adadelta
from fngrad.optimizers.adafactor import adafactor
from fngrad.optimizers.adagrad import adagrad
from fngrad.optimizers.adam import adam, adamw
from fngrad.optimizers.adam_mini import adam_mini
from fngrad.optimizers.adamax import adamax
from fngrad.optimizers.adamc import adamc
from fngrad.optimizers.adamuon import adamuon
from fngrad.optimizers.adan import adan
from fngrad.optimizers.ademamix import ademamix
from fngrad.optimizers.adopt import adopt
from fngrad.optimizers.amsgrad import amsgrad
from fngrad.optimizers.came import came
from fngrad.optimizers.dadapt import dadapt_adamw, dadapt_sgd
from fngrad.optimizers.dion import dion
from fngrad.optimizers.dog import dog
from fngrad.optimizers.hyperball import adamh, muonh
from fngrad.optimizers.kron import kron
from fngrad.optimizers.lamb import lamb
from fngrad.optimizers.laprop import laprop
from fngrad.optimizers.lars import lars
from fngrad.optimizers.lbfgs import lbfgs
from fngrad.optimizers.lion import lion
from fngrad.optimizers.madgrad import madgrad
from fngrad.optimizers.mars import mars
from fngrad.optimizers.muon import muon
from fngrad.optimizers.nadam import nadam
from fngrad.optimizers.normuon import normuon
from fngrad.optimizers.novograd import novograd
from fngrad.optimizers.prodigy import prodigy
from fngrad.optimizers.radam import radam
from fngrad.optimizers.rmsprop import rmsprop
from fngrad.optimizers.rprop import rprop
from fngrad.optimizers.schedule_free import (
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from fngrad.optimizers.scion import scion
from fngrad.optimizers.sgd import momentum, sgd
from fngrad.optimizers.shampoo import shampoo
from fngrad.optimizers.sign_sgd import sign_sgd, signum
from fngrad.optimizers.simplified_ademamix import simplified_ademamix
from fngrad.optimizers.sm3 import sm3
from fngrad.optimizers.soap import soap
from fngrad.optimizers.sophia import sophia
from fngrad.optimizers.stable_adamw import stable_adamw
from fngrad.optimizers.yogi import yogi

__all__ = [
    "REGISTRY",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_mini",
    "adamax",
    "adamc",
    "adamh",
    "adamuon",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "came",
    "dadapt_adamw",
    "dadapt_sgd",
    "dion",
    "dog",
    "kron",
    "lamb",
    "laprop",
    "lars",
    "lbfgs",
    "lion",
    "madgrad",
    "mars",
    "momentum",
    "muon",
    "muonh",
    "nadam",
    "normuon",
    "novograd",
    "prodigy",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "scion",
    "sgd",
    "shampoo",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "sm3",
    "soap",
    "sophia",
    "stable_adamw",
    "yogi",
]


def __dir__() -> list[str]:
    return sorted(__all__)

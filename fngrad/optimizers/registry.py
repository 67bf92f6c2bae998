"""Every optimizer by name."""

from __future__ import annotations

from collections.abc import Callable

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
from fngrad.optimizers.stable_adamw import stable_adamw
from fngrad.optimizers.yogi import yogi
from fngrad.programs.keywords_elsewhere import OF_OPTIMIZERS, explain_in_place
from fngrad.transforms.core import Transform

# Each factory needs only a learning rate. The rules that see the loss (lbfgs,
# sophia) need a step of their own, see fngrad.steps.
REGISTRY: dict[str, Callable[..., Transform]] = {
    factory.__name__: factory
    for factory in (
        sgd,
        momentum,
        rmsprop,
        adagrad,
        adadelta,
        adam,
        adamw,
        adamc,
        adamax,
        amsgrad,
        nadam,
        radam,
        adabelief,
        yogi,
        adan,
        adopt,
        ademamix,
        simplified_ademamix,
        laprop,
        mars,
        stable_adamw,
        sign_sgd,
        signum,
        lion,
        rprop,
        adafactor,
        came,
        adam_mini,
        sm3,
        novograd,
        lars,
        lamb,
        madgrad,
        shampoo,
        soap,
        kron,
        muon,
        normuon,
        adamuon,
        scion,
        dion,
        muonh,
        adamh,
        schedule_free_sgd,
        schedule_free_adamw,
        schedule_free_radam,
        prodigy,
        dadapt_sgd,
        dadapt_adamw,
        dog,
    )
}

# Before a module outside this package imports a factory.
explain_in_place(REGISTRY, OF_OPTIMIZERS)

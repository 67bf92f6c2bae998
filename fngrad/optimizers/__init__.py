"""Optimizers by their names: recipes of transforms, from the papers."""

from fngrad.optimizers.adaptive_gradient import adagrad
from fngrad.optimizers.adaptive_moment import adam, adamw
from fngrad.optimizers.gradient_descent import momentum, sgd
from fngrad.optimizers.registry import REGISTRY
from fngrad.optimizers.root_mean_square import rmsprop

__all__ = ["REGISTRY", "adagrad", "adam", "adamw", "momentum", "rmsprop", "sgd"]

"""Every optimizer by name."""

from collections.abc import Callable

from fngrad.optimizers.adaptive_gradient import adagrad
from fngrad.optimizers.adaptive_moment import adam, adamw
from fngrad.optimizers.gradient_descent import momentum, sgd
from fngrad.optimizers.root_mean_square import rmsprop
from fngrad.transforms.core import Transform

# Each factory works with a learning rate alone.
REGISTRY: dict[str, Callable[..., Transform]] = {
    factory.__name__: factory
    for factory in (sgd, momentum, rmsprop, adagrad, adam, adamw)
}

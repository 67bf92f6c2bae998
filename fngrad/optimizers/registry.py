"""Every optimizer by name."""

from collections.abc import Callable

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
from fngrad.optimizers.root_mean_square import rmsprop
from fngrad.optimizers.sign_descent import lion, rprop, sign_sgd, signum
from fngrad.transforms.core import Transform

# Each factory works with a learning rate alone. The rules that see the loss (lbfgs,
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
        adamax,
        amsgrad,
        nadam,
        radam,
        adabelief,
        yogi,
        adan,
        adopt,
        ademamix,
        sign_sgd,
        signum,
        lion,
        rprop,
        adafactor,
        sm3,
        novograd,
        lars,
        lamb,
        madgrad,
        shampoo,
        soap,
        muon,
        schedule_free_sgd,
        schedule_free_adamw,
        prodigy,
        dadapt_sgd,
        dadapt_adamw,
        dog,
    )
}

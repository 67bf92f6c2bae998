"""A rule that has no learning rate is refused where it is made."""

import re

import jax.numpy as jnp
import pytest

import fngrad as fg
from fngrad.optimizers import REGISTRY

TAKES_NONE = {"adafactor"}  # the paper's learning rate
FACTORIES = {
    **{name: rule for name, rule in REGISTRY.items() if name not in TAKES_NONE},
    "lbfgs": fg.lbfgs,
    "sophia": fg.sophia,
    "schedule_free": lambda rate: fg.schedule_free(fg.sgd(0.1), rate),
    "schedule_free_sgd after a warmup": lambda rate: fg.schedule_free_sgd(rate, 10),
    "proximal_decay": lambda rate: fg.proximal_decay(rate, 0.1),
    "scale_by_learning_rate": fg.scale_by_learning_rate,
    "scale_by_madgrad": fg.scale_by_madgrad,
    "scale_by_rprop": fg.scale_by_rprop,
    "scale_by_prodigy": fg.scale_by_prodigy,
    "scale_by_dadapt_adam": fg.scale_by_dadapt_adam,
    "scale_by_dadapt_sgd": fg.scale_by_dadapt_sgd,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_no_learning_rate_is_refused(name):
    with pytest.raises(TypeError, match="need a learning_rate, got None"):
        FACTORIES[name](None)


@pytest.mark.parametrize("name", [*FACTORIES, *TAKES_NONE])
def test_a_negative_learning_rate_is_refused(name):
    factory = {**FACTORIES, **REGISTRY}[name]
    wanted = re.escape("need 0.0 <= learning_rate <= inf, got learning_rate=-0.1")
    with pytest.raises(ValueError, match=wanted):
        factory(-0.1)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "shampoo", "lars", "sm3"])
def test_a_rule_without_momentum_keeps_no_buffer(name):
    params = jnp.ones((2, 3))
    state = REGISTRY[name](0.1, momentum=None).init(params)
    assert not {"trace", "ema"} & state.keys()
    kept = REGISTRY[name](0.1, momentum=0.0).init(params)
    assert {"trace", "ema"} & kept.keys()


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "shampoo", "lars"])
def test_nesterov_needs_a_momentum(name):
    with pytest.raises(ValueError, match="need a momentum to look ahead"):
        REGISTRY[name](0.1, momentum=None, nesterov=True)

"""The texts of static values in a checkpoint do not follow what people are shown."""

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
import fngrad.layers as layers
from fngrad.checkpoint.device_transfer import static_parts


@jax.tree_util.register_pytree_node_class
class Holder:
    """A module that holds a static value beside its parameters."""

    def __init__(self, weight, static):
        self.weight, self.static = weight, static

    def tree_flatten(self):
        return (self.weight,), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(*children, static)


def scaled(params, x):
    return params * x


def drawn(key):
    return jnp.ones(3)


STATE = fg.TrainState(1, 2, {"w": 3}, 4, ())
VALUES = {
    "layer": (
        layers.Layer(drawn, scaled),
        "Layer(init=<function drawn>, apply=<function scaled>)",
    ),
    "stateful layer": (
        layers.StatefulLayer(drawn, scaled),
        "StatefulLayer(init=<function drawn>, apply=<function scaled>)",
    ),
    "transform": (
        fg.Transform(drawn, scaled, "own"),
        "Transform(init=<function drawn>, update=<function scaled>, name='own', "
        "parts=(), report=None, trainable=None)",
    ),
    "state": (
        (STATE, 1),
        "(TrainState(step=1, key=2, params={'w': 3}, opt_state=4, model_state=()), 1)",
    ),
    "costs": (
        fg.Costs(1, 2, 3, {}),
        "Costs(products=1, others=2, bytes=3, uncounted={})",
    ),
    "result": (
        fg.FitResult(1, 2, "completed"),
        "FitResult(state=1, history=2, stopped='completed')",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_static_named_tuples_are_recorded_by_their_fields(name):
    value, text = VALUES[name]
    assert static_parts({"a": Holder(jnp.ones(2), value)}) == {"a": text}

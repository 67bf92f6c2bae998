"""What transforms show of themselves."""

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg

ADAMW = """\
Transform
  scale_by_adam           b1=0.9, b2=0.999, eps=1e-08, eps_root=0, nesterov=False
  add_decayed_weights     weight_decay=0.01
  scale_by_learning_rate  learning_rate=0.001"""

NESTED = """\
Transform
  skip_nonfinite                  max_consecutive=10
    partition
      embed/**
        freeze
      **
        momentum
          trace     damp_first=True, dampening=0, decay=0.9, nesterov=False
          scale                   step_size=2
        scale_by_learning_rate    learning_rate=cosine"""


def test_a_chain_shows_its_parts_and_their_hyperparameters():
    optimizer = fg.adamw(1e-3, weight_decay=0.01)
    assert repr(optimizer) == ADAMW
    assert optimizer._repr_html_().endswith(f">{ADAMW}</pre>")


def test_wrappers_and_groups_are_indented():
    momentum = fg.named("momentum", fg.chain(fg.trace(0.9), fg.scale(2.0)))
    rate = fg.schedules.cosine(0.1, 10)
    groups = [("embed/**", fg.freeze()), ("**", fg.chain(momentum, fg.sgd(rate)))]
    got = repr(fg.skip_nonfinite(fg.partition(groups)))
    assert [line.split() for line in got.splitlines()] == [
        line.split() for line in NESTED.splitlines()
    ]
    indents = [len(line) - len(line.lstrip()) for line in got.splitlines()]
    assert indents == [0, 2, 4, 6, 8, 6, 8, 10, 10, 8]


@pytest.mark.parametrize("name", fg.REGISTRY)
def test_no_optimizer_shows_an_address(name):
    text = repr(fg.REGISTRY[name](0.125))
    assert text.startswith("Transform\n  ")
    assert "0.125" in text
    assert " at 0x" not in text
    assert "<" not in text


def test_hyperparameters_show_values_only_if_they_are_there():
    gone = jnp.float32(0.1)
    gone.delete()
    assert "learning_rate=float32[]" in repr(fg.sgd(gone))
    assert "learning_rate=0.1" in repr(fg.sgd(jnp.float32(0.1)))
    texts = []
    jax.vmap(lambda rate: texts.append(repr(fg.sgd(rate))))(jnp.ones(2))
    assert "learning_rate=float32[]" in texts[0]


def test_a_transform_stays_a_named_tuple():
    optimizer = fg.adamw(1e-3)
    again = fg.Transform(*optimizer)
    assert again == optimizer
    assert hash(again) == hash(optimizer)
    init, update, *_ = optimizer
    assert repr(fg.Transform(init, update)).startswith("Transform\n")


def test_own_transforms_and_functions_of_c_are_shown():
    def plain_rule():
        def init(params):
            return ()

        def update(updates, state, params):
            return updates, state

        return fg.Transform(init, update)

    assert repr(fg.chain(plain_rule())) == "Transform\n  plain_rule"
    assert repr(fg.Transform(len, abs)) == "Transform\n  len"

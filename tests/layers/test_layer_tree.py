"""What layers show of themselves."""

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

import fngrad as fg
import fngrad.layers as layers

MLP = """\
Layer: serial, 19 parameters, 76 bytes
  layers/0  linear   15  bias (3,), weight (4, 3)
  entry 1   relu
  entry 2   dropout
  layers/1  linear   4   bias (1,), weight (3, 1)"""

NESTED = """\
StatefulLayer: serial, 72 parameters, 288 bytes; model_state 24 bytes
  norm    batch_norm                         6   bias (3,), scale (3,)
  blocks  repeat(remat(residual(linear)), 4) 48  bias (4, 3), weight (4, 3, 3)
  heads   parallel                           18
    a     linear                             12  bias (3,), weight (3, 3)
    b     linear                             6   weight (3, 2)
    c     sin"""

ALONE = {
    "avg_pool": lambda: layers.avg_pool(2),
    "batch_norm": lambda: layers.batch_norm(3),
    "conv": lambda: layers.conv(1, 2, 3),
    "dropout": lambda: layers.dropout(0.5),
    "embedding": lambda: layers.embedding(3, 2),
    "group_norm": lambda: layers.group_norm(4, 2),
    "gru": lambda: layers.gru(2, 3),
    "gru_cell": lambda: layers.gru_cell(2, 3),
    "identity": layers.serial,
    "layer_norm": lambda: layers.layer_norm(3),
    "linear": lambda: layers.linear(3, 2),
    "lstm": lambda: layers.lstm(2, 3),
    "lstm_cell": lambda: layers.lstm_cell(2, 3),
    "max_pool": lambda: layers.max_pool(2),
    "multi_head_attention": lambda: layers.multi_head_attention(4, 2),
    "positional_embedding": lambda: layers.positional_embedding(3, 2),
    "read_out": lambda: layers.read_out(3, 2),
    "remat(linear)": lambda: layers.remat(layers.linear(3, 2)),
    "residual(sin)": lambda: layers.residual(jnp.sin),
    "rms_norm": lambda: layers.rms_norm(3),
    "swiglu": lambda: layers.swiglu(3, 2),
    "rnn(serial)": lambda: fg.models.rnn(2, [3], 1),
}


def own_apply(params, x, *, key=None):
    return x


def nested():
    block = layers.remat(layers.residual(layers.linear(3, 3)))
    heads = layers.parallel(
        a=layers.linear(3, 3), b=layers.linear(3, 2, bias=False), c=jnp.sin
    )
    return layers.serial(
        norm=layers.batch_norm(3), blocks=layers.repeat(block, 4), heads=heads
    )


def test_a_layer_shows_its_tree_and_sizes():
    model = fg.models.mlp((4, 3, 1), dropout_rate=0.1)
    assert repr(model) == MLP
    assert model._repr_html_().endswith(f">{MLP}</pre>")


def test_wrappers_and_loops_share_a_line_with_what_they_hold():
    got = [line.split() for line in repr(nested()).splitlines()]
    assert got == [line.split() for line in NESTED.splitlines()]


@pytest.mark.parametrize("name", ALONE)
def test_a_layer_is_named_after_what_made_it(name):
    first = repr(ALONE[name]()).splitlines()[0]
    assert first.split(": ", 1)[1].startswith(f"{name}, ")
    assert " at 0x" not in first


def test_a_single_layer_shows_its_leaves():
    assert repr(layers.linear(3, 2)) == (
        "Layer: linear, 8 parameters, 32 bytes: bias (2,), weight (3, 2)"
    )


def test_a_layer_stays_a_named_tuple():
    layer = nested()
    init, apply = layer
    again = type(layer)(init, apply)
    assert again == layer
    assert hash(again) == hash(layer)
    assert repr(again) == repr(layer)
    assert layer._replace(apply=len).apply is len


def test_nothing_is_drawn_until_a_layer_is_shown_and_then_only_shapes():
    seen = []

    def init(key):
        seen.append(key)
        return {"w": jnp.ones((2, 3))}

    layer = layers.serial(layers.Layer(init, own_apply))
    assert seen == []
    with jax.transfer_guard("disallow_explicit"):
        assert "own_apply  6  w (2, 3)" in repr(layer)
    assert isinstance(seen[0], Tracer)


def test_a_layer_whose_init_fails_shows_its_names():
    broken = layers.Layer(lambda key: 1 // 0, own_apply)
    assert repr(layers.serial(broken, jnp.sin)).splitlines() == [
        "Layer: serial",
        "  layers/0  own_apply",
        "  entry 1   sin",
    ]


def test_a_deep_model_is_cut():
    lines = repr(layers.serial(*[layers.linear(1, 1)] * 50)).splitlines()
    assert len(lines) == 42
    assert lines[-1] == "  ... and 10 more"


def test_a_layer_is_shown_inside_of_a_trace():
    texts = []
    jax.jit(lambda x: texts.append(repr(nested())))(1.0)
    assert texts == [repr(nested())]

"""Tables of models and of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.layers as layers

LINEAR = "  layers/1 linear      (3,)            12     48   66.7 %     21"

REFUSED = {
    "a layer without an example": (
        lambda: fg.summary(layers.linear(3, 2)),
        TypeError,
        "need an example for a layer",
    ),
    "parameters with an example": (
        lambda: fg.summary({"w": jnp.ones(2)}, jnp.ones(2)),
        TypeError,
        "need a layer where there is an example, got dict",
    ),
    "an optimizer": (
        lambda: fg.summary(fg.adam(0.1)),
        TypeError,
        "need a layer or parameters, got Transform",
    ),
    "a function": (
        lambda: fg.summary(jnp.sin),
        TypeError,
        "need a layer or parameters",
    ),
    "an empty tree": (
        lambda: fg.summary({}),
        ValueError,
        "need parameters, at least one array, got an empty tree",
    ),
    "a batch that does not fit": (
        lambda: fg.summary(fg.models.mlp((4, 1)), jnp.ones(5)),
        ValueError,
        r"layers/0: need x with last axis 4, got shape \(5,\)",
    ),
}


def rows(text):
    """Return (parameters, FLOPs) by the layer's label."""
    lines = [line.rsplit(maxsplit=5) for line in text.splitlines()[1:-1]]
    return {
        label.split("(")[0].strip(): (int(count.replace(",", "")), int(flops))
        for label, count, _, _, _, flops in lines
    }


def test_a_stateful_layer_is_summed_up():
    model = layers.serial(layers.batch_norm(3), layers.linear(3, 3))
    shown = fg.summary(model, jnp.ones(3)).splitlines()
    assert shown[0].split() == [
        "layer",
        "output",
        "parameters",
        "bytes",
        "share",
        "FLOPs",
    ]
    assert shown[3] == LINEAR
    assert "18 parameters, 72 bytes, model_state 24 bytes" in shown[-1]


def test_a_loop_counts_all_of_its_passes():
    block = layers.residual(layers.serial(a=layers.linear(3, 3), b=jnp.tanh))
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    loop = rows(fg.summary(layers.serial(blocks=layers.repeat(block, 5)), x))
    linear = 5 * (2 * 3 * 3 + 3)  # products with their sums, and the bias
    assert loop["a linear"] == (5 * 12, linear)
    assert loop["b tanh"] == (0, 5 * 3)
    whole = 60, linear + 5 * 3 + 5 * 3  # the residual adds
    assert loop["serial"] == whole


def test_each_branch_gets_the_same_input():
    model = layers.parallel(a=layers.linear(3, 2), b=layers.linear(3, 4))
    found = rows(fg.summary(model, np.ones(3)).replace("(2,), (4,)", "(2,)"))
    assert found == {"parallel": (24, 42), "a linear": (8, 14), "b linear": (16, 28)}


def test_nothing_is_computed_and_examples_may_be_abstract():
    model = fg.models.transformer(11, 8, features=8, num_heads=2, num_layers=2)
    tokens = jax.ShapeDtypeStruct((8,), jnp.int32)
    with jax.transfer_guard("disallow_explicit"):
        shown = fg.summary(model, tokens)
    assert shown == fg.summary(model, np.zeros(8, np.int64))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert "2,000 parameters, 8,000 bytes" in shown
    assert fg.summary(params).endswith("2,000 parameters, 8,000 bytes")


def test_wide_and_narrow_leaves_show_their_bytes():
    params = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(4, jnp.float32)}
    assert fg.summary(params).splitlines() == [
        "leaf   shape  dtype     count  bytes   share",
        "a      (4,)   bfloat16      4      8  50.0 %",
        "b      (4,)   float32       4     16  50.0 %",
        "total  8 parameters, 24 bytes",
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_summary_is_explained(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_wrapped_weights_count_as_one_layer_and_directions_as_two():
    inner = layers.serial(layers.linear(3, 2), jnp.tanh)
    weighted = fg.summary(layers.weight_norm(inner), jnp.ones(3))
    assert "weight_norm(serial)  (2,)            10" in weighted  # 6 + 2 and a scale
    bounded = repr(layers.spectral_norm(inner))
    assert (
        "spectral_norm(serial), 8 parameters, 32 bytes; model_state 8 bytes" in bounded
    )
    both = rows(fg.summary(layers.bidirectional(layers.gru, 3, 2), jnp.ones((4, 3))))
    counts = {name: count for name, (count, _) in both.items()}
    assert counts == {"bidirectional": 84, "forward gru": 42, "backward gru": 42}

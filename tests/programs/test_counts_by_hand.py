"""The products of layers and models, against counts derived by hand from shapes.

A count is one of *pairs*: entries that are multiplied and added. Each is two FLOPs.
"""

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models

KEY = jax.random.key(0)
INTS = jnp.int32


def products(fn, *args):
    return fg.costs(fn, *args).products


def of_layer(layer, *shape, dtype=jnp.float32, **inputs):
    """Return the products of a layer's ``apply`` on one example."""
    params = jax.eval_shape(layer.init, KEY)
    x = jax.ShapeDtypeStruct(shape, dtype)
    return products(lambda *args: layer.apply(*args, **inputs), params, x)


def attention(n, features, heads, size, kv_heads=None, context=None):
    """Return the pairs of attention from n positions to a context, by default of n."""
    m, context_features = context or (n, features)
    query_and_output = 2 * n * features * heads * size
    key_and_value = 2 * m * context_features * (kv_heads or heads) * size
    scores_and_sums = 2 * n * m * heads * size
    return query_and_output + key_and_value + scores_and_sums


def block(n, features, heads, hidden):
    perceptron = 2 * n * features * hidden
    return attention(n, features, heads, features // heads) + perceptron


LAYERS = {
    "linear": (layers.linear(4, 3), (7, 4), 7 * 4 * 3),
    "conv": (layers.conv(2, 3, 3, padding="VALID"), (6, 6, 2), 16 * 9 * 2 * 3),
    "conv, padded": (layers.conv(2, 3, 3), (4, 4, 2), 10 * 10 * 2 * 3),
    "conv over a sequence": (layers.conv(2, 3, (3,)), (5, 2), 13 * 2 * 3),
    # Every position of x meets the whole window.
    "conv_transpose": (
        layers.conv_transpose(2, 3, 3, stride=2, padding="VALID"),
        (4, 5, 2),
        4 * 5 * 9 * 2 * 3,
    ),
    # Of 2n + 1 positions along an axis, one is cut off, at which one pair met.
    "conv_transpose, cut": (
        layers.conv_transpose(2, 3, 3, stride=2),
        (4, 5, 2),
        (3 * 4 - 1) * (3 * 5 - 1) * 2 * 3,
    ),
    "conv_transpose in groups": (
        layers.conv_transpose(4, 6, 3, stride=2, padding="VALID", groups=2),
        (4, 5, 4),
        2 * 4 * 5 * 9 * 2 * 3,
    ),
    "attention": (
        layers.multi_head_attention(8, 2),
        (5, 8),
        4 * 5 * 8 * 8 + 2 * 5 * 5 * 8,  # projections; scores and sums
    ),
    "gru": (layers.gru(3, 4), (5, 3), 5 * 3 * 4 * (3 + 4)),
    "lstm": (layers.lstm(3, 4), (5, 3), 5 * 4 * 4 * (3 + 4)),
    "bidirectional": (
        layers.bidirectional(layers.lstm, 3, 4),
        (5, 3),
        2 * 5 * 4 * 4 * (3 + 4),
    ),
    "swiglu": (layers.swiglu(6, 16), (5, 6), 3 * 5 * 6 * 16),
    "read_out": (layers.read_out(11, 6), (5, 6), 5 * 6 * 11),
    "layer_norm": (layers.layer_norm(4), (3, 4), 0),
    "rms_norm": (layers.rms_norm(4), (3, 4), 0),
    "dropout": (layers.dropout(0.5), (4,), 0),
    "max_pool": (layers.max_pool(2), (4, 4, 3), 0),
    "repeat": (layers.repeat(layers.linear(4, 4), 9), (4,), 9 * 16),
    "mlp": (models.mlp((4, 5, 3)), (4,), 4 * 5 + 5 * 3),
    "logistic": (models.logistic(4, 3), (4,), 12),
    "cnn": (
        models.cnn((4, 4, 1), 3, channels=(2,), hidden_size=4),
        (4, 4, 1),
        10 * 10 * 2 + 2 * 2 * 2 * 4 + 4 * 3,
    ),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_products_of_a_layer_are_those_counted_by_hand(name):
    layer, shape, pairs = LAYERS[name]
    assert of_layer(layer, *shape) == 2 * pairs


def test_a_lookup_takes_no_products():
    assert of_layer(layers.embedding(11, 6), 5, dtype=INTS) == 0
    assert of_layer(layers.positional_embedding(7, 6), 5, 6) == 0


WHOLE = attention(5, 12, 4, 3)


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({}, WHOLE),
        # What is hidden is computed, and left out.
        ({"causal": True}, WHOLE),
        ({"window": 2}, WHOLE),
        ({"rotary": layers.rotary(), "alibi": True}, WHOLE),
        ({"num_kv_heads": 2}, attention(5, 12, 4, 3, kv_heads=2)),
        ({"num_kv_heads": 1}, attention(5, 12, 4, 3, kv_heads=1)),
        ({"head_size": 7, "num_kv_heads": 2}, attention(5, 12, 4, 7, kv_heads=2)),
    ],
)
def test_the_products_of_attention_are_those_counted_by_hand(options, pairs):
    layer = layers.multi_head_attention(12, 4, **options)
    assert of_layer(layer, 5, 12) == 2 * pairs


def test_the_products_of_attention_to_a_context_are_those_counted_by_hand():
    layer = layers.multi_head_attention(12, 4, context_features=6)
    pairs = attention(5, 12, 4, 3, context=(7, 6))
    assert of_layer(layer, 5, 12, context=jnp.ones((7, 6))) == 2 * pairs


def test_one_token_more_meets_the_cache():
    layer = layers.multi_head_attention(12, 4, causal=True)
    params, cache = jax.eval_shape(layer.init, KEY), layers.init_cache(layer, 9)
    maps, cached = 4 * 12 * 12, 2 * 9 * 12
    found = products(layers.cached(layer), params, cache, jnp.ones((1, 12)))
    assert found == 2 * (maps + cached)


@pytest.mark.parametrize("options", [{}, {"scan": True, "remat": True}])
def test_the_products_of_a_transformer_are_those_counted_by_hand(options):
    model = models.transformer(11, 6, features=8, num_heads=2, num_layers=4, **options)
    pairs = 4 * block(5, 8, 2, hidden=32) + 5 * 8 * 11
    assert of_layer(model, 5, dtype=INTS) == 2 * pairs


# 64 is the first multiple of 64 that is not below 8/3 of the 8 features.
GATED, PLAIN = 3 * 5 * 8 * 64, 2 * 5 * 8 * 32


@pytest.mark.parametrize(
    ("options", "feed_forward"),
    [
        ({}, GATED),
        ({"scan": True, "tied": True, "window": 2}, GATED),
        ({"hidden_size": 7, "bias": True}, 3 * 5 * 8 * 7),
        ({"gated": False, "rotary": None, "max_length": 6, "norm": "layer"}, PLAIN),
    ],
)
def test_the_products_of_a_decoder_are_those_counted_by_hand(options, feed_forward):
    model = models.decoder(
        11, features=8, num_heads=2, num_kv_heads=1, num_layers=3, **options
    )
    pairs = 3 * (attention(5, 8, 2, 4, kv_heads=1) + feed_forward) + 5 * 8 * 11
    assert of_layer(model, 5, dtype=INTS) == 2 * pairs


@pytest.mark.parametrize(("pool", "tokens"), [("token", 1), ("mean", 0)])
def test_the_products_of_a_vision_transformer_are_those_counted_by_hand(pool, tokens):
    sizes = {"features": 8, "num_heads": 2, "num_layers": 2}
    model = models.vision_transformer((4, 6, 3), 10, patch_size=2, pool=pool, **sizes)
    patches = 2 * 3
    embedded = patches * (2 * 2 * 3) * 8
    pairs = embedded + 2 * block(patches + tokens, 8, 2, hidden=32) + 8 * 10
    assert of_layer(model, 4, 6, 3) == 2 * pairs


def windows(kernel, stride, n):
    """Return the pairs of a window of odd size along n positions, zeros left out.

    As many positions of zeros are before as after, and ``stride`` divides n.
    """
    around = kernel // 2
    meeting = range(0, n, stride)
    return sum(min(i + around, n - 1) - max(i - around, 0) + 1 for i in meeting)


def test_windows_are_counted_as_drawn():
    assert windows(3, 1, 8) == 3 * 8 - 2  # each end misses one
    assert windows(3, 2, 8) == 3 * 4 - 1  # the first misses one
    assert windows(7, 2, 8) == 7 * 4 - (3 + 1 + 2)
    assert windows(1, 2, 8) == 4


def area(kernel, stride, n):
    return windows(kernel, stride, n) ** 2


# Of 8x8 pixels: a stem, a block of width 4, one of width 8 on 4x4, and the head.
PLAIN_BLOCKS = (
    area(3, 1, 8) * 3 * 4
    + 2 * area(3, 1, 8) * 4 * 4
    + area(3, 2, 8) * 4 * 8
    + area(3, 1, 4) * 8 * 8
    + area(1, 2, 8) * 4 * 8
    + 8 * 10
)
# The stem and the pooling halve 16x16 pixels twice; blocks have 4 times their width.
BOTTLENECKS = (
    area(7, 2, 16) * 3 * 4
    + (area(1, 1, 4) * 4 * 4 + area(3, 1, 4) * 4 * 4 + area(1, 1, 4) * 4 * 16)
    + area(1, 1, 4) * 4 * 16
    + (area(1, 1, 4) * 16 * 8 + area(3, 2, 4) * 8 * 8 + area(1, 1, 2) * 8 * 32)
    + area(1, 2, 4) * 16 * 32
    + 32 * 10
)


@pytest.mark.parametrize(
    ("size", "options", "pairs"),
    [
        (8, {"stem": "small"}, PLAIN_BLOCKS),
        (16, {"bottleneck": True}, BOTTLENECKS),
    ],
    ids=["plain", "bottleneck"],
)
def test_the_products_of_a_resnet_are_those_counted_by_hand(size, options, pairs):
    model = models.resnet(3, 10, blocks=(1, 1), width=4, **options)
    arrays = jax.eval_shape(model.init, KEY)
    x = jnp.ones((2, size, size, 3))
    assert products(layers.batched(model), *arrays, x) == 2 * 2 * pairs


def test_the_products_of_a_recurrent_model_are_those_counted_by_hand():
    model = models.rnn(3, (4,), 2)
    assert of_layer(model, 5, 3) == 2 * (5 * 3 * 4 * (3 + 4) + 4 * 2)


def of_adapted(layer, kind, x):
    """Return the products of a layer whose weight has adapters of rank 2."""
    adapters = fg.lora("**/weight", rank=2)
    params = adapters.init(layer.init(0), key=1)
    join = getattr(adapters, kind)
    return products(lambda params: layer.apply(join(params), x), params)


def test_the_products_of_low_rank_adapters_are_those_counted_by_hand():
    linear, x = layers.linear(4, 3), jnp.ones((7, 4))
    assert of_adapted(linear, "unmerged", x) == 2 * (7 * 4 * 3 + 7 * 4 * 2 + 7 * 2 * 3)
    assert of_adapted(linear, "merged", x) == 2 * (4 * 2 * 3 + 7 * 4 * 3)
    table, tokens = layers.embedding(11, 6), jnp.ones(5, INTS)
    assert of_adapted(table, "unmerged", tokens) == 2 * 5 * 2 * 6
    scores = layers.read_out(11, 6), "unmerged", jnp.ones((5, 6))
    assert of_adapted(*scores) == 2 * (5 * 6 * 11 + 5 * 6 * 2 + 5 * 2 * 11)


def test_groups_divide_the_products_of_a_convolution():
    plain, grouped = layers.conv(4, 8, 3), layers.conv(4, 8, 3, groups=2)
    assert of_layer(plain, 5, 5, 4) == 2 * of_layer(grouped, 5, 5, 4)

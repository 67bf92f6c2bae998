"""A cache of keys and values: any cut of a sequence gives the outputs of the whole."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import filled

import fngrad.layers as layers
import fngrad.models as models
from fngrad.layers import key_value_cache

LENGTH = 9
CUTS = [(4, 5, 6, 7, 8), (1, 5), (1, 2, 3, 4, 5)]  # in parts of 4 and 1: two programs
ROTARY = layers.rotary()
ATTENTION = {
    "full": {},
    "grouped, rotary": {"num_kv_heads": 2, "rotary": ROTARY},
    "alibi": {"num_kv_heads": 1, "alibi": True},
    "window": {"window": 3},
    "grouped window, rotary and alibi": {
        "num_kv_heads": 2,
        "window": 4,
        "rotary": ROTARY,
        "alibi": True,
    },
    "window of one": {"window": 1},
    "window as long as the cache": {"window": LENGTH},
    "window longer than the cache": {"window": 2 * LENGTH},
}
FAST = ("grouped, rotary", "window", "grouped window, rotary and alibi")


@functools.cache
def attention(name):
    return layers.multi_head_attention(
        8, 4, head_size=4, causal=True, **ATTENTION[name]
    )


def sequence():
    return np.random.default_rng(1).normal(size=(LENGTH, 8)).astype("f")


@functools.cache
def step_of(layer):
    return jax.jit(layers.cached(layer))


def in_parts(layer, params, x, cuts, max_length=LENGTH, **of_cache):
    """Return the outputs of each part, joined, and the last cache."""
    cache, outputs = layers.init_cache(layer, max_length, **of_cache), []
    for part in np.split(x, list(cuts)):
        y, cache = step_of(layer)(params, cache, part)
        outputs.append(y)
    return np.concatenate(outputs), cache


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
        for name in ATTENTION
    ],
)
def test_every_cut_gives_each_position_its_output(name):
    layer = attention(name)
    params, x = filled(layer), sequence()
    whole = jax.jit(layer.apply)(params, x)
    for cuts in CUTS:
        y, _ = in_parts(layer, params, x, cuts)
        for position in range(LENGTH):
            np.testing.assert_allclose(
                y[position], whole[position], rtol=1e-4, atol=1e-5
            )


def test_a_window_holds_no_more_than_its_positions():
    shapes = {
        name: layers.init_cache(attention(name), LENGTH).keys.shape
        for name in (
            "full",
            "grouped, rotary",
            "window",
            "window longer than the cache",
        )
    }
    assert shapes == {
        "full": (LENGTH, 4, 4),
        "grouped, rotary": (LENGTH, 2, 4),
        "window": (3, 4, 4),
        "window longer than the cache": (LENGTH, 4, 4),
    }


@pytest.mark.parametrize(
    ("name", "steps", "held"),
    [
        ("full", 0, [-9, -8, -7, -6, -5, -4, -3, -2, -1]),
        ("full", 2, [0, 1, -7, -6, -5, -4, -3, -2, -1]),
        ("window", 0, [-3, -2, -1]),
        ("window", 7, [6, 4, 5]),
    ],
)
def test_a_cache_knows_the_position_in_each_slot(name, steps, held):
    cache = layers.init_cache(attention(name), LENGTH)
    cache = cache._replace(step=jnp.int32(steps))
    found = key_value_cache._held(cache, name == "window", jnp.float32).positions
    np.testing.assert_array_equal(found, held)


@pytest.mark.parametrize("name", ["full", "window longer than the cache"])
def test_behind_the_last_slot_the_output_is_nan(name):
    layer = attention(name)
    params, x = filled(layer), sequence()
    y, _ = in_parts(layer, params, x[:7], (6,), max_length=4)
    expected = jax.jit(layer.apply)(params, x[:4])
    np.testing.assert_allclose(y[:4], expected, rtol=1e-4, atol=1e-5)
    assert np.all(np.isnan(y[4:]))


def test_a_window_goes_on_behind_the_length_of_its_cache():
    layer = attention("window")
    params, x = filled(layer), sequence()
    y, _ = in_parts(layer, params, x, (4, 5, 6, 7, 8), max_length=4)
    expected = jax.jit(layer.apply)(params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["grouped, rotary", "window"])
def test_padding_in_front_is_seen_by_no_position(name):
    layer = attention(name)
    params, x = filled(layer), sequence()
    padded = np.concatenate([np.full((3, 8), np.nan, np.float32), x[:5]])
    y, cache = in_parts(layer, params, padded, (4, 5, 6, 7), start=-3)
    expected = jax.jit(layer.apply)(params, x[:5])
    np.testing.assert_allclose(y[3:], expected, rtol=1e-4, atol=1e-5)
    assert cache.step == 5


def test_what_is_not_finite_shows_where_it_is_seen():
    for name in ("full", "window"):
        layer = attention(name)
        x = sequence()
        x[2] = np.inf
        y, _ = in_parts(layer, filled(layer), x, (4, 5, 6, 7, 8))
        seen_by = np.arange(LENGTH) >= 2
        if name == "window":
            seen_by &= np.arange(LENGTH) < 5
        np.testing.assert_array_equal(np.isnan(y).all(-1), seen_by)


@pytest.mark.slow
def test_a_cache_in_16_bits_holds_narrow_keys_exactly():
    layer = attention("grouped, rotary")
    params, x = jax.tree.map(
        lambda a: np.asarray(a, jnp.bfloat16), (filled(layer), sequence()[:5])
    )
    outputs = [
        in_parts(layer, params, x, (4,), dtype=dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert outputs[0][0].dtype == jnp.bfloat16
    assert outputs[1][1].keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_model_with_learned_positions_has_a_cache(scan):
    model = models.transformer(11, 7, features=8, num_layers=2, num_heads=2, scan=scan)
    params, tokens = filled(model), np.array([3, 1, 4, 1, 5, 9, 2])

    parts, cache = in_parts(model, params, tokens, (4, 5, 6), max_length=7)
    whole = jax.jit(model.apply)(params, tokens)
    np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-4)
    after, _ = step_of(model)(params, cache, tokens[:1])
    assert np.all(np.isnan(after))
    with pytest.raises(ValueError, match="at most max_length=7 positions, got 8"):
        layers.init_cache(model, 8)


def test_a_composition_of_your_own_has_a_cache():
    block = layers.residual(
        layers.serial(
            norm=layers.rms_norm(8),
            both=layers.parallel(
                layers.remat(attention("window")), layers.swiglu(8, 4), combine=sum
            ),
        )
    )
    model = layers.serial(
        tokens=layers.embedding(11, 8),
        blocks=layers.repeat(block, 2),
        head=layers.tied("tokens", layers.read_out(11, 8)),
    )
    params, tokens = filled(model), np.arange(LENGTH) % 4
    parts, _ = in_parts(model, params, tokens, (4, 5, 6, 7, 8))
    whole = jax.jit(model.apply)(params, tokens)
    np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-4)


def test_the_start_of_a_cached_model_is_abstract_and_strong():
    cache = layers.init_cache(attention("full"), 4)
    assert cache.step.dtype == jnp.int32
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(cache))
    _, later = jax.eval_shape(
        layers.cached(attention("full")), filled(attention("full")), cache, sequence()
    )
    assert jax.tree.map(jnp.shape, later) == jax.tree.map(jnp.shape, cache)
    assert [a.dtype for a in later] == [a.dtype for a in cache]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: layers.multi_head_attention(4, 2),
            ValueError,
            "need causal attention",
        ),
        (
            lambda: layers.serial(attention("full"), layers.gru(8, 8)),
            TypeError,
            "layers that treat each position by itself for a cache, got gru",
        ),
        (
            lambda: layers.serial(attention("full"), layers.group_norm(8, 2)),
            TypeError,
            "got group_norm",
        ),
        (
            lambda: layers.serial(attention("full"), layers.batch_norm(8)),
            TypeError,
            "got batch_norm",
        ),
        (
            lambda: layers.linear(2, 2),
            TypeError,
            "need a layer with attention for a cache, got linear",
        ),
        (lambda: jnp.tanh, TypeError, "need a layer for a cache"),
        (
            lambda: layers.serial(
                a=attention("full"), b=layers.tied("a", attention("full"))
            ),
            TypeError,
            "need attention with parameters of its own, for a cache or for its weights",
        ),
    ],
)
def test_what_has_no_cache_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        layers.cached(make())


def test_a_cache_has_at_least_one_position():
    with pytest.raises(ValueError, match="need an int max_length >= 1, got"):
        layers.init_cache(attention("full"), 0)


def test_a_cache_of_integers_is_refused():
    with pytest.raises(ValueError, match="need a float dtype for keys and values, got"):
        layers.init_cache(attention("full"), 4, dtype=jnp.int8)

"""The decoder: formula, published sizes, variants, its cache, messages."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles_attention as oracles
import pytest
from drawn_parameters import filled

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models
import fngrad.sharding as sharding
import fngrad.tree as tree

TINY = {"features": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
TOKENS = np.array([3, 1, 4, 1, 5, 9])
GPT_2 = {"rotary": None, "gated": False, "norm": "layer", "bias": True, "tied": True}


def wide(values):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), values)


@pytest.mark.parametrize(
    ("options", "sees"),
    [
        ({}, lambda t, s: s <= t),
        ({"tied": True, "window": 2, "hidden_size": 6}, lambda t, s: t - 2 < s <= t),
    ],
)
def test_it_is_its_formula(options, sees):
    model = models.decoder(11, **TINY, **options)
    params = filled(model)
    assert ("head" in params) != options.get("tied", False)
    expected = oracles.decoder(wide(params), TOKENS, 4, 2, sees)
    got = jax.jit(model.apply)(params, TOKENS)
    atol = 1e-3 * np.std(expected)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=atol)


def test_logits_are_multiplied_by_their_scale():
    plain = models.decoder(11, **TINY, tied=True)
    params = filled(plain)

    @jax.jit
    def both(scale):
        scaled = models.decoder(11, **TINY, tied=True, logit_scale=scale)
        shapes = jax.eval_shape(scaled.init, jax.random.key(0))
        assert tree.mismatch(params, shapes) is None
        return plain.apply(params, TOKENS), scaled.apply(params, TOKENS)

    logits, scaled = both(0.25)  # may be data
    np.testing.assert_array_equal(scaled, 0.25 * logits)
    with pytest.raises(TypeError, match="need logit_scale to be a number"):
        models.decoder(11, **TINY, logit_scale="0.25")


# (arguments, number of parameters)
PUBLISHED = {
    "LLaMA 7B": (
        (32000,),
        {"features": 4096, "num_layers": 32, "num_heads": 32, "hidden_size": 11008},
        6_738_415_616,
    ),
    "LLaMA 2 70B": (
        (32000,),
        {
            "features": 8192,
            "num_layers": 80,
            "num_heads": 64,
            "num_kv_heads": 8,
            "hidden_size": 28672,
            "norm_eps": 1e-5,
        },
        68_976_648_192,
    ),
    "TinyLlama": (
        (32000,),
        {
            "features": 2048,
            "num_layers": 22,
            "num_heads": 32,
            "num_kv_heads": 4,
            "hidden_size": 5632,
        },
        1_100_048_384,
    ),
    "Mistral 7B": (
        (32000,),
        {
            "features": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "hidden_size": 14336,
            "window": 4096,
        },
        7_241_732_096,
    ),
    "GPT-2": (
        (50257,),
        {"features": 768, "num_layers": 12, "num_heads": 12, "max_length": 1024}
        | GPT_2,
        124_439_808,
    ),
    "MPT 7B": (
        (50432,),
        {"features": 4096, "num_layers": 32, "num_heads": 32, "alibi": True}
        | (GPT_2 | {"bias": False}),
        6_649_286_656,
    ),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_models_have_their_numbers_of_parameters(name):
    arguments, options, published = PUBLISHED[name]
    model = models.decoder(*arguments, scan=True, remat=True, **options)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert tree.size(params) == published
    tokens = jax.ShapeDtypeStruct((16,), jnp.int32)
    assert jax.eval_shape(model.apply, params, tokens).shape == (16, *arguments)


def test_the_paths_and_shapes_are_those_of_its_parts():
    found = tree.leaf_paths(jax.eval_shape(models.decoder(11, **TINY).init, 0))
    block = "blocks/layers/1"
    shapes = {
        f"{block}/attention/attend/query/weight": (8, 8),
        f"{block}/attention/attend/key/weight": (8, 4),
        f"{block}/attention/attend/value/weight": (8, 4),
        f"{block}/attention/attend/output/weight": (8, 8),
        f"{block}/attention/norm/scale": (8,),
        f"{block}/mlp/norm/scale": (8,),
        f"{block}/mlp/swiglu/gate/weight": (8, 64),
        f"{block}/mlp/swiglu/expand/weight": (8, 64),
        f"{block}/mlp/swiglu/shrink/weight": (64, 8),
        "head/weight": (8, 11),
        "norm/scale": (8,),
        "tokens/weight": (11, 8),
    }
    own = {path: leaf.shape for path, leaf in found.items() if "layers/0" not in path}
    assert own == shapes
    plain = models.decoder(11, gated=False, bias=True, norm="layer", max_length=5)
    found = tree.leaf_paths(jax.eval_shape(plain.init, 0))
    assert found["blocks/layers/0/mlp/expand/weight"].shape == (128, 512)
    assert found["positions/weight"].shape == (5, 128)
    assert {p.rpartition("/")[2] for p in found} == {"weight", "bias", "scale"}
    default = jax.eval_shape(models.decoder(11, features=96).init, 0)
    gate = default["blocks"]["layers"][0]["mlp"]["swiglu"]["gate"]["weight"]
    assert gate.shape == (96, 256)  # 8/3 of 96 are 256


@pytest.mark.slow
def test_a_decoder_in_a_loop_is_the_one_layer_by_layer():
    one_by_one = models.decoder(11, **TINY)
    looped = models.decoder(11, scan=True, remat=True, **TINY)
    params = filled(one_by_one)
    stacked = layers.stack_layers(params, "**/blocks")
    assert tree.mismatch(jax.eval_shape(looped.init, 0), stacked) is None
    got = jax.jit(looped.apply)(stacked, TOKENS)
    expected = jax.jit(one_by_one.apply)(params, TOKENS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_new_one_predicts_nearly_uniformly_and_ends_its_branches_small():
    model = models.decoder(50, features=32, num_layers=2, num_heads=2)
    params = jax.jit(model.init)(jax.random.key(0))
    assert np.std(jax.jit(model.apply)(params, jnp.arange(6))) < 0.2
    block = params["blocks"]["layers"][0]
    for last in (
        block["mlp"]["swiglu"]["shrink"],
        block["attention"]["attend"]["output"],
    ):
        np.testing.assert_allclose(np.std(last["weight"]), 0.01, rtol=0.1)
    np.testing.assert_allclose(np.std(params["head"]["weight"]), 0.02, rtol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tied": True, "window": 3}, id="window"),
        pytest.param(GPT_2 | {"max_length": 6}, id="learned", marks=pytest.mark.slow),
        pytest.param(
            {"alibi": True, "rotary": None, "scan": True},
            id="alibi in a loop",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_token_by_token_it_gives_the_logits_of_the_whole(options):
    model = models.decoder(11, **(TINY | {"num_layers": 1}), **options)
    params = filled(model)
    step = jax.jit(layers.cached(model))
    cache, outputs = layers.init_cache(model, len(TOKENS)), []
    for part in np.split(TOKENS, [3, 4, 5]):
        logits, cache = step(params, cache, part)
        outputs.append(logits)
    whole = jax.jit(model.apply)(params, TOKENS)
    np.testing.assert_allclose(np.concatenate(outputs), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scan", [False, True])
def test_gates_are_split_by_columns(scan):
    model = models.decoder(12, scan=scan, **TINY)
    params = jax.eval_shape(model.init, jax.random.key(0))
    mesh = sharding.abstract_mesh(data=2, model=2)
    where = sharding.shardings(params, mesh, models.transformer_rule())
    block = where["blocks"] if scan else where["blocks"]["layers"][0]
    lead = (None,) if scan else ()
    gates = block["mlp"]["swiglu"]
    for name in ("gate", "expand"):
        assert gates[name]["weight"].spec == jax.P(*lead, None, "model")
    assert gates["shrink"]["weight"].spec == jax.P(*lead, "model", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 3}, "need num_kv_heads that divides num_heads"),
        ({"norm": "batch"}, "need norm to be one of ('rms', 'layer'), got"),
        ({"num_layers": 0}, "need an int num_layers >= 1"),
        ({"hidden_size": 0}, "need an int hidden_size >= 1"),
        ({"window": 0}, "need an int window >= 1"),
        ({"features": 10}, "need num_heads that divides features"),
        ({"dropout_rate": 2.0}, "dropout_rate=2.0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.decoder(11, **(TINY | options))


def test_a_keyword_of_another_library_is_explained():
    with pytest.raises(TypeError, match="here it is max_length"):
        models.decoder(11, max_seq_len=3)


def test_longer_than_its_positions_is_refused():
    model = models.decoder(11, max_length=3, **TINY)
    params = jax.eval_shape(model.init, 0)
    with pytest.raises(layers.LayerError, match="positions: need x of shape"):
        jax.eval_shape(model.apply, params, TOKENS)


@pytest.mark.slow
def test_it_learns_to_repeat():
    model = models.decoder(5, features=16, num_heads=2, num_layers=1, hidden_size=16)
    batch = np.tile(np.arange(5), (4, 4)) % np.array([[5], [4], [3], [5]])

    def loss_fn(params, batch):
        logits = layers.batched(model)(params, batch[:, :-1])
        loss = fg.losses.softmax_cross_entropy_with_integer_labels
        return loss(logits, batch[:, 1:], reduction="mean")

    optimizer = fg.adamw(1e-2)
    step = jax.jit(fg.make_step(loss_fn, optimizer))
    state = fg.init_state(model.init(0), optimizer, 0)
    for _ in range(80):
        state, metrics = step(state, batch)
    assert metrics["loss"] < 0.5 < np.log(5)
    text = models.generate(model, state.params, batch[0, :10], 8, temperature=0)
    np.testing.assert_array_equal(text, batch[0, 10:18])

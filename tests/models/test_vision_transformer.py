"""Vision transformers: formula, published sizes, rates by depth, messages."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import filled
from oracles_models import dense, encoder

import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree

TINY = {"features": 4, "num_layers": 2, "num_heads": 2, "hidden_size": 6}


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_it_is_its_formula(pool):
    exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
    model = models.vision_transformer(
        (4, 6, 2), 3, patch_size=2, pool=pool, activation=exact_gelu, **TINY
    )
    params = filled(model)
    x = np.random.default_rng(1).normal(size=(4, 6, 2)).astype("f")
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    patches = [x[i : i + 2, j : j + 2].reshape(-1) for i in (0, 2) for j in (0, 2, 4)]
    kernel = wide["patches"]["weight"].reshape(8, 4)
    h = np.stack(patches) @ kernel + wide["patches"]["bias"]
    if pool == "token":
        h = np.concatenate([wide["token"]["weight"], h])
    h = encoder(wide, h + wide["positions"]["weight"], num_heads=2, causal=False)
    expected = dense(wide["head"], h[0] if pool == "token" else h.mean(0))
    got = jax.jit(model.apply)(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "published"), [("Ti", 5_717_416), ("S", 22_050_664), ("B", 86_567_656)]
)
def test_every_size_has_its_published_number_of_parameters(size, published):
    model = models.vision_transformer((224, 224, 3), 1000, size=size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published
    assert params["positions"]["weight"].shape[0] == 14 * 14 + 1
    x = jax.ShapeDtypeStruct((224, 224, 3), jnp.float32)
    assert jax.eval_shape(model.apply, params, x).shape == (1000,)


@pytest.mark.parametrize(("size", "heads"), [("Ti", 3), ("S", 6), ("B", 12)])
def test_every_size_has_its_published_heads(size, heads):
    model = models.vision_transformer(
        (8, 8, 1), 2, patch_size=4, size=size, num_layers=1
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
    _, weights = jax.eval_shape(layers.attention_weights(model), params, x)
    leaves = jax.tree.leaves(weights)
    assert sum(leaf.shape[-3:] == (heads, 5, 5) for leaf in leaves) == len(leaves) > 0


def test_blocks_in_a_loop_are_the_blocks_one_by_one():
    one_by_one = models.vision_transformer((4, 4, 1), 3, patch_size=2, **TINY)
    looped = models.vision_transformer((4, 4, 1), 3, patch_size=2, scan=True, **TINY)
    params = filled(one_by_one)
    stacked = layers.stack_layers(params, "**/blocks")
    assert tree.mismatch(jax.eval_shape(looped.init, 0), stacked) is None
    x = np.ones((4, 4, 1), np.float32)
    np.testing.assert_allclose(
        jax.jit(looped.apply)(stacked, x),
        jax.jit(one_by_one.apply)(params, x),
        rtol=1e-5,
    )


@pytest.mark.slow
def test_a_dropped_path_leaves_the_others_as_they_are():
    make = functools.partial(
        models.vision_transformer, (4, 4, 1), 3, patch_size=2, **TINY
    )
    params, x = filled(make()), np.ones((32, 4, 4, 1), np.float32)

    def outputs(model):
        return jax.jit(layers.batched(model))(params, x, key=jax.random.key(0))

    plain, dropped = outputs(make())[:, 0], outputs(make(drop_path_rate=1.0))[:, 0]
    assert len(np.unique(dropped)) == 1  # the rates are 0 and 1
    first = params | {"blocks": {"layers": params["blocks"]["layers"][:1]}}
    alone = models.vision_transformer(
        (4, 4, 1), 3, patch_size=2, **(TINY | {"num_layers": 1})
    )
    expected = jax.jit(alone.apply)(first, x[0])[0]
    np.testing.assert_allclose(dropped[0], expected, rtol=1e-5)
    assert abs(plain[0] - dropped[0]) > 1e-3


def test_the_head_of_a_new_one_is_zero():
    model = models.vision_transformer((4, 4, 1), 3, patch_size=2, **TINY)
    head = jax.jit(lambda key: model.init(key)["head"])(jax.random.key(0))
    assert not np.any(head["weight"])
    assert not np.any(head["bias"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "L"}, "need size"),
        ({"pool": "max"}, "need pool"),
        ({"patch_size": 3}, "need patch_size that divides the image, got patch_size=3"),
        ({"num_heads": 5}, "need num_heads that divides features"),
        ({"num_layers": 0}, "need an int num_layers >= 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"scan": True, "drop_path_rate": 0.1}, "need no drop_path_rate with scan"),
        ({"in_shape": (8, 8)}, "need in_shape (height, width, channels), got"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"in_shape": (8, 8, 1), "classes": 3, "patch_size": 4} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        models.vision_transformer(**options)


def test_an_image_of_another_shape_is_refused():
    model = models.vision_transformer((8, 8, 1), 3, patch_size=4, **TINY)
    params = jax.eval_shape(model.init, jax.random.key(0))
    message = r"image: need x of shape \(8, 8, 1\), got shape \(8, 9, 1\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, params, jnp.ones((8, 9, 1)))

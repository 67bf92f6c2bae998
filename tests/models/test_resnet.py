"""Residual networks: formula, published sizes, states, messages."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles_models import conv, dense

import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree
from fngrad.layers.layer_tree import original, parts_of

SMALL = {"stem": "small", "width": 2, "blocks": (2, 1)}


def abstract(model):
    made = jax.eval_shape(model.init, jax.random.key(0))
    return made if isinstance(model, layers.StatefulLayer) else (made, ())


def count(a):
    return sum(leaf.size for leaf in jax.tree.leaves(a))


def filled(a):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: np.abs(rng.normal(size=s.shape)).astype("f"), a)


def relu_of_norm(params, state, x):
    scaled = (x - state["mean"]) / np.sqrt(state["var"] + 1e-5)
    return np.maximum(scaled * params["scale"] + params["bias"], 0)


def branch_of(params, state, x, stride):
    """Return the convolutions of a branch, with a norm before each but the first."""
    kernels = [p["weight"] for p in params["layers"][::2]]
    norms = list(zip(params["layers"][1::2], state["layers"][1::2], strict=True))
    strides = (1, stride, 1) if len(kernels) == 3 else (stride, 1)
    y = conv(x, kernels[0], strides[0])
    for kernel, norm, s in zip(kernels[1:], norms, strides[1:], strict=True):
        y = conv(relu_of_norm(*norm, y), kernel, s)
    return y


def block_of(params, state, x, stride):
    before = relu_of_norm(params["norm"], state["norm"], x)
    if "branch" in params:
        return x + branch_of(params["branch"], state["branch"], before, stride)
    params, state = params["paths"], state["paths"]
    shortcut = conv(before, params["projection"]["weight"], stride)
    return shortcut + branch_of(params["branch"], state["branch"], before, stride)


def oracle(params, state, x):
    x = conv(x, params["stem"]["layers"][0]["weight"])
    for i, stage in enumerate(params["stages"]["layers"]):
        of_stage = state["stages"]["layers"][i]["layers"]
        for j, block in enumerate(stage["layers"]):
            x = block_of(block, of_stage[j], x, 2 if i > 0 and j == 0 else 1)
    x = relu_of_norm(params["norm"], state["norm"], x)
    return dense(params["head"], x.mean((0, 1)))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_it_is_its_formula(bottleneck):
    model = models.resnet(1, 3, bottleneck=bottleneck, **SMALL)
    params, state = filled(abstract(model))
    x = np.random.default_rng(1).normal(size=(5, 4, 1)).astype("f")
    got, same = jax.jit(model.apply)(params, state, x)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, state))
    np.testing.assert_allclose(got, oracle(*wide, x), rtol=1e-4)
    assert tree.mismatch(state, same) is None


def by_hand(counts, *, bottleneck, classes=1000, width=64):
    """Add up kernels, norms (a scale and a bias each) and the head."""
    total, channels = 7 * 7 * 3 * width, width
    for stage, blocks in enumerate(counts):
        inner = width * 2**stage
        out = 4 * inner if bottleneck else inner
        for block in range(blocks):
            if bottleneck:
                total += channels * inner + 9 * inner**2 + inner * out
                total += 2 * channels + 4 * inner
            else:
                total += 9 * channels * inner + 9 * inner**2
                total += 2 * channels + 2 * inner
            if block == 0 and (stage > 0 or channels != out):
                total += channels * out
            channels = out
    return total + 2 * channels + (channels + 1) * classes


# Version 1 has 11,689,512, 21,797,672, 25,557,032, 44,549,160 and 60,192,808: kernels
# and head are the same, the norms have other channels. From depth 50 on the second
# column is what others publish for version 2.
@pytest.mark.parametrize(
    ("depth", "counts", "published", "of_version_one"),
    [
        (18, (2, 2, 2, 2), None, 11_689_512),
        (34, (3, 4, 6, 3), None, 21_797_672),
        (50, (3, 4, 6, 3), 25_549_352, 25_557_032),
        pytest.param(
            *(101, (3, 4, 23, 3), 44_541_480, 44_549_160), marks=pytest.mark.slow
        ),
        pytest.param(
            *(152, (3, 8, 36, 3), 60_185_128, 60_192_808), marks=pytest.mark.slow
        ),
    ],
)
def test_every_depth_has_its_published_number_of_parameters(
    depth, counts, published, of_version_one
):
    params, state = abstract(models.resnet(3, 1000, depth=depth))
    total = count(params)
    assert total == by_hand(counts, bottleneck=depth >= 50)
    assert total == published or published is None
    assert abs(total / of_version_one - 1) < 4e-4
    leaves = tree.leaf_paths(params)
    norms = sum(p.size for path, p in leaves.items() if p.ndim == 1) - 1000
    assert count(state) == norms  # a mean and a variance for each scale and bias


@pytest.mark.parametrize(
    ("size", "stem", "depth", "expected"),
    [
        (224, "imagenet", 50, [(56, 56, 64), (7, 7, 2048)]),
        (32, "small", 18, [(32, 32, 64), (4, 4, 512)]),
        pytest.param(
            *(8, "small", 34, [(8, 8, 64), (1, 1, 512)]), marks=pytest.mark.slow
        ),
    ],
)
def test_stages_halve_the_image(size, stem, depth, expected):
    model = models.resnet(3, 10, depth=depth, stem=stem, norm="group")
    params, _ = abstract(model)
    x = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
    shapes = []

    def noted(params, x):
        y = stem_of.apply(params["stem"], x)
        shapes.append(y.shape)
        y = stages_of.apply(params["stages"], y)
        shapes.append(y.shape)
        return model.apply(params, x)

    children = {c.path: original(c.layer) for c in parts_of(model).children}
    stem_of, stages_of = children["stem"], children["stages"]
    assert jax.eval_shape(noted, params, x).shape == (10,)
    assert shapes == expected


def test_group_norm_makes_a_layer_of_one_example():
    model = models.resnet(1, 3, norm="group", groups=2, **SMALL)
    assert isinstance(model, layers.Layer)
    params = filled(abstract(model)[0])
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 1)).astype("f")
    together = jax.jit(layers.batched(model))(params, x)
    alone = jax.jit(model.apply)(params, x[1])
    np.testing.assert_allclose(together[1], alone, rtol=1e-4)
    assert (
        tree.leaf_paths(params).keys()
        == tree.leaf_paths(abstract(models.resnet(1, 3, **SMALL))[0]).keys()
    )


@functools.cache
def outputs_of(rate):
    model = models.resnet(1, 3, drop_path_rate=rate, norm="group", groups=2, **SMALL)
    params = filled(abstract(model)[0])
    x = np.ones((64, 4, 4, 1), np.float32)
    return jax.jit(layers.batched(model))(params, x, key=jax.random.key(0))


@pytest.mark.slow
def test_drop_path_leaves_branches_out_for_each_example():
    assert len(np.unique(outputs_of(None)[:, 0])) == 1
    # Of three blocks the first always counts, the other two at rates 0.25 and 0.5.
    assert len(np.unique(np.round(outputs_of(0.5)[:, 0], 3))) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "need depth"),
        ({"stem": "large"}, "need stem"),
        ({"norm": "layer"}, "need norm"),
        ({"blocks": ()}, "need at least one stage, got blocks=()"),
        ({"blocks": (1, 0)}, "need an int blocks >= 1"),
        ({"blocks": 3}, "need a sequence of sizes as blocks"),
        ({"width": 0}, "need an int width >= 1"),
        ({"norm": "group", "groups": 3}, "need groups that divide channels"),
        ({"drop_path_rate": 2.0}, "drop_path_rate"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.resnet(3, 10, **options)

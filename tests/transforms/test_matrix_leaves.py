"""Muon warns where stacked layers hide matrices, and only there."""

import re
import warnings

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
import fngrad.layers as layers

SIZES = {"features": 8, "num_heads": 2, "num_layers": 3}
SCANNED = fg.models.transformer(11, 6, scan=True, **SIZES)


def shapes_of(model):
    params = jax.eval_shape(model.init, jax.random.key(0))
    return params[0] if isinstance(params, tuple) else params


def of_shapes(**shapes):
    return {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}


def warns(message):
    return pytest.warns(UserWarning, match=message)


def silent(optimizer, params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(optimizer.init, params)


def test_scanned_blocks_are_told_with_the_cure():
    params = shapes_of(SCANNED)
    with warns(
        r"'blocks/attention/attend/key/bias' of shape \(3, 8\).*layerwise"
    ) as told:
        jax.eval_shape(fg.muon(0.1).init, params)
    (glob,) = re.findall(r'muon\(\.\.\.\), "(.*?)"', str(told[0].message))
    assert glob == "blocks/**"
    silent(fg.layerwise(fg.muon(0.1), glob), params)


def test_repeated_layers_are_told():
    deep = layers.repeat(layers.linear(4, 4), 3)
    model = layers.serial(deep=deep, head=layers.linear(4, 2))
    with warns(
        r"3 stacked vectors.*layerwise\(fngrad\.muon\(\.\.\.\), \"deep/\*\*\"\)"
    ):
        fg.muon(0.1).init(model.init(jax.random.key(0)))


def test_a_model_of_one_stack_is_told():
    params = layers.repeat(layers.linear(4, 4), 3).init(jax.random.key(0))
    with warns(r'fngrad\.muon\(\.\.\.\), "\*\*"\)'):
        fg.muon(0.1).init(params)
    silent(fg.layerwise(fg.muon(0.1), "**"), params)


def test_a_group_without_a_matrix_is_told():
    params = {"layers": of_shapes(w=(6, 8, 8)), "head": of_shapes(w=(8, 2))}

    def grouped(matrices):
        return fg.partition([("layers/w", matrices), ("**", fg.adamw(1e-3))])

    message = r"no matrix.*'layers/w' of shape \(6, 8, 8\).*\"layers/\*\*\""
    with warns(message):
        jax.eval_shape(grouped(fg.muon(2e-2)).init, params)
    with warns(message):
        fg.describe(grouped(fg.muon(2e-2)), params)
    silent(grouped(fg.layerwise(fg.muon(2e-2), "layers/**")), params)


def test_a_transform_warns_once():
    params, optimizer = {"w": jnp.ones((2, 3, 3))}, fg.muon(0.1)
    with warns("no matrix"):
        state = optimizer.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.update(params, state, params)
        optimizer.init(params)


@pytest.mark.parametrize(
    "params",
    [
        shapes_of(fg.models.cnn((8, 8, 1), 3)),
        shapes_of(fg.models.transformer(11, 6, **SIZES)),
        shapes_of(fg.models.mlp((3, 4, 2))),
        of_shapes(kernel=(3, 3, 1, 2), head=(8, 2)),
        of_shapes(kernel=(3, 4, 5), head=(5, 3)),  # a convolution of one axis
        of_shapes(tensor=(4, 4, 4), weight=(4, 4)),  # may be one bilinear layer
        of_shapes(w=(3, 16, 32), proj=(3, 32)),  # a matrix beside a kernel
        of_shapes(bias=(3,), scale=()),
    ],
    ids=[
        "cnn",
        "transformer",
        "mlp",
        "kernels",
        "1d",
        "bilinear",
        "beside",
        "no matrix",
    ],
)
def test_what_is_not_stacked_is_not_told(params):
    silent(fg.muon(0.1), params)


def test_kernels_alone_are_told_how_they_become_matrices():
    params = {"a": of_shapes(weight=(3, 3, 1, 2)), "b": of_shapes(weight=(3, 3, 2, 2))}
    with warns(r'matrices="\*\*/weight"'):
        jax.eval_shape(fg.muon(0.1).init, params)
    silent(fg.muon(0.1, matrices="**/weight"), params)


def test_leaves_of_one_shape_in_a_stack_are_no_siblings():
    params = {"in": of_shapes(weight=(3, 16)), "kernel": of_shapes(weight=(3, 8, 16))}
    silent(fg.muon(0.1), params)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
    silent(fg.stack_leaves(fg.muon(0.1)), params)

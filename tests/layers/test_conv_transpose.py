"""Transposed convolution against a loop in float64, against lax, and against conv."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fngrad.layers as layers
from fngrad.layers import initializers

# shape of x, window, stride, padding, dilation, groups
CASES = [
    ((3, 4, 4), 3, 2, "SAME", 1, 1),
    ((3, 2, 4), (2, 3), (3, 1), "VALID", (1, 2), 2),
    ((3, 3, 4), (3, 2), 2, [(1, 0), (0, -1)], 1, 4),
    ((4, 2), (2,), 3, "VALID", 1, 1),  # no window reaches some positions of y
    ((4, 2), (1,), 2, "SAME", 1, 1),
    ((4, 2), (2,), 1, [(2, 3)], 2, 2),  # more is cut off than one window reaches
    ((2, 1, 2, 2), (2, 1, 3), (2, 1, 1), "SAME", 1, 1),
]


def each(value, rank):
    return (value,) * rank if isinstance(value, int) else value


def oracle(x, weight, bias, stride, cut, dilation, groups):
    """Add W times every x to the positions that its window reaches; then cut."""
    *window, in_size, out_size = weight.shape
    sizes = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape, stride, window, dilation, strict=False)
    ]
    y = np.zeros((*np.maximum(sizes, 1), out_size))
    of_out = out_size // groups
    for p, k in itertools.product(np.ndindex(x.shape[:-1]), np.ndindex(*window)):
        q = tuple(np.multiply(stride, p) + np.multiply(dilation, k))
        for group in range(groups):
            mine = slice(group * of_out, (group + 1) * of_out)
            part = x[p][group * in_size : (group + 1) * in_size]
            y[q][mine] += part @ weight[k][:, mine]
    for axis, (before, after) in enumerate(cut):
        y = np.moveaxis(y, axis, 0)
        y = y[max(before, 0) : len(y) - max(after, 0)]
        more = [(max(-before, 0), max(-after, 0))] + [(0, 0)] * (y.ndim - 1)
        y = np.moveaxis(np.pad(y, more), 0, axis)
    return y + bias


def cut_of(padding, window, stride, dilation):
    """Return the positions to cut off, from the sizes that y should have."""
    if not isinstance(padding, str):
        return padding
    cuts = []
    for k, s, d in zip(window, stride, dilation, strict=True):
        extent = (k - 1) * d + 1
        surplus = extent - s  # of all that is reached, over size * stride
        if padding == "VALID":
            cuts.append((0, min(surplus, 0)))
        else:
            cuts.append((max(surplus, 0) // 2, surplus - max(surplus, 0) // 2))
    return cuts


def made(case, **options):
    shape, window, stride, padding, dilation, groups = case
    layer = layers.conv_transpose(
        shape[-1],
        4,
        window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias_init=initializers.normal(1.0),
        **options,
    )
    rng = np.random.default_rng(0)
    like = jax.eval_shape(layer.init, jax.random.key(0))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype("f"), like)
    return layer, params, rng.normal(size=shape).astype("f")


@pytest.mark.parametrize("case", CASES)
def test_it_adds_up_what_each_position_gives_to_its_window(case):
    layer, params, x = made(case)
    _, window, stride, padding, dilation, groups = case
    rank = x.ndim - 1
    window, stride, dilation = (each(v, rank) for v in (window, stride, dilation))
    wide = [np.asarray(a, np.float64) for a in (x, params["weight"], params["bias"])]
    cut = cut_of(padding, window, stride, dilation)
    expected = oracle(*wide, stride, cut, dilation, groups)
    if padding == "SAME":
        assert expected.shape[:-1] == tuple(np.multiply(x.shape[:-1], stride))
    got = jax.jit(layer.apply)(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride"), [((3, 4), (2, 1)), ((2, 2), (3, 2))])
def test_lax_gives_the_same_with_the_window_from_the_other_end(window, stride, padding):
    layer, params, x = made(((3, 4, 2), window, stride, padding, 1, 1))
    expected = lax.conv_transpose(
        x[None],
        np.flip(params["weight"], (0, 1)),
        stride,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    got = layer.apply(params, x) - params["bias"][None, None]
    np.testing.assert_allclose(got, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES[:2])
def test_it_is_the_transpose_of_conv(case):
    layer, params, x = made(case)
    shape, window, stride, padding, dilation, groups = case
    forward = layers.conv(
        4,
        shape[-1],
        window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    # In each group the transpose swaps inputs and outputs.
    *front, in_size, out_size = params["weight"].shape
    apart = params["weight"].reshape(*front, in_size, groups, out_size // groups)
    swapped = np.swapaxes(apart, -3, -1)
    weight = swapped.reshape(*front, out_size // groups, groups * in_size)
    y = layer.apply(params, x) - params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    z = np.random.default_rng(1).normal(size=y.shape).astype("f")
    back = forward.apply({"weight": weight}, z)
    np.testing.assert_allclose(np.vdot(y, z), np.vdot(x, back), rtol=1e-4)


@pytest.mark.parametrize("case", CASES[:3])
def test_both_implementations_have_the_same_gradients(case):
    _, params, x = made(case)

    @jax.jit
    def gradients(params, x):
        def total(implementation, params, x):
            layer = made(case, implementation=implementation)[0]
            return jnp.sum(jnp.sin(layer.apply(params, x)))

        return [
            jax.grad(lambda p, x, name=name: total(name, p, x), (0, 1))(params, x)
            for name in ("native", "canonical", None)
        ]

    expected, *others = gradients(params, x)
    for got in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            got,
            expected,
        )


def test_bfloat16_is_kept():
    layer, params, x = made(CASES[0])
    narrow = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), (params, x))
    y = layer.apply(*narrow)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float32), layer.apply(params, x), rtol=0.05, atol=0.15
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "need groups that divide in_channels and out_channels"),
        ({"padding": "same"}, 'need padding "SAME", "VALID" or pairs (before, after)'),
        ({"stride": 0}, "need an int stride >= 1"),
        ({"implementation": "fast"}, "implementation"),
        ({"kernel_size": (1, 1, 1, 1)}, "need kernel_size over 1 to 3 axes, got"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"kernel_size": 3} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        layers.conv_transpose(2, 4, **options)


def test_a_padding_that_cuts_everything_off_is_refused():
    layer = layers.conv_transpose(1, 1, (3,), padding=[(3, 3)])
    params = jax.eval_shape(layer.init, 0)
    message = (
        r"leaves a position of y, got padding=\[\(3, 3\)\] with x of shape \(4, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.apply, params, jnp.ones((4, 1)))

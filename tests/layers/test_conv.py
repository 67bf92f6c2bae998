"""Convolution and pooling against loops in float64."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
from fngrad.layers import initializers


def same_pads(size, window, stride, dilation=1):
    """Return the zeros before and after, for ceil(size / stride) positions."""
    positions = -(-size // stride)
    total = max((positions - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def windows(x, window, stride, pads, dilation, fill):
    """Yield (position, content), the content of shape (*window, channels)."""
    padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    counts = [
        (size - (w - 1) * d - 1) // s + 1
        for size, w, s, d in zip(padded.shape, window, stride, dilation, strict=False)
    ]
    for position in itertools.product(*map(range, counts)):
        cut = tuple(
            slice(p * s, p * s + (w - 1) * d + 1, d)
            for p, s, w, d in zip(position, stride, window, dilation, strict=True)
        )
        yield position, padded[cut]


def conv_oracle(x, weight, bias, stride, pads, dilation, groups):
    window, in_size = weight.shape[:-2], weight.shape[-2]
    out_size = weight.shape[-1] // groups
    y = {}
    for position, content in windows(x, window, stride, pads, dilation, 0.0):
        for group in range(groups):
            of_in = content[..., group * in_size : (group + 1) * in_size]
            for o in range(group * out_size, (group + 1) * out_size):
                y[*position, o] = np.sum(of_in * weight[..., o]) + bias[o]
    shape = [n + 1 for n in max(y)]
    return np.array([y[index] for index in np.ndindex(*shape)]).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "window", "stride", "padding", "dilation", "groups"),
    [
        ((5, 6, 4), 3, 1, "SAME", 1, 1),
        ((5, 6, 4), (2, 3), (2, 1), "SAME", (1, 2), 2),
        ((6, 5, 4), (3, 2), 2, "VALID", 1, 4),
        ((4, 4, 2), 2, 1, [(1, 0), (2, 3)], 1, 1),
        ((7, 2), (3,), 2, "SAME", 1, 1),
        ((6, 2), (2,), 1, [(2, 0)], 2, 2),
    ],
)
def test_conv_equals_a_loop_over_windows(
    shape, window, stride, padding, dilation, groups
):
    layer = layers.conv(
        shape[-1],
        4,
        window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias_init=initializers.normal(1.0),
    )

    @jax.jit
    def applied(key):
        k_params, k_x = jax.random.split(key)
        params, x = layer.init(k_params), jax.random.normal(k_x, shape)
        return params, x, layer.apply(params, x)

    params, x, got = applied(jax.random.key(0))
    rank = len(shape) - 1
    window, stride, dilation = (
        (v,) * rank if isinstance(v, int) else v for v in (window, stride, dilation)
    )
    assert params["weight"].shape == (*window, shape[-1] // groups, 4)
    pads = {
        "SAME": list(map(same_pads, shape[:-1], window, stride, dilation)),
        "VALID": [(0, 0)] * rank,
    }.get(padding if isinstance(padding, str) else "", padding)
    weight, bias, wide_x = (
        np.asarray(a, np.float64) for a in (params["weight"], params["bias"], x)
    )
    expected = conv_oracle(wide_x, weight, bias, stride, pads, dilation, groups)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [
        (2, None, "VALID"),
        ((3, 2), (2, 1), "SAME"),
        (3, 2, [(1, 1), (0, 2)]),
    ],
)
def test_pools_equal_a_loop_over_windows(window, stride, padding):
    x = np.random.default_rng(0).normal(-3.0, size=(5, 6, 2)).astype(np.float32)
    sizes = (window,) * 2 if isinstance(window, int) else window
    strides = sizes if stride is None else stride
    strides = (strides,) * 2 if isinstance(strides, int) else strides
    pads = {
        "SAME": list(map(same_pads, x.shape, sizes, strides)),
        "VALID": [(0, 0)] * 2,
    }.get(padding if isinstance(padding, str) else "", padding)
    content = windows(x, sizes, strides, pads, (1, 1), np.nan)
    contents = [window for _, window in content]
    for make, reduce in [
        (layers.max_pool, np.nanmax),
        (layers.avg_pool, np.nanmean),
    ]:
        layer = make(window, stride=stride, padding=padding)
        got = np.reshape(jax.jit(layer.apply)((), x), (-1, 2))
        expected = np.stack([reduce(c, axis=(0, 1)) for c in contents])
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_pools_take_sequences():
    x = jnp.arange(6.0).reshape(6, 1)
    got = layers.max_pool(2).apply((), x)
    np.testing.assert_array_equal(got[:, 0], [1.0, 3.0, 5.0])


def test_global_pools_leave_the_channels():
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    expected = np.asarray(x).mean((0, 1))
    np.testing.assert_allclose(layers.global_avg_pool(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(layers.global_max_pool(x), np.asarray(x).max((0, 1)))


@pytest.mark.parametrize("mean", [layers.global_avg_pool, layers.avg_pool(300).apply])
def test_means_in_bfloat16_are_taken_in_float32(mean):
    # In bfloat16 a sum of ones stops at 256.
    x = jnp.ones((300, 1), jnp.bfloat16)
    y = mean(x) if mean is layers.global_avg_pool else mean((), x)[0]
    assert y.dtype == jnp.bfloat16
    assert y[0] == 1.0


def test_conv_draws_with_the_initializers_given():
    layer = layers.conv(
        2,
        3,
        (2,),
        weight_init=initializers.constant(2.0),
        bias_init=initializers.constant(3.0),
    )
    params = layer.init(jax.random.key(0))
    np.testing.assert_array_equal(params["weight"], np.full((2, 2, 3), 2.0))
    np.testing.assert_array_equal(params["bias"], np.full(3, 3.0))
    assert list(layers.conv(2, 3, 1, bias=False).init(0)) == ["weight"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.conv(3, 4, 3, groups=2), "groups=2 in_channels=3"),
        (lambda: layers.conv(4, 3, 3, groups=2), "groups=2 in_channels=4"),
        (lambda: layers.conv(0, 4, 3), "need an int in_channels >= 1"),
        (lambda: layers.conv(1, 4, 0), "need an int kernel_size >= 1"),
        (lambda: layers.conv(1, 4, 3, stride=0), "need an int stride >= 1"),
        (
            lambda: layers.conv(1, 4, 3, stride=(1, 1, 1)),
            "need one stride for each of 2 axes, got (1, 1, 1)",
        ),
        (
            lambda: layers.conv(1, 4, 3, padding="same"),
            'need padding "SAME", "VALID" or pairs (before, after), got \'same\'',
        ),
        (
            lambda: layers.conv(1, 4, 3, padding=[(1, 1)]),
            "need a padding (before, after) for each of 2 axes, got [(1, 1)]",
        ),
        (lambda: layers.max_pool(0), "need an int window >= 1"),
        (lambda: layers.avg_pool(2, stride=0), "need an int stride >= 1"),
        (lambda: layers.max_pool(2, padding="FULL"), "got 'FULL'"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            layers.conv(1, 4, 3),
            (2, 8, 8, 1),
            "need x of shape (height, width, 1), got shape (2, 8, 8, 1)",
        ),
        (layers.conv(3, 4, 3), (8, 8, 1), "need x of shape (height, width, 3)"),
        (layers.conv(3, 4, (3,)), (8, 8, 3), "need x of shape (length, 3)"),
        (
            layers.conv(1, 4, 3, padding="VALID"),
            (2, 8, 1),
            "need x no smaller than the window=(3, 3), got shape (2, 8, 1)",
        ),
        (layers.max_pool(4), (3, 3, 1), "no smaller than the window=(4, 4)"),
        (layers.max_pool((2, 2)), (4, 1), "need x of shape (height, width, channels)"),
    ],
)
def test_examples_of_another_shape_are_refused(layer, shape, message):
    params = jax.eval_shape(layer.init, jax.random.key(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(layer.apply, params, jnp.ones(shape))


@pytest.mark.parametrize("kernel_size", [(), (1, 1, 1, 1)])
def test_a_window_has_one_to_three_axes(kernel_size):
    with pytest.raises(ValueError, match="need kernel_size over 1 to 3 axes, got"):
        layers.conv(1, 1, kernel_size)

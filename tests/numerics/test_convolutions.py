"""Both implementations of a convolution give the same values and derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_mode import x64
from jax import export

from fngrad.numerics.convolutions import Geometry, convolve


def geometry(rank, stride=1, padding=(1, 1), dilation=1, spacing=1, groups=1):
    each = (
        value if isinstance(value, tuple) else (value,) * rank
        for value in (stride, dilation, spacing)
    )
    strides, dilations, spacings = each
    pads = (padding,) * rank if isinstance(padding[0], int) else padding
    return Geometry(strides, pads, dilations, spacings, groups)


# name: (positions, window, channels in and out, geometry)
GRID = {
    "sequence": ((7,), (3,), (2, 3), geometry(1)),
    "causal, dilated": ((9,), (3,), (2, 2), geometry(1, padding=(4, 0), dilation=2)),
    "image": ((5, 6), (3, 2), (3, 4), geometry(2)),
    "same size": ((5, 6), (3, 3), (3, 4), geometry(2)),
    "stride": ((6, 7), (3, 3), (2, 3), geometry(2, stride=(2, 3), padding=(0, 1))),
    "uneven": (
        (6, 5),
        (2, 3),
        (2, 2),
        geometry(2, stride=2, padding=((0, 2), (3, 1)), dilation=(2, 1)),
    ),
    "transposed": ((3, 4), (3, 2), (2, 3), geometry(2, spacing=2, padding=(2, 1))),
    "cropped": ((6, 6), (3, 3), (2, 2), geometry(2, padding=(-1, 0))),
    "volume": ((3, 4, 3), (2, 2, 2), (2, 2), geometry(3, padding=(0, 1))),
    "one position": ((4, 5), (1, 1), (3, 4), geometry(2, stride=2, padding=(0, 1))),
    "depthwise": ((5, 4), (2, 2), (3, 3), geometry(2, dilation=(1, 2), groups=3)),
    "depthwise, twofold": ((7,), (3,), (2, 4), geometry(1, stride=2, groups=2)),
    "groups": ((4, 5), (1, 2), (4, 6), geometry(2, stride=(2, 1), groups=2)),
    "spaced groups": ((3,), (3,), (4, 2), geometry(1, spacing=2, groups=2)),
}


def problem(name, dtype=np.float64, examples=2):
    positions, window, (c_in, c_out), where = GRID[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, *positions, c_in))
    kernel = rng.normal(size=(*window, c_in // where.groups, c_out))
    rounded = (jnp.asarray(jnp.asarray(a, dtype), dtype) for a in (x, kernel))
    return (*rounded, where)


def batched(where, implementation=None):
    def apply(x, kernel):
        return jax.vmap(lambda x: convolve(x, kernel, where, implementation))(x)

    return apply


def derivatives(where, implementation):
    """Return the value, both gradients and the derivative in a direction."""
    apply = batched(where, implementation)

    def all_of(x, kernel):
        y, pull = jax.vjp(apply, x, kernel)
        slope = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        push = jax.jvp(apply, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]
        return y, *pull(slope), push

    return all_of


@pytest.mark.parametrize("name", GRID)
def test_values_and_derivatives_are_those_of_the_native_convolution(name):
    with x64():
        x, kernel, where = problem(name)

        @jax.jit
        def both(x, kernel):
            return [derivatives(where, way)(x, kernel) for way in ("native", None)]

        for want, got in zip(*both(x, kernel), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sequence", "one position"])
def test_an_argument_forces_an_implementation(name):
    x, kernel, where = problem(name, np.float32)
    on_cpu, forced = (
        jax.jit(derivatives(where, way))(x, kernel) for way in (None, "canonical")
    )
    jax.tree.map(np.testing.assert_array_equal, on_cpu, forced)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["stride", "groups"])
def test_sums_are_rounded_to_a_narrow_dtype_once(name, dtype):
    # The products are added in float32, also where windows overlap.
    x, kernel, where = problem(name, dtype, examples=16)
    narrow = jax.jit(derivatives(where, None))(x, kernel)
    with x64():
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, kernel)]
        y = jax.eval_shape(batched(where), *wide)
        slope = np.cos(np.arange(y.size)).reshape(y.shape)
        rounded = jnp.cos(jnp.arange(y.size, dtype=dtype)).reshape(y.shape)
        slope = jnp.asarray(np.asarray(rounded, np.float64))

        @jax.jit
        def exact(x, kernel):
            y, pull = jax.vjp(batched(where, "native"), x, kernel)
            return y, *pull(slope)

        for want, got in zip(exact(*wide), narrow[:3], strict=True):
            assert got.dtype == dtype
            tolerance = max(float(jnp.finfo(dtype).eps) / 2, 2e-6)
            got = np.asarray(got, np.float64)
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=2e-5)


def summed(where, implementation):
    return lambda x, kernel: jnp.sum(jnp.sin(batched(where, implementation)(x, kernel)))


def hessian_product(f, x, kernel):
    gradient = jax.grad(f, (0, 1))
    return jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]


def twice_reverse(f, x, kernel):
    def slope(x, kernel):
        return sum(jnp.sum(jnp.cos(g)) for g in jax.grad(f, (0, 1))(x, kernel))

    return jax.grad(slope, (0, 1))(x, kernel)


def over_kernels(f, x, kernel):
    return jax.vmap(jax.grad(f, (0, 1)), (None, 0))(x, jnp.stack([kernel, 2 * kernel]))


def over_both(f, x, kernel):
    kernels = jnp.stack([kernel, 2 * kernel])
    return jax.vmap(jax.grad(f, (0, 1)))(jnp.stack([x, -x]), kernels)


def per_example(f, x, kernel):
    return jax.vmap(jax.grad(lambda x, k: f(x[None], k), (0, 1)), (0, None))(x, kernel)


def in_a_loop(f, x, kernel):
    def body(kernel, x):
        value, slope = jax.value_and_grad(f, 1)(x[None], kernel)
        return kernel - 0.1 * slope, value

    return jax.lax.scan(body, kernel, x)


def through_a_loop(f, x, kernel):
    def total(kernel):
        def body(carry, x):
            return carry + f(x[None], kernel), None

        return jax.lax.scan(jax.checkpoint(body), 0.0, x)[0]

    return jax.grad(total)(kernel)


def kernel_alone(f, x, kernel):
    return jax.grad(f, 1)(x, kernel)


WAYS = [
    *(hessian_product, twice_reverse, over_kernels, over_both, per_example),
    *(in_a_loop, through_a_loop, kernel_alone),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["sequence", "depthwise, twofold"])
def test_every_transformation_of_jax_gives_the_native_results(name, way):
    with x64():
        x, kernel, where = problem(name)

        @jax.jit
        def both(x, kernel):
            return [way(summed(where, i), x, kernel) for i in ("native", None)]

        want, got = both(x, kernel)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11),
            got,
            want,
        )


@pytest.mark.parametrize("kernel_too", [False, True])
def test_arrays_of_numpy_can_be_mapped_over_within_a_program(kernel_too):
    x, kernel, where = problem("sequence", np.float32)
    x, kernel = np.asarray(x), np.stack([kernel] * len(x))
    axes = (0, 0 if kernel_too else None)

    def apply(scale):
        own = kernel if kernel_too else kernel[0]
        y = jax.vmap(lambda x, k: convolve(x, k, where), axes)(x, own)
        return scale * y

    np.testing.assert_allclose(jax.jit(apply)(1.0), apply(1.0), rtol=1e-5, atol=1e-6)


def primitives(fn, *args):
    return set(re.findall(r"= ([a-z_0-9]+)[\[ ]", str(jax.make_jaxpr(fn)(*args))))


def test_the_switch_is_only_where_implementations_differ():
    x, kernel, where = problem("image", np.float32)
    assert "platform_index" not in primitives(batched(where), x, kernel)
    slope = jax.grad(summed(where, None))
    assert "platform_index" in primitives(slope, x, kernel)
    for forced in ("native", "canonical"):
        slope = jax.grad(summed(where, forced))
        assert "platform_index" not in primitives(slope, x, kernel)


CANONICAL, SWAPPED = "[0, i, o]", "[0, o, i]"


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("cpu", "tpu")])
def test_an_exported_program_holds_what_its_platforms_take(platforms):
    x, kernel, where = problem("sequence", np.float32)
    slope = jax.jit(jax.grad(summed(where, None)))
    exported = export.export(slope, platforms=platforms)(x, kernel)
    assert (SWAPPED in exported.mlir_module()) == (platforms != ("cpu",))
    if "cpu" in platforms:
        got = exported.call(x, kernel)
        np.testing.assert_allclose(got, slope(x, kernel), rtol=1e-6, atol=1e-6)


LAYOUT = re.compile(r"= [^\n]* convolution\([^\n]*dim_labels=(\S+?)[,\s]")


@pytest.mark.parametrize(("implementation", "fast"), [(None, True), ("native", False)])
def test_gradients_in_a_loop_have_the_layout_that_is_fast(implementation, fast):
    # XLA brings other layouts into this one outside loops only.
    x, kernel, where = problem("same size", np.float32)
    f = summed(where, implementation)

    def train(x, kernel, change):
        def one(_, values):
            x, kernel, change = values
            slopes = jax.grad(f, (0, 1))(x, kernel)
            product = hessian_product(f, x, kernel)
            return x - slopes[0], kernel - slopes[1], change + product[1]

        return jax.lax.fori_loop(0, 3, one, (x, kernel, change))

    text = jax.jit(train).lower(x, kernel, kernel).compile().as_text()
    found = LAYOUT.findall(text)
    assert len(found) >= 3
    assert (set(found) == {"b01f_01io->b01f"}) == fast, set(found)

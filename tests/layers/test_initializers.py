"""Variances, bounds, orthogonality, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.layers import initializers

# Window 3 x 2, 20 inputs, 40 outputs: fan_in 120, fan_out 240.
SHAPE = (3, 2, 20, 40)


@functools.cache
def drawn(name):
    return np.asarray(
        getattr(initializers, name)()(jax.random.key(0), SHAPE, "float32")
    )


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("he_normal", 2 / 120),
        ("he_uniform", 2 / 120),
        ("glorot_normal", 2 / 360),
        ("glorot_uniform", 2 / 360),
        ("lecun_normal", 1 / 120),
        ("lecun_uniform", 1 / 120),
        ("normal", 0.02**2),
        ("uniform", 0.05**2 / 3),
        # Var of a standard normal cut at 2: 1 - 4 phi(2) / (2 Phi(2) - 1).
        ("truncated_normal", 0.02**2 * 0.7737413),
    ],
)
def test_variance_is_that_of_the_name(name, variance):
    values = drawn(name)
    # 4800 draws: the relative standard error of a variance is at most sqrt(2/4800).
    np.testing.assert_allclose(np.var(values), variance, rtol=0.09)
    assert abs(np.mean(values)) < 5 * np.sqrt(variance / values.size)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("he_uniform", np.sqrt(6 / 120)),
        ("glorot_uniform", np.sqrt(6 / 360)),
        ("lecun_uniform", np.sqrt(3 / 120)),
        ("uniform", 0.05),
        ("truncated_normal", 0.04),
        ("he_normal", 2 * np.sqrt(2 / 120) / 0.87962566),
    ],
)
def test_values_reach_their_bound_and_stay_inside(name, bound):
    largest = np.max(np.abs(drawn(name)))
    assert 0.98 * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        initializers.he_normal,
        initializers.he_uniform,
        initializers.glorot_normal,
        initializers.glorot_uniform,
        initializers.lecun_normal,
        initializers.lecun_uniform,
        initializers.orthogonal,
        initializers.normal,
        initializers.truncated_normal,
        initializers.uniform,
        initializers.constant,
        initializers.delta_orthogonal,
    ],
)
def test_scales_multiply_and_can_be_swept(make):
    shape = (1, 3, 4) if make is initializers.delta_orthogonal else (4, 3)

    @jax.jit
    @jax.vmap
    def sweep(scale):
        return make(scale)(jax.random.key(0), shape, jnp.float32)

    one, three = sweep(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
    alone = make(3.0)(jax.random.key(0), shape, jnp.float32)
    np.testing.assert_allclose(three, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 2, 5)])
def test_orthogonal_matrices_are_orthonormal(shape):
    q = initializers.orthogonal()(jax.random.key(0), shape, jnp.float32)
    q = np.asarray(q, np.float64).reshape(-1, shape[-1])
    gram = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)


def test_orthogonal_rounds_to_bfloat16_last():
    make = initializers.orthogonal()
    narrow = make(jax.random.key(0), (4, 4), jnp.bfloat16)
    wide = make(jax.random.key(0), (4, 4), jnp.float32)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_constants_are_constant():
    key = jax.random.key(0)
    for make, value in [
        (initializers.zeros(), 0.0),
        (initializers.ones(), 1.0),
        (initializers.constant(0.5), 0.5),
    ]:
        got = make(key, (2, 3), jnp.bfloat16)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, np.full((2, 3), value))


def test_the_cut_of_a_truncated_normal_can_be_moved():
    make = initializers.truncated_normal(1.0, lower=0.0, upper=0.5)
    values = make(jax.random.key(0), (1000,), jnp.float32)
    assert np.min(values) >= 0.0
    assert 0.45 < np.max(values) <= 0.5


def test_bad_arguments_are_refused():
    with pytest.raises(
        ValueError, match=r"need lower < upper, got lower=1.0 upper=1.0"
    ):
        initializers.truncated_normal(lower=1.0, upper=1.0)
    with pytest.raises(ValueError, match="scale=nan"):
        initializers.he_normal(float("nan"))


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 4, 8), (64, 1)])
@pytest.mark.parametrize(
    "name",
    [f"{a}_{b}" for a in ("he", "glorot", "lecun") for b in ("normal", "uniform")],
)
def test_jaxs_own_initializers_draw_the_same(name, shape):
    got = getattr(initializers, name)()(jax.random.key(3), shape, jnp.float32)
    want = getattr(jax.nn.initializers, name)()(jax.random.key(3), shape, jnp.float32)
    # A flat draw: older versions of JAX round some shapes otherwise.
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_complex_parameters_are_drawn_as_jax_draws_them():
    got = initializers.he_normal()(jax.random.key(3), (7, 5), jnp.complex64)
    want = jax.nn.initializers.he_normal()(jax.random.key(3), (7, 5), jnp.complex64)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_a_shape_without_inputs_and_outputs_is_refused(shape):
    with pytest.raises(ValueError, match=r"need a shape \(\.\.\., inputs, outputs\)"):
        initializers.glorot_normal()(jax.random.key(0), shape, jnp.float32)


# Of the shape (3, 2, 20, 40): window 6, fans 120 and 240; by other axes as they say.
@pytest.mark.parametrize(
    ("mode", "axes", "variance"),
    [
        ("fan_in", {}, 3 / 120),
        ("fan_out", {}, 3 / 240),
        ("fan_avg", {}, 3 / 180),
        ("fan_geo_avg", {}, 3 / np.sqrt(120 * 240)),
        ("fan_in", {"in_axis": -1, "out_axis": -2}, 3 / 240),
        ("fan_out", {"in_axis": 2, "out_axis": (0, 3)}, 3 / (2 * 120)),
        ("fan_in", {"batch_axis": 0}, 3 / 40),
        ("fan_out", {"batch_axis": (0, 1)}, 3 / 40),
    ],
)
def test_variance_scaling_divides_by_its_fan(mode, axes, variance):
    for distribution, most in [
        ("uniform", np.sqrt(3)),
        ("truncated_normal", 2 / 0.87962566),
    ]:
        make = initializers.variance_scaling(3.0, mode, distribution, **axes)
        values = np.asarray(make(jax.random.key(0), SHAPE, jnp.float32))
        bound = most * np.sqrt(variance)
        assert 0.98 * bound < np.max(np.abs(values)) <= bound * (1 + 1e-6)


def test_variance_scaling_has_the_bits_of_the_names():
    for same, name in [
        (initializers.variance_scaling(2.0), "he_normal"),
        (initializers.variance_scaling(1.0, "fan_avg", "uniform"), "glorot_uniform"),
    ]:
        got = same(jax.random.key(0), SHAPE, jnp.float32)
        np.testing.assert_array_equal(got, drawn(name))


def test_a_normal_is_not_cut_off_and_its_scale_can_be_swept():
    make = initializers.variance_scaling(2.0, "fan_out", "normal", batch_axis=0)
    key = jax.random.key(0)
    values = make(key, (2, 50, 40), jnp.float32)
    expected = np.sqrt(2 / 40) * jax.random.normal(key, (4000,))
    np.testing.assert_allclose(values.ravel(), expected, rtol=1e-6)

    @jax.jit
    def swept(scale):
        make = initializers.variance_scaling(scale, "fan_out", "normal", batch_axis=0)
        return make(key, (2, 50, 40), jnp.float32)

    np.testing.assert_allclose(swept(2.0), values, rtol=1e-6)


def test_complex_variance_scaling_is_that_of_jax():
    args = 1.5, "fan_out", "normal", 0, 1
    make = initializers.variance_scaling(*args[:3], in_axis=0, out_axis=1)
    want = jax.nn.initializers.variance_scaling(*args)(
        jax.random.key(3), (7, 5), jnp.complex64
    )
    got = make(jax.random.key(3), (7, 5), jnp.complex64)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale"),
        ({"mode": "fan"}, "need mode"),
        ({"distribution": "gamma"}, "need distribution"),
    ],
)
def test_unknown_fans_and_distributions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        initializers.variance_scaling(**options)


@pytest.mark.parametrize("axes", [{"in_axis": 2}, {"in_axis": -1}, {"batch_axis": 1}])
def test_axes_that_a_shape_lacks_or_has_twice_are_refused(axes):
    make = initializers.variance_scaling(**axes)
    with pytest.raises(ValueError, match=r"without zeros, with _?Axes.*got \(2, 3\)"):
        make(jax.random.key(0), (2, 3), jnp.float32)


@pytest.mark.parametrize("window", [(3,), (3, 4), (1, 2, 3)])
def test_a_delta_orthogonal_kernel_is_an_orthogonal_map_in_its_middle(window):
    make = initializers.delta_orthogonal()
    kernel = np.array(make(jax.random.key(0), (*window, 3, 5), jnp.float32))
    middle = tuple((size - 1) // 2 for size in window)
    np.testing.assert_allclose(kernel[middle] @ kernel[middle].T, np.eye(3), atol=1e-6)
    kernel[middle] = 0
    assert not np.any(kernel)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3, 2), (3, 0, 2), (1, 1, 1, 1, 2, 2)])
def test_shapes_without_a_window_or_with_fewer_outputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"need a shape \(\*window, inputs, outputs\)"):
        initializers.delta_orthogonal()(jax.random.key(0), shape, jnp.float32)

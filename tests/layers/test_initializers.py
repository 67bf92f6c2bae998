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
    ],
)
def test_scales_multiply_and_can_be_swept(make):
    @jax.jit
    @jax.vmap
    def sweep(scale):
        return make(scale)(jax.random.key(0), (4, 3), jnp.float32)

    one, three = sweep(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
    alone = make(3.0)(jax.random.key(0), (4, 3), jnp.float32)
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

"""Projections onto sets are those of float64, and keep the laws of projections."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_projections as oracles
import pytest

from fngrad.transforms import projections

RNG = np.random.default_rng(5)
# The arguments of each, and its axis; scales at which some slices are inside.
SETS = {
    "non_negative": {},
    "box": {"lower": -0.4, "upper": 0.7},
    "linf_ball": {"radius": 0.6},
    "simplex": {"scale": 1.3},
    "l1_ball": {"radius": 2.5},
    "l2_ball": {"radius": 1.4},
    "l2_sphere": {"radius": 1.4},
}
BY_VECTOR = ("simplex", "l1_ball", "l2_ball", "l2_sphere")
COMPLEX = ("linf_ball", "l1_ball", "l2_ball", "l2_sphere")
AXES = [None, -1, (2, 0)]
X = RNG.normal(size=(3, 4, 2)).astype(np.float32)


def both(name, axis=None, **more):
    """Return a projection and its oracle, of any array."""
    arguments = SETS[name] | more
    oracle = functools.partial(getattr(oracles, name), **arguments)
    if name in BY_VECTOR:
        arguments |= {"axis": axis}
    ours = functools.partial(getattr(projections, name), **arguments)
    return jax.jit(ours), lambda x: oracles.along(oracle, x, axis)


@jax.jit
def all_of(x):
    """Return every projection of the rows of x, by name, in one program."""
    return {name: both(name, x.ndim - 1)[0](x) for name in SETS}


def test_every_public_projection_is_tested():
    assert set(SETS) == set(projections.__all__)


@pytest.mark.parametrize("name", SETS)
def test_the_nearest_point_is_that_of_the_oracle_along_any_axes(name):
    pairs = [both(name, axis) for axis in (AXES if name in BY_VECTOR else [None])]
    projected = jax.jit(lambda x: [ours(x) for ours, _ in pairs])(X)
    for got, (_, oracle) in zip(projected, pairs, strict=True):
        np.testing.assert_allclose(got, oracle(X.astype(np.float64)), atol=5e-7)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_entries_are_projected_by_their_moduli(name):
    z = (X + 1j * RNG.normal(size=X.shape)).astype(np.complex64)
    ours, oracle = both(name, 1)
    np.testing.assert_allclose(ours(z), oracle(z.astype(np.complex128)), atol=5e-7)


@pytest.mark.parametrize("name", SETS)
def test_a_projection_is_idempotent_nearest_and_does_not_expand(name):
    ours, _ = both(name, 1)
    project = jax.vmap(ours)
    x, y = (3 * RNG.normal(size=(2, 50, 3, 4)).astype(np.float32) for _ in range(2))
    x, y = x[0], y[0]
    p, q = (np.asarray(project(a), np.float64) for a in (x, y))
    np.testing.assert_allclose(project(p.astype(np.float32)), p, atol=4e-7)
    if name != "l2_sphere":  # not convex
        rows = (1, 2)
        apart = np.sqrt(np.sum((p - q) ** 2, rows))
        assert np.all(apart <= np.sqrt(np.sum((x - y) ** 2, rows)) * (1 + 1e-6))
        # No point of the set is closer: the angle at the nearest one is not acute.
        assert np.all(np.sum((x - p) * (q - p), rows) <= 1e-5)


@pytest.mark.parametrize("name", SETS)
def test_derivatives_are_those_of_the_oracle(name):
    ours, oracle = both(name, 1)
    v = RNG.normal(size=X.shape)
    x = X.astype(np.float64)
    expected = (oracle(x + 1e-6 * v) - oracle(x - 1e-6 * v)) / 2e-6
    g = RNG.normal(size=X.shape).astype(np.float32)

    @jax.jit
    def derivatives(x, v, g):
        return jax.jvp(ours, (x,), (v,))[1], jax.vjp(ours, x)[1](g)

    tangent, (cotangent,) = derivatives(X, v.astype(np.float32), g)
    np.testing.assert_allclose(tangent, expected, atol=2e-6)
    np.testing.assert_allclose(np.sum(cotangent * v), np.sum(g * expected), rtol=1e-4)


def test_derivatives_are_finite_at_zero_and_at_the_border():
    at_border = {name: p[0] for name, p in all_of(jnp.arange(4.0)[None]).items()}
    points = jnp.stack([jnp.zeros(4), jnp.full(4, 0.7), *at_border.values()])
    slopes = jax.jit(jax.vmap(jax.jacfwd(all_of)))(points)
    assert all(np.all(np.isfinite(slope)) for slope in slopes.values())
    assert not np.any(slopes["l2_sphere"][0])


def test_derivatives_at_a_radius_of_zero_are_those_of_one_that_grows():
    def both_slopes(x, r):
        l1_ball, simplex = projections.l1_ball, projections.simplex
        return [jax.jacfwd(fn, (0, 1))(x, r) for fn in (l1_ball, simplex)]

    ties = [2.0, -2.0, 1.0]
    x = jnp.array([[0.3, 0.2, -0.1], [0.0, -2.0, 2.0], [0.0, 0.0, 0.0], ties])
    slopes = jax.jit(jax.vmap(both_slopes))(x, jnp.array([0.0, 0.0, 0.0, 1.0]))
    third = [1 / 3] * 3
    of_ball = [[1, 0, 0], [0, -0.5, 0.5], [0, 0, 0]]  # ties share the radius
    for (by_x, by_r), expected in zip(
        slopes, (of_ball, [[1, 0, 0], [0, 0, 1], third]), strict=True
    ):
        np.testing.assert_array_equal(by_x[:3], np.zeros((3, 3, 3)))
        np.testing.assert_allclose(by_r[:3], expected, rtol=1e-6)
    by_x, by_r = (of_both[3] for of_both in slopes[0])
    np.testing.assert_array_equal(by_x, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]])
    np.testing.assert_array_equal(by_r, [0.5, -0.5, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_give_the_rounded_value_of_the_oracle(dtype):
    narrow, unit = jnp.asarray(X[0], dtype), float(jnp.finfo(dtype).eps)
    for name, got in all_of(narrow).items():
        assert got.dtype == dtype
        expected = both(name, 1)[1](np.asarray(narrow, np.float64))
        np.testing.assert_allclose(np.float64(got), expected, unit / 2 + 1e-6, 1e-7)


def test_norms_and_sums_of_any_magnitude_are_right():
    at = jnp.array([1e-30, 1.0, 1e30])
    for name in BY_VECTOR:
        key = "scale" if name == "simplex" else "radius"

        def scaled(size, name=name, key=key):
            ours, _ = both(name, 1, **{key: 1.4 * size})
            return ours(X * size) / size

        expected = both(name, 1, **{key: 1.4})[1](X.astype(np.float64))
        for got in jax.jit(jax.vmap(scaled))(at):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_norm_that_overflows_is_still_projected():
    huge = np.full((1, 4), 3e38, np.float32)
    of_huge = all_of(huge)
    np.testing.assert_allclose(of_huge["l2_ball"], np.full((1, 4), 0.7), rtol=1e-6)
    np.testing.assert_allclose(of_huge["l1_ball"], np.full((1, 4), 2.5 / 4), rtol=1e-6)


def test_a_simplex_far_away_and_long_sums_to_its_scale():
    project = jax.jit(projections.simplex)
    far = jnp.array([1e6, 1e6 + 0.5, -1e6])
    np.testing.assert_array_equal(project(far), [0.25, 0.75, 0.0])
    long = project(RNG.normal(size=50_000).astype(np.float32))
    np.testing.assert_allclose(np.sum(np.asarray(long, np.float64)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(project(jnp.zeros(50_000)), 2e-5, rtol=1e-6)
    ties = project(jnp.array([2.0, 2.0, 1.0]))
    np.testing.assert_array_equal(ties, [0.5, 0.5, 0.0])


def test_a_scale_or_radius_of_zero_gives_zeros():
    x = jnp.array([1.0, -2.0, 3.0])

    @jax.jit
    def at_zero(r):
        return [getattr(projections, name)(x, r) for name in ("simplex", *COMPLEX)]

    for made in at_zero(0.0):
        np.testing.assert_array_equal(np.abs(made), 0.0)


def test_zero_goes_to_equal_entries_of_the_sphere():
    expected = np.full((1, 4), 0.7)
    np.testing.assert_allclose(
        all_of(np.zeros((1, 4), np.float32))["l2_sphere"], expected
    )


def test_nan_passes_and_stays_in_its_row():
    x = np.array([[1.0, np.nan, 2.0, 0.0], [0.3, 0.0, 0.1, -np.inf]], np.float32)
    without = all_of(x[1:])
    for name, got in all_of(x).items():
        assert np.isnan(got[0, 1])
        np.testing.assert_array_equal(got[1], without[name][0])


def test_minus_infinity_is_never_in_a_simplex_and_no_entries_stay_none():
    row = jnp.array([0.0, -jnp.inf])
    np.testing.assert_array_equal(jax.jit(projections.simplex)(row), [1.0, 0.0])
    for name in SETS:
        assert both(name)[0](jnp.zeros((0, 3))).shape == (0, 3)


def test_bounds_may_be_arrays_or_missing():
    x = jnp.array([[0.5, -3.0], [2.0, 0.0]])
    lower = jnp.array([[0.0, 1.0]])
    got = projections.box(x, lower)
    np.testing.assert_array_equal(got, [[0.5, 1.0], [2.0, 1.0]])
    np.testing.assert_array_equal(projections.box(x, upper=0), np.minimum(x, 0))


def test_a_radius_can_be_swept_and_differentiated():
    x = jnp.array([3.0, 4.0])
    swept = jax.jit(jax.vmap(lambda r: projections.l2_ball(x, r)))(
        jnp.array([1.0, 10.0])
    )
    np.testing.assert_allclose(swept, [[0.6, 0.8], [3.0, 4.0]], rtol=1e-6)
    point = jnp.array([1.0, 1.2, -9.0])
    slope = jax.jit(jax.jacfwd(lambda s: projections.simplex(point, s)))
    np.testing.assert_allclose(slope(1.0), [0.5, 0.5, 0.0])


def test_what_cannot_be_projected_is_refused():
    x = jnp.ones((2, 3))
    for name in SETS:
        with pytest.raises(TypeError, match=f"for {name}, got int32"):
            both(name)[0](jnp.ones(2, jnp.int32))
    for name in set(SETS) - set(COMPLEX):
        with pytest.raises(TypeError, match=f"real floats for {name}, got complex64"):
            both(name)[0](jnp.ones(2, jnp.complex64))
    for name in BY_VECTOR:
        for axis in (2, (0, 0), (0, -2), ()):
            with pytest.raises(ValueError, match="different axes of an array of 2"):
                getattr(projections, name)(x, axis=axis)
    with pytest.raises(ValueError, match=r"0\.0 <= scale"):
        projections.simplex(x, -1.0)
    with pytest.raises(ValueError, match=r"0\.0 <= radius"):
        projections.l1_ball(x, -1.0)
    with pytest.raises(ValueError, match="need lower or upper, got neither"):
        projections.box(x)
    with pytest.raises(ValueError, match=r"lower <= upper, got lower=1\.0 upper=0\.0"):
        projections.box(x, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"lower to broadcast to shape \(2, 3\)"):
        projections.box(x, jnp.zeros(2))

"""Muon: polar factors, which leaves are orthogonalized, and its precision."""

import families_matrix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_mode import x64
from trajectories import wide

from fngrad.optimizers.muon import muon, orthogonalize


def with_spectrum(spectrum, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(rows, len(spectrum))))
    v, _ = np.linalg.qr(rng.normal(size=(columns, len(spectrum))))
    return (u * spectrum) @ v.T, u @ v.T


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (9, 4), (4, 9)])
def test_five_quintic_steps_bring_singular_values_into_the_band(rows, columns):
    spectrum = np.geomspace(1.0, 0.01, min(rows, columns))
    x, _ = with_spectrum(spectrum, rows, columns)
    got = np.linalg.svd(orthogonalize(jnp.asarray(x)), compute_uv=False)
    assert np.all((got > 0.68) & (got < 1.135))
    assert np.max(np.abs(got - 1)) > 0.01  # it is not the polar factor


def test_the_band_of_five_quintic_steps_is_the_documented_one():
    """Singular values are mapped independently, so a diagonal covers all of them."""
    values = np.geomspace(0.006, 1.0, 4000)
    out = values
    for _ in range(5):
        out = 3.4445 * out - 4.7750 * out**3 + 2.0315 * out**5
    assert 0.68 < np.min(out) < np.max(out) < 1.135


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 2), (2, 5)])
def test_the_cubic_converges_to_the_polar_factor(rows, columns):
    x, polar = with_spectrum(np.linspace(1, 0.3, min(rows, columns)), rows, columns)
    with x64():
        got = orthogonalize(jnp.asarray(x), (1.5, -0.5, 0.0), ns_steps=20)
        np.testing.assert_allclose(got, polar, rtol=1e-12, atol=1e-12)


def test_a_zero_matrix_stays_zero_with_finite_derivatives():
    for eps in (0.0, 1e-8):
        square = lambda x, eps=eps: jnp.sum(orthogonalize(x, eps=eps) ** 2)  # noqa: E731
        zero = jnp.zeros((3, 2))
        np.testing.assert_array_equal(orthogonalize(zero, eps=eps), 0)
        np.testing.assert_array_equal(jax.jit(jax.grad(square))(zero), 0)


def test_only_matrices_are_orthogonalised():
    with pytest.raises(ValueError, match=r"need a matrix, got shape \(3,\)"):
        orthogonalize(jnp.ones(3))


def test_the_last_coefficients_of_a_table_are_used():
    x = jnp.asarray(with_spectrum(np.array([1.0, 0.5]), 3, 2)[0])
    table = jnp.array([[9.0, 9.0, 9.0], [2.0, -1.5, 0.5], [1.5, -0.5, 0.0]])
    one = orthogonalize(x, (2.0, -1.5, 0.5), ns_steps=1)
    norm = jnp.linalg.norm(one)  # each call divides by the norm first
    two = orthogonalize(one, ((1.5 * norm, -0.5 * norm**3, 0.0),), 1, eps=0.0)
    np.testing.assert_allclose(orthogonalize(x, table, 2), two, rtol=1e-5, atol=1e-6)


def test_muon_in_bfloat16_is_near_muon_in_float32():
    low, full = (
        families_matrix.FAMILY.trajectory(
            "muon", {"ns_dtype": dtype}, families_matrix.SINGLE
        )
        for dtype in (jnp.bfloat16, None)
    )
    leaf = "decayed/matrix float32"
    error = np.abs(wide(low[leaf].updates) - wide(full[leaf].updates))
    assert 1e-4 < np.max(error) < 0.1 * 0.1  # a tenth of the learning rate


def first_update(optimizer, gradient):
    params = jax.tree.map(jnp.zeros_like, gradient)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_muon_does_not_depend_on_the_size_of_gradients(scale):
    gradient = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
    optimizer = muon(0.1, eps=0.0)
    want, got = (first_update(optimizer, g) for g in (gradient, scale * gradient))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_muon_passes_leaves_that_are_not_matrices_to_adamw():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2), "kernel": jnp.ones((2, 3, 2))}
    state = muon(0.1).init(params)["masked"]
    assert set(state["selected"]) >= {"scale_by_muon", "add_decayed_weights"}
    orthogonalized = state["selected"]["scale_by_muon"].mu
    rest = state["rest"]["scale_by_adam"].nu
    assert orthogonalized["b"] is None
    assert orthogonalized["kernel"] is None
    assert rest["w"] is None
    chosen = muon(0.1, matrices="kernel").init(params)["masked"]
    assert chosen["selected"]["scale_by_muon"].mu["kernel"].shape == (2, 3, 2)
    assert chosen["rest"]["scale_by_adam"].nu["w"].shape == (3, 2)


def test_a_tree_of_bools_selects_what_decays_under_muon():
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones((2, 2)), "b": jnp.ones(2)}
    mask = {"w": True, "v": False, "b": False}
    optimizer = muon(0.1, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["v"], 0)


def test_muon_refuses_to_orthogonalise_a_vector():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"need leaves of two axes.*\(2,\) at 'b'"):
        muon(0.1, matrices="**").init(params)

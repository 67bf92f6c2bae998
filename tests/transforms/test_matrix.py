"""Polar factors, and the laws of matrix rules alone, in stacks and under vmap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import x64

from fngrad.optimizers.muon import muon, orthogonalize, scale_by_muon
from fngrad.optimizers.shampoo import scale_by_shampoo, shampoo
from fngrad.optimizers.soap import scale_by_soap, soap
from fngrad.transforms.core import unwrap
from fngrad.transforms.laws import check_transform
from fngrad.tree import Stacked

MATRICES = {"a": jnp.linspace(-1.0, 2.0, 6).reshape(3, 2), "b": jnp.ones((2, 3, 2))}
TRANSFORMS = {
    "muon": (muon(0.1), None),
    "muon of kernels": (muon(0.1, matrices="a", ns_dtype=jnp.bfloat16), MATRICES),
    "scale_by_muon": (scale_by_muon(adaptive=True, consistent_rms=0.2), MATRICES),
    "shampoo": (shampoo(0.1), None),
    "scale_by_shampoo": (
        scale_by_shampoo(0.9, 1e-3, update_every=2, max_size=2, graft="diagonal"),
        None,
    ),
    "soap": (soap(0.1), None),
    "scale_by_soap": (
        scale_by_soap(precondition_frequency=2, precondition_1d=True, skip_first=False),
        None,
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_laws_hold(name):
    check_transform(*TRANSFORMS[name])


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
    """Each singular value goes its own way, so a diagonal shows them all."""
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
        norm = jax.grad(lambda x, eps=eps: jnp.sum(orthogonalize(x, eps=eps) ** 2))
        zero = jnp.zeros((3, 2))
        np.testing.assert_array_equal(orthogonalize(zero, eps=eps), 0)
        np.testing.assert_array_equal(norm(zero), 0)


@pytest.mark.parametrize("rule", [scale_by_shampoo(eps=1e-3), scale_by_soap()])
def test_derivatives_are_finite_where_eigenvalues_are_equal(rule):
    def second_update(gradient):
        _, state = rule.update(gradient, rule.init(gradient), gradient)
        return rule.update(2 * gradient, state, gradient)[0]

    for jacobian in (jax.jacfwd(second_update), jax.jacrev(second_update)):
        jitted = jax.jit(jacobian)
        for gradient in (jnp.zeros((3, 3)), jnp.eye(3)):
            assert jnp.all(jnp.isfinite(jitted(gradient)))


def test_shampoos_derivative_is_that_of_differences():
    with x64():
        rule = scale_by_shampoo(eps=1e-3)
        x, dx = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)))

        @jax.jit
        def update(gradient):
            return rule.update(gradient, rule.init(gradient), gradient)[0]

        for start in (x, jnp.eye(3)):
            got = jax.jvp(update, (start,), (dx,))[1]
            h = 1e-5
            want = (update(start + h * dx) - update(start - h * dx)) / (2 * h)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


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


RULES = {
    "muon": scale_by_muon(),
    "shampoo": scale_by_shampoo(0.9, 1e-3, update_every=2, graft="diagonal"),
    "soap": scale_by_soap(precondition_frequency=2),
}


@pytest.mark.parametrize("name", RULES)
def test_leaves_in_a_stack_are_updated_as_alone(name):
    rule = unwrap(RULES[name])
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(size=(4, 2, 3, 2)), jnp.float32)  # steps, leaves
    update = jax.jit(rule.update)
    stacked = Stacked(gradients[0])
    together, alone = rule.init(stacked), [rule.init(gradients[0, i]) for i in (0, 1)]
    for gradient in gradients:
        updates, together = update(Stacked(gradient), together, stacked)
        for i in (0, 1):
            want, alone[i] = update(gradient[i], alone[i], gradients[0, i])
            np.testing.assert_allclose(updates.leaves[i], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "signed", "non_negative"),
    [
        ("muon", ("mu",), ()),
        ("shampoo", (), ("nu",)),
        ("soap", ("mu",), ("nu",)),
    ],
)
def test_moments_that_may_be_quantised_are_declared(name, signed, non_negative):
    state = RULES[name].init(jnp.ones((3, 2)))[f"scale_by_{name}"]
    assert getattr(type(state), "signed", ()) == signed
    assert getattr(type(state), "non_negative", ()) == non_negative
    assert {*signed, *non_negative} <= set(state._fields)


def test_roots_are_taken_when_they_are_due():
    rule = scale_by_shampoo(update_every=3)
    params = jnp.ones((3, 2))
    state, kept = rule.init(params), []
    rng = np.random.default_rng(0)
    for _ in range(7):
        gradient = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
        _, state = rule.update(gradient, state, params)
        kept.append(np.asarray(state["scale_by_shampoo"].roots[0]))
    changes = [not np.array_equal(a, b) for a, b in itertools.pairwise(kept)]
    assert changes == [False, False, True, False, False, True]


def test_bases_stay_orthogonal_and_find_the_eigenvectors():
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    rule = scale_by_soap(precondition_frequency=1)
    params = jnp.zeros((4, 6))
    state, update = rule.init(params), jax.jit(rule.update)
    spread = np.array([8.0, 4.0, 2.0, 1.0])
    for _ in range(200):
        gradient = jnp.asarray((u * spread) @ rng.normal(size=(4, 6)), jnp.float32)
        _, state = update(gradient, state, params)
    basis = np.asarray(state["scale_by_soap"].bases[0])
    statistic = np.asarray(state["scale_by_soap"].statistics[0])
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)
    alignment = np.abs(np.linalg.eigh(statistic)[1][:, ::-1].T @ basis)
    assert np.all(np.diag(alignment) > 0.95)

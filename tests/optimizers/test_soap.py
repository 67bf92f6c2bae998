"""SOAP: its basis, even where it is not unique, and Adam in that basis.

For equal eigenvalues a decomposition may return any basis of eigenvectors, and machines
differ. The tests of degenerate statistics require what holds in every such basis.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_matrix
import problems
import pytest

from fngrad.optimizers.soap import scale_by_soap, soap
from fngrad.transforms.core import apply_updates


def orthogonal(rng, rows, columns):
    return np.linalg.qr(rng.normal(size=(rows, rows)))[0][:, :columns]


def well_separated(rng, space, columns):
    """Return a gradient within a space, singular values in [1, 2]."""
    rank = space.shape[1]
    values = rng.uniform(1.0, 2.0, size=rank)
    inner = orthogonal(rng, rank, rank) * values @ orthogonal(rng, columns, rank).T
    return jnp.asarray(space @ inner, jnp.float32)


@pytest.mark.parametrize(("rows", "columns"), [(5, 4), (20, 15)])
def test_a_direction_without_gradients_does_not_move_under_soap(rows, columns):
    """Its eigenvalue is zero, and all others are far from zero."""
    optimizer = soap(0.1, weight_decay=0.0, precondition_frequency=2)
    update = jax.jit(optimizer.update)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        basis = orthogonal(rng, rows, rows)
        params = jnp.zeros((rows, columns))
        state = optimizer.init(params)
        for _ in range(8):
            gradient = well_separated(rng, basis[:, :columns], columns)
            updates, state = update(gradient, state, params)
            params = apply_updates(params, updates)
        moved = np.abs(basis.T @ params)
        assert np.all(moved[:columns].max(axis=1) > 0.05)
        assert np.all(moved[columns:] < 1e-5)


def adam_in(bases, gradients, b1=0.95, b2=0.95, eps=1e-8):
    """Return Adam's last direction in given bases, in float64."""
    left, right = (np.asarray(q, np.float64) for q in bases)
    m = v = 0.0
    for g in gradients:
        turned = left.T @ np.asarray(g, np.float64) @ right
        m, v = b1 * m + (1 - b1) * turned, b2 * v + (1 - b2) * turned**2
    t = len(gradients)
    direction = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return left @ direction @ right.T


FIRST = {
    "all eigenvalues are equal": np.eye(4),
    "two pairs are equal": np.diag([2.0, 2.0, 1.0, 1.0]),
    "three are zero": np.diag([1.0, 0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("case", FIRST)
def test_soap_is_adam_in_its_basis_of_a_degenerate_statistic(case):
    rng = np.random.default_rng(0)
    turn = orthogonal(rng, 4, 4)
    first = jnp.asarray(turn @ FIRST[case] @ turn.T, jnp.float32)
    optimizer, params = soap(1.0, weight_decay=0.0), jnp.zeros((4, 4))
    state, seen = optimizer.init(params), []
    _, state = optimizer.update(first, state, params)
    for _ in range(3):
        seen.append(jnp.asarray(rng.normal(size=(4, 4)), jnp.float32))
        updates, state = optimizer.update(seen[-1], state, params)
    bases = state["scale_by_soap"].bases
    for q in bases:
        np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-6)
    left = np.asarray(bases[0], np.float64)
    statistic = left.T @ np.asarray(first @ first.T, np.float64) @ left
    np.testing.assert_allclose(statistic, np.diag(np.diag(statistic)), atol=2e-6)
    np.testing.assert_allclose(updates, -adam_in(bases, seen), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip_first", [False, True])
def test_soap_without_rotations_is_adamw(skip_first):
    gradients = problems.hard_gradients()
    arguments = {"weight_decay": 0.0, "skip_first": skip_first}
    optimizer = soap(0.1, **arguments)
    params, state = jnp.zeros(6), optimizer.init(jnp.zeros(6))
    for t, gradient in enumerate(gradients[:4]):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        if t == 0 and skip_first:
            np.testing.assert_array_equal(updates, 0)
    seen = gradients[1:4] if skip_first else gradients[:4]
    rates = np.full(len(seen), 0.1)
    want = oracles_matrix.oracles.adam(seen, seen, rates, b1=0.95, b2=0.95)
    np.testing.assert_allclose(updates, want[-1], rtol=1e-5)


def test_tiny_gradients_are_rotated_like_large_ones():
    """Only what is rounding beside the largest entry of a gradient is left out."""
    rng, params = np.random.default_rng(0), jnp.zeros((4, 3))
    gradients = jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32)
    optimizer = soap(1.0, weight_decay=0.0, eps=1e-30)

    @jax.jit
    def last_update(scale):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(scale * gradient, state, params)
        return updates

    large, tiny = last_update(1.0), last_update(2.0**-30)
    assert np.all(np.abs(large) > 1e-3)
    np.testing.assert_allclose(tiny, large, rtol=1e-4)


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

"""Losses of embeddings: a batch's own candidates, and distances without a direction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fngrad import losses

L = losses
RNG = np.random.default_rng(0)
Q, K = (RNG.normal(size=(5, 3)) for _ in range(2))
KEPT = np.array([True, False, True, True, True])


def info_nce(q, k, temperature):
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    logits = q @ k.T / temperature
    return [
        np.diag(special.logsumexp(logits, axis, keepdims=True) - logits)
        for axis in (1, 0)
    ]


def test_info_nce_equals_its_formula_in_one_and_both_directions(x64):
    @jax.jit
    def measured(q, k):
        loss = functools.partial(L.info_nce, q, k, temperature=0.2)
        return loss(), loss(symmetric=True)

    one, other = info_nce(Q, K, 0.2)
    got, both = measured(Q, K)
    np.testing.assert_allclose(got, one, rtol=1e-12)
    np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-12)


def test_an_example_left_out_is_no_candidate_and_has_no_gradient():
    want = np.mean(info_nce(Q[KEPT], K[KEPT], 0.5), axis=0)
    q, k = (x.astype(np.float32) for x in (Q, K))
    q[1], k[1] = np.nan, np.inf

    @jax.jit
    def measured(q, k, where, w):
        def total(q, k):
            options = {"where": where, "weights": w, "symmetric": True}
            each = L.info_nce(q, k, temperature=0.5, **options)
            return jnp.sum(each), each

        return jax.grad(total, (0, 1), has_aux=True)(q, k)

    everywhere, ones = np.ones(5, bool), np.ones(5, np.float32)
    for where, w in ((KEPT, ones), (everywhere, np.float32(KEPT))):
        slopes, each = measured(q, k, where, w)
        np.testing.assert_allclose(each[KEPT], want, rtol=1e-5)
        assert each[1] == 0
        for slope in slopes:
            assert np.all(np.isfinite(slope))
            np.testing.assert_array_equal(slope[1], 0)


def test_info_nce_of_a_certain_match_keeps_the_digits_of_the_others():
    x = np.eye(2, dtype=np.float32)
    for scale in (1e-30, 1.0, 1e30):
        got = L.info_nce(x * np.float32(scale), x, temperature=0.05)
        np.testing.assert_allclose(got, np.exp(-20.0), rtol=1e-5)


def test_a_row_of_zeros_is_as_far_from_all_and_has_no_gradient():
    q = np.zeros((3, 2), np.float32)
    value, slope = jax.value_and_grad(lambda q: jnp.sum(L.info_nce(q, q + 1)))(q)
    np.testing.assert_allclose(value, 3 * np.log(3), rtol=1e-6)
    np.testing.assert_array_equal(slope, 0)


def test_a_triplet_in_one_point_costs_the_margin_with_zero_gradient():
    x = jnp.ones(3)
    value, slope = jax.value_and_grad(lambda a: L.triplet(a, x, x, margin=0.5))(x)
    assert value == 0.5
    np.testing.assert_array_equal(slope, 0)


def test_triplets_of_any_size_are_distances():
    triplet = jax.jit(L.triplet)
    a, p, n = np.zeros(2), np.array([3.0, 4.0]), np.array([0.0, 4.0])
    for size in (1e-30, 1e30):
        args = [np.float32(x * size) for x in (a, p, n)]
        got = triplet(*args, margin=size)
        np.testing.assert_allclose(got, 2 * size, rtol=1e-6)


BAD = [
    (lambda: L.info_nce(Q[0], K[0]), "need queries and keys of shape (n, coordinates)"),
    (lambda: L.info_nce(Q, K[:2]), "queries (5, 3) and keys (2, 3)"),
    (
        lambda: L.info_nce(Q, K, temperature=0.0),
        "need temperature > 0, got temperature",
    ),
    (lambda: L.triplet(Q, K, K[:2]), "anchors (5, 3) and negatives (2, 3)"),
    (lambda: L.triplet(Q, K, K, margin=-1.0), "margin=-1.0"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_embeddings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)

"""Discounted gains against scikit-learn: ties, padding, lists without relevance."""

import functools

import jax
import numpy as np
import pytest
from metric_cases import RELEVANCE, TIED, WEIGHTS
from sklearn import metrics as reference

from fngrad import metrics

M = metrics


@pytest.mark.parametrize("k", [None, 1, 2, 9])
def test_ndcg_with_ties_is_that_of_scikit_learn(k):
    want = reference.ndcg_score(RELEVANCE, TIED, k=k, sample_weight=WEIGHTS)
    got = M.ndcg(TIED, RELEVANCE, k, weights=WEIGHTS).value()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_exponential_gains_are_powers_of_2_less_1():
    want = reference.ndcg_score(2**RELEVANCE - 1, TIED, k=3)
    got = M.ndcg(TIED, RELEVANCE, 3, gain="exponential").value()
    np.testing.assert_allclose(got, want, rtol=1e-5)


@functools.partial(jax.jit, static_argnames="k")
def value(x, y, items, k=None):
    return M.ndcg(x, y, k, where=items).value()


def test_padding_that_where_leaves_out_is_in_no_list():
    x, y = TIED.copy(), RELEVANCE.copy()
    items = np.ones(x.shape, bool)
    items[:, 3:], items[0] = False, False
    x[~items], y[~items] = np.nan, np.inf
    want = reference.ndcg_score(RELEVANCE[1:, :3], TIED[1:, :3], k=2)
    got = value(x, y, items, k=2)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    zeros = np.zeros_like(TIED)  # ties with the padding's place
    want = reference.ndcg_score(RELEVANCE[1:, :3], zeros[1:, :3])
    np.testing.assert_allclose(value(zeros, RELEVANCE, items), want, rtol=1e-5)


def test_a_list_without_relevance_counts_0():
    y = np.stack([RELEVANCE[1] + 1, 0 * RELEVANCE[1]])
    x = np.stack([y[0], y[0]])
    assert M.ndcg(x, y).value() == 0.5
    assert np.isnan(M.ndcg(x, y, where=np.zeros(2, bool)).value())


def test_what_is_no_ranking_is_refused():
    with pytest.raises(ValueError, match=r"need an int k >= 1, got k=0"):
        M.ndcg(TIED, RELEVANCE, 0)
    with pytest.raises(ValueError, match=r"got \(37, 5\) and \(37,\)"):
        M.ndcg(TIED, RELEVANCE[:, 0])
    with pytest.raises(ValueError, match="need gain to be one of"):
        M.ndcg(TIED, RELEVANCE, gain="quadratic")  # pyright: ignore

"""The n-gram baseline against a brute force in plain Python."""

import numpy as np
import pytest

import experiments.character_ngrams as ngrams

TEXT = "the cat sat on the mat; the rat sat on the cat. that hat!" * 3 + " a new end"
ALPHABET = sorted(set(TEXT))
V = len(ALPHABET)
TOKENS = np.array([ALPHABET.index(c) for c in TEXT])
HELD_OUT = np.array([ALPHABET.index(c) for c in "the hat sat; that mat on a cat!"])


def by_brute_force(model, text, context, character):
    """Return p(character | context), counting occurrences one by one."""
    p = 1 / V
    for k in range(model.context + 1):
        h = context[len(context) - k :]
        inside = range(len(text) - k)
        after = [text[i + k] for i in inside if text[i : i + k] == h]
        if after:
            weight = model.weights[k][int(np.log2(len(after))) + 1]
            p = weight * after.count(character) / len(after) + (1 - weight) * p
    return p


@pytest.mark.parametrize("context", [0, 1, 2, 5])
def test_probabilities_are_those_of_counting_by_hand(context):
    model = ngrams.train(TOKENS, V, context)[-1]
    want = [
        by_brute_force(
            model, TOKENS.tolist(), HELD_OUT[i - context : i].tolist(), HELD_OUT[i]
        )
        for i in range(context, len(HELD_OUT))
    ]
    got = ngrams.probabilities(model, HELD_OUT)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    bits = ngrams.bits_per_character(model, HELD_OUT)
    assert bits == pytest.approx(-np.mean(np.log2(want)), rel=1e-12)


@pytest.mark.parametrize("context", ["the c", "zzzzz", "at sa", "!!!at"])
def test_probabilities_sum_to_one(context):
    model = ngrams.train(TOKENS, V, 4)[-1]
    tokens = np.array([ALPHABET.index(c) if c in ALPHABET else 0 for c in context])
    p = ngrams.distribution(model, tokens)
    assert p.shape == (V,)
    assert p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_em_raises_the_probability_of_the_text_at_every_step(monkeypatch):
    cut = len(TOKENS) * 2 // 3
    counts = [ngrams.count(TOKENS[:cut], V, k) for k in range(4)]
    model = ngrams.NGrams(V, counts, np.full((4, ngrams.BUCKETS), 0.5))
    monkeypatch.setattr(ngrams, "EM_STEPS", 1)

    def objective(model):
        """Return the log probability with the prior on the weights that are used."""
        _, buckets = ngrams.shares_of(model, TOKENS[cut:])
        used = [model.weights[k][np.unique(b[b > 0])] for k, b in enumerate(buckets)]
        prior = sum(0.5 * np.sum(np.log(w * (1 - w))) for w in used)
        return prior + np.sum(np.log(ngrams.probabilities(model, TOKENS[cut:])))

    values = [objective(model)]
    for _ in range(8):
        model = model._replace(weights=ngrams.tuned(model, TOKENS[cut:]))
        values.append(objective(model))
    assert np.all(np.diff(values) >= -1e-9)
    assert values[-1] > values[0] + 1


def test_contexts_whose_codes_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"codes below 2\*\*63.*longest=9"):
        ngrams.train(TOKENS, V, 9)
    with pytest.raises(ValueError, match=r"codes below 2\*\*63.*vocab_size=300"):
        ngrams.train(TOKENS, 300, 8)

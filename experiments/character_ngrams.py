r"""An n-gram model of characters, interpolated between orders: the baseline.

The probability of a character c after k characters h is

$$p_k(c \mid h) = \lambda\,\frac{N(hc)}{N(h)} + (1 - \lambda)\,p_{k-1}(c \mid h'),
  \qquad p_{-1}(c) = 1 / V,$$

where N counts occurrences in the training text and h' is h without its first
character. The weight $\lambda$ belongs to k and to $\lfloor \log_2 N(h) \rfloor$; after
an unseen h it is 0. EM finds the weights that make text which was not counted most
probable (Jelinek and Mercer 1980, "Interpolated estimation of Markov source parameters
from sparse data"). Then all of the training text is counted.
"""

from typing import Any, NamedTuple

import numpy as np

MOST = 8  # characters of context: longer codes may not fit in 64 bits
BUCKETS = 32  # of log2 of a context's count
EM_STEPS = 30


class Counts(NamedTuple):
    """How often each context of one length, and each continuation of it, occurs."""

    grams: np.ndarray  # sorted codes of a context and the character after it
    gram_counts: np.ndarray
    contexts: np.ndarray  # sorted codes
    context_counts: np.ndarray


class NGrams(NamedTuple):
    """A model: counts and weights for contexts of 0, 1, ... characters."""

    vocab_size: int
    counts: list[Counts]
    weights: np.ndarray  # shape (contexts' lengths, BUCKETS)
    bits: float = float("nan")  # per character of the text that tuned the weights

    @property
    def context(self) -> int:
        """Number of characters in the longest context."""
        return len(self.counts) - 1


def train(tokens: np.ndarray, vocab_size: int, longest: int) -> list[NGrams]:
    """Return the models with contexts of up to 0, 1, ..., ``longest`` characters.

    The weights are tuned on the last tenth of the text.

    Raises:
        ValueError: if ``longest`` is above `MOST`, or the codes of its contexts do not
            fit in 64 bits.
    """
    if not 0 <= longest <= MOST or vocab_size ** (longest + 1) >= 2**63:
        raise ValueError(
            f"need at most {MOST} characters of context with codes below 2**63, "
            f"got {longest=} {vocab_size=}"
        )
    cut = len(tokens) * 9 // 10
    lengths = range(longest + 1)
    of_part = [count(tokens[:cut], vocab_size, k) for k in lengths]
    of_all = [count(tokens, vocab_size, k) for k in lengths]
    models = []
    for k in lengths:
        even = np.full((k + 1, BUCKETS), 0.5)
        weights = tuned(NGrams(vocab_size, of_part[: k + 1], even), tokens[cut:])
        part = NGrams(vocab_size, of_part[: k + 1], weights)
        bits = bits_per_character(part, tokens[cut:])
        models.append(NGrams(vocab_size, of_all[: k + 1], weights, bits))
    return models


def count(tokens: np.ndarray, vocab_size: int, context: int) -> Counts:
    """Count the contexts of one length, and what follows them."""
    codes = _codes(tokens, context + 1, vocab_size)
    grams, gram_counts = np.unique(codes, return_counts=True)
    contexts, starts = np.unique(grams // vocab_size, return_index=True)
    return Counts(grams, gram_counts, contexts, np.add.reduceat(gram_counts, starts))


def probabilities(model: NGrams, tokens: np.ndarray) -> np.ndarray:
    """Return the probability of each token after the first ``model.context``."""
    shares, buckets = shares_of(model, tokens)
    return _mixtures(model, shares, buckets)[-1]


def distribution(model: NGrams, context: np.ndarray) -> np.ndarray:
    """Return the probabilities of all characters after a context, shape (V,)."""
    context = context[len(context) - model.context :]
    every = [np.append(context, c) for c in range(model.vocab_size)]
    return np.array([probabilities(model, tokens)[0] for tokens in every])


def bits_per_character(model: NGrams, tokens: np.ndarray) -> float:
    """Return the mean of -log2 p over the tokens after the first ``model.context``."""
    return float(-np.mean(np.log2(probabilities(model, tokens))))


def tuned(model: NGrams, tokens: np.ndarray) -> np.ndarray:
    """Return the weights after EM on a text that was not counted.

    A prior of half an event on either side keeps each weight below 1, so that nothing
    has the probability 0.
    """
    shares, buckets = shares_of(model, tokens)
    for _ in range(EM_STEPS):
        mixtures = _mixtures(model, shares, buckets)
        weights = np.empty_like(model.weights)
        reached = np.ones(len(mixtures[0]))  # probability that a shorter one was used
        for k in reversed(range(model.context + 1)):
            weight = _weights(model, k, buckets)
            own = reached * weight * shares[k] / mixtures[k + 1]
            used = np.bincount(buckets[k], own, BUCKETS) + 0.5
            weights[k] = used / (np.bincount(buckets[k], reached, BUCKETS) + 1)
            reached = reached - own
        model = model._replace(weights=weights)
    return model.weights


def _codes(tokens: np.ndarray, size: int, vocab_size: int) -> np.ndarray:
    """Return each run of ``size`` tokens as one number, the last token lowest."""
    ends = len(tokens) - size + 1
    codes = np.zeros(ends, np.int64)
    for i in range(size):
        codes = codes * vocab_size + tokens[i : i + ends]
    return codes


def shares_of(model: NGrams, tokens: np.ndarray) -> tuple[Any, Any]:
    """Return N(hc) / N(h) and the bucket of N(h), per length of context.

    The bucket is 0 for an unseen context, else 1 more than the rounded log2 of N(h).
    """
    shares, buckets = [], []
    for k, counts in enumerate(model.counts):
        codes = _codes(tokens, k + 1, model.vocab_size)[model.context - k :]
        seen = _found(counts.grams, counts.gram_counts, codes)
        total = _found(
            counts.contexts, counts.context_counts, codes // model.vocab_size
        )
        shares.append(seen / np.maximum(total, 1))
        buckets.append(np.log2(np.maximum(total, 1)).astype(int) + (total > 0))
    return shares, buckets


def _found(codes: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.where(codes[place] == wanted, counts[place], 0)


def _weights(model: NGrams, k: int, buckets: Any) -> np.ndarray:
    return np.where(buckets[k] == 0, 0.0, model.weights[k][buckets[k]])


def _mixtures(model: NGrams, shares: Any, buckets: Any) -> list[np.ndarray]:
    """Return the probabilities without context counts, then by length of context."""
    mixtures = [np.full(len(shares[0]), 1 / model.vocab_size)]
    for k, share in enumerate(shares):
        weight = _weights(model, k, buckets)
        mixtures.append(weight * share + (1 - weight) * mixtures[-1])
    return mixtures

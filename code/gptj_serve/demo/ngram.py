"""Unigram and bigram models over token ids: what the demo model has to beat."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Nats = NDArray[np.float64]


def unigram_nats(train_N: Ids, test_M: Ids, vocab_size: int) -> Nats:
    """Cost of each token but the first under an add-one unigram model.

    Args:
        train_N: Token ids to count, each 0..vocab_size-1.
        test_M: Token ids to score.
        vocab_size: Number of token ids there are.

    Returns:
        ``-ln p`` of ``test_M[1:]``; the first token is context alone, as in the other models.
    """
    counts_V = np.bincount(train_N, minlength=vocab_size)
    probabilities_V = (counts_V + 1) / (len(train_N) + vocab_size)
    nats: Nats = -np.log(probabilities_V[test_M[1:]])
    return nats


def bigram_nats(train_N: Ids, test_M: Ids, vocab_size: int) -> Nats:
    """Cost of each token but the first under an interpolated Kneser-Ney bigram model.

    One discount, ``n1 / (n1 + 2 n2)``. The continuation distribution that it backs off to is smoothed by
    adding one, so that no token is impossible. Arguments and result are those of `unigram_nats`.
    """
    pairs = train_N[:-1] * vocab_size + train_N[1:]
    counts_VV = np.bincount(pairs, minlength=vocab_size**2).reshape(vocab_size, vocab_size)
    discount = _discount(counts_VV)
    seen_VV = counts_VV > 0
    continuation_V = (seen_VV.sum(axis=0) + 1) / (seen_VV.sum() + vocab_size)

    before, after = test_M[:-1], test_M[1:]
    totals = counts_VV.sum(axis=1)[before]
    backoff = np.where(totals > 0, discount * seen_VV.sum(axis=1)[before] / np.maximum(totals, 1), 1.0)
    kept = np.maximum(counts_VV[before, after] - discount, 0) / np.maximum(totals, 1)
    nats: Nats = -np.log(kept + backoff * continuation_V[after])
    return nats


def _discount(counts_VV: Ids) -> float:
    num_once, num_twice = int((counts_VV == 1).sum()), int((counts_VV == 2).sum())
    # a text with no pair seen once would get no discount, and so no mass for unseen pairs
    return num_once / (num_once + 2 * num_twice) if num_once else 0.5

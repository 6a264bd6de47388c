"""The n-gram models against numbers worked out by hand."""

import numpy as np
import pytest

from gptj_serve.demo.ngram import bigram_nats, unigram_nats

TRAIN = np.array([0, 1, 2, 1, 2, 0])  # pairs: 01 once, 12 twice, 21 once, 20 once


def test_unigram_adds_one() -> None:
    # counts 2, 2, 2, 0 of 6, over 4 ids: (2 + 1) / 10 and (0 + 1) / 10; the first token is not scored
    nats = unigram_nats(TRAIN, np.array([3, 0, 3]), vocab_size=4)
    assert np.exp(-nats) == pytest.approx([0.3, 0.1])


def test_bigram_is_interpolated_kneser_ney() -> None:
    # three pairs seen once, one seen twice: discount 3 / (3 + 2 * 1) = 0.6
    # continuations (different tokens before): 0: {2}, 1: {0, 2}, 2: {1}; plus one over 4 + 4
    continuation = [2 / 8, 3 / 8, 2 / 8, 1 / 8]
    expected = [
        (2 - 0.6) / 2 + 0.6 * 1 / 2 * continuation[2],  # 1 -> 2: 1 was followed twice, by one kind
        (1 - 0.6) / 2 + 0.6 * 2 / 2 * continuation[1],  # 2 -> 1: 2 was followed twice, by two kinds
        0.6 * 1 / 2 * continuation[3],  # 1 -> 3: never seen
        continuation[1],  # 3 -> 1: nothing ever followed 3
    ]
    test = np.array([1, 2, 1, 3, 1])
    assert np.exp(-bigram_nats(TRAIN, test, vocab_size=4)) == pytest.approx(expected)


def test_every_context_has_a_distribution() -> None:
    random = np.random.default_rng(0)
    train = random.zipf(1.5, size=500) % 11
    for before in range(12):
        after = [
            np.exp(-bigram_nats(train, np.array([before, token]), vocab_size=12))[0] for token in range(12)
        ]
        assert sum(after) == pytest.approx(1.0)


def test_text_without_rare_pairs_still_leaves_room_for_new_ones() -> None:
    nats = bigram_nats(np.array([0, 0, 0, 0]), np.array([0, 1]), vocab_size=2)
    assert np.isfinite(nats).all()

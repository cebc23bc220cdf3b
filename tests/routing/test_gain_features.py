"""Features of a request: counts by hand, and words that are weighed by how rare they are."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.routing.gain import (
    N_HASH_BUCKETS,
    N_SURFACE_FEATURES,
    directions,
    hashed_words,
    surface_features,
    text_features,
    weighed_words,
)


def test_counts_of_a_text_by_hand() -> None:
    found = surface_features("Why 2 of 1,500? Go.\n")
    assert len(found) == N_SURFACE_FEATURES
    assert found[:2] == pytest.approx([np.log(21), np.log(6)])
    assert found[2] == pytest.approx(15 / 5)  # Why 2 of 1,500? Go.
    assert found[3:7] == pytest.approx([np.log(3), np.log(2), 1, 1])  # sentences, lines, question marks and words
    assert found[7:10] == pytest.approx([np.log(3), np.log(3), np.log(1501)])
    assert found[10:] == pytest.approx([5 / 20, 3 / 20])


def test_each_text_is_a_row() -> None:
    assert text_features(["a", "b c"])[1].tolist() == list(surface_features("b c"))
    assert text_features([]).shape == (0, N_SURFACE_FEATURES)


def test_words_are_hashed_weighed_and_projected() -> None:
    hashed = hashed_words(["the card", "the lemma"])
    assert hashed.shape == (2, N_HASH_BUCKETS)
    assert hashed.sum(axis=1).ravel().tolist() == [[3.0, 3.0]]  # two words and their pair
    rarity = np.ones(N_HASH_BUCKETS)
    shared = hashed[0].multiply(hashed[1]).nonzero()[1]
    rarity[shared] = 0.0
    weighed = weighed_words(hashed, rarity)
    assert weighed.multiply(weighed).sum(axis=1).A1.tolist() == pytest.approx([1.0, 1.0])
    assert (weighed[0] @ weighed[1].T).sum() == 0  # `the` is all they share
    assert directions(weighed).shape == (N_HASH_BUCKETS, 2)
    assert directions(np.zeros((2, 0))).shape == (0, 0)

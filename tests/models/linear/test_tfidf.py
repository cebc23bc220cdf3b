"""TF-IDF without scikit-learn gives what scikit-learn gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from smallfirst.models.linear.tfidf import TfidfFeatures

ROWS = ["Where is my card?", "my card  was lost, a card I need", "Größe: 42 €\tok", "I a b", "x" * 40, "card card CARD"]
FITTED = TfidfFeatures.fit(ROWS)
REFERENCE = [
    TfidfVectorizer(analyzer=analyzer, ngram_range=lengths, sublinear_tf=True).fit(ROWS)
    for analyzer, lengths in (("word", (1, 2)), ("char_wb", (2, 5)))
]
WIDTH = sum(len(vectoriser.idf_) for vectoriser in REFERENCE)


def both(text: str) -> tuple[np.ndarray, np.ndarray]:
    ours = FITTED([text]) @ np.eye(WIDTH)
    return ours[0], np.concatenate([vectoriser.transform([text]).toarray()[0] for vectoriser in REFERENCE])


def test_the_vocabulary_is_that_of_scikit_learn() -> None:
    for ours, theirs in zip((FITTED.words, FITTED.pieces), REFERENCE, strict=True):
        assert ours.column == theirs.vocabulary_
        np.testing.assert_array_equal(ours.idf, theirs.idf_)
    np.testing.assert_array_equal(FITTED.matrix(ROWS).toarray(), FITTED(ROWS) @ np.eye(WIDTH))
    for text in (*ROWS, "", " ", "unseen", "my card my card", "I", "ß ẞ İstanbul", "a\u00a0card\u2028lost"):
        ours, theirs = both(text)
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@given(st.text(alphabet=st.sampled_from("card myGröße İ€42  \t\n.,-_\u00a0ﬁ"), max_size=60))
def test_rows_of_any_text_are_those_of_scikit_learn(text: str) -> None:
    ours, theirs = both(text)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_nothing_heavy_is_loaded() -> None:
    program = (
        "import sys, smallfirst.models.linear.tfidf\n"
        "print([m for m in ('sklearn', 'scipy', 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

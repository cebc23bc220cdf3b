"""TF-IDF without scikit-learn gives what scikit-learn gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.models.linear.classifier import TfidfFeatures
from smallfirst.models.linear.tfidf import TfidfVectorizer, Vocabulary

ROWS = ["Where is my card?", "my card  was lost, a card I need", "Größe: 42 €\tok", "I a b", "x" * 40, "card card CARD"]
FITTED = TfidfFeatures.fit(ROWS)
TABLES = [
    Vocabulary({term: int(at) for term, at in v.vocabulary_.items()}, np.asarray(v.idf_)) for v in FITTED.vectorisers
]
WIDTH = sum(len(table.idf) for table in TABLES)


def both(text: str) -> tuple[np.ndarray, np.ndarray]:
    ours = TfidfVectorizer(*TABLES)([text]) @ np.eye(WIDTH)
    return ours[0], FITTED([text]).toarray()[0]


@pytest.mark.parametrize(
    "text", [*ROWS, "", " ", "unseen", "my card my card", "I", "ß ẞ İstanbul", "a\u00a0card\u2028lost"]
)
def test_rows_are_those_of_scikit_learn(text: str) -> None:
    ours, theirs = both(text)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@given(st.text(alphabet=st.sampled_from("card myGröße İ€42  \t\n.,-_\u00a0ﬁ"), max_size=60))
def test_rows_of_any_text_are_those_of_scikit_learn(text: str) -> None:
    ours, theirs = both(text)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_product_by_hand() -> None:
    words = Vocabulary({"my": 0, "card": 1, "my card": 2}, np.array([1.0, 2.0, 2.0]))
    pieces = Vocabulary({" c": 0}, np.array([3.0]))
    # my, card, «my card»: 1, 2, 2 over their length 3; the one piece has length 1.
    weights = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [5.0, 0.0]])
    np.testing.assert_allclose(TfidfVectorizer(words, pieces)(["My card"]) @ weights, [[6.0, 4.0]])


def test_nothing_heavy_is_loaded() -> None:
    program = (
        "import sys, smallfirst.models.linear.tfidf\n"
        "print([m for m in ('sklearn', 'scipy', 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

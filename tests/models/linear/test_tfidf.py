"""TF-IDF without scikit-learn gives what scikit-learn gives."""

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


@given(st.text(alphabet=st.sampled_from("card myGröße İ€42  \t\n.,-_\u00a0ﬁ"), max_size=60))
def test_rows_of_any_text_are_those_of_scikit_learn(text: str) -> None:
    ours, theirs = both(text)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)

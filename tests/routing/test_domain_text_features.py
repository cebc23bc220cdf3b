"""What a text has in common with a task's requests, by words alone: checked by hand and against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from smallfirst.routing.domain import MAX_CHARS, SCORES, TextFeatures

OWN = ("where is my card", "where is my refund", "my card is lost", "why was the card declined", "refund my money")
ASKED = ("where is my money", "card card card", "write a poem about the sea", "", "?!", "東京", "a", "card " * 2000)
PIECES = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit(OWN)


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return TextFeatures.fit(OWN)


def test_unseen_is_the_share_of_words_and_pairs_that_no_row_has(features: TextFeatures) -> None:
    # where, is, my, "where is", "is my" are known; money too; "my money" is
    assert features.scores(["where is my money"])[0, 0] == 0
    # of where, is, poem, "where is", "is poem" two are unknown
    assert features.scores(["where is poem"])[0, 0] == pytest.approx(2 / 5)
    assert features.scores(["poem sea", "", "a"])[:, 0].tolist() == [1, 1, 1]


def test_distances_are_one_less_the_cosines_to_the_nearest_and_the_nearest_three(features: TextFeatures) -> None:
    asked, own = PIECES.transform(ASKED), PIECES.transform(OWN)
    cosines = np.sort((asked @ own.T).toarray(), axis=1)
    found = features.scores(ASKED)
    assert found[:, 1] == pytest.approx(1 - cosines[:, -1], abs=1e-6)
    assert found[:, 2] == pytest.approx(1 - cosines[:, -3:].mean(axis=1), abs=1e-6)


def test_unlike_counts_words_that_come_twice_alike_and_unseen_ones_against_the_text() -> None:
    features = TextFeatures.fit(("my red card", "my blue card", "my old car"))
    # "my" and "card" come twice or more; the first row is (1, 1) / √2 in them
    assert features.scores(["my card"])[0, 3] == pytest.approx(1 - (2 / math.sqrt(3)) / math.sqrt(2), abs=1e-6)
    # my, poem, "my poem": one of three is known, and the last row is (1, 0)
    assert features.scores(["my poem"])[0, 3] == pytest.approx(1 - 1 / math.sqrt(3), abs=1e-6)
    # twice the same word: 1 + ln 2 of it among three n-grams
    assert features.scores(["my my"])[0, 3] == pytest.approx(1 - (1 + math.log(2)) / math.sqrt(3), abs=1e-6)
    assert features.scores(["", "red car"])[:, 3].tolist() == [1, 1]


def test_scores_do_not_depend_on_the_other_texts(features: TextFeatures) -> None:
    together = features.scores(ASKED)
    assert together.shape == (len(ASKED), len(SCORES))
    assert np.isfinite(together).all()
    for text, row in zip(ASKED, together, strict=True):
        assert features.scores([text])[0].tolist() == row.tolist()


def test_a_foreign_text_has_larger_scores(features: TextFeatures) -> None:
    own, foreign = features.scores(["where is my card", "write a poem about the sea"])
    assert (foreign > own).all()


def test_of_a_long_text_both_ends_are_compared(features: TextFeatures) -> None:
    long = "where is my card " * 200
    assert len(long) > MAX_CHARS
    begins, ends = features.scores(["poem " * 10 + long, long + " poem" * 10])
    assert begins[0] > 0
    assert ends[0] > 0
    half = MAX_CHARS // 2
    hidden = "x" * half + " poem sea " * 50 + "y" * half
    assert features.scores([hidden]).tolist() == features.scores(["x" * half + " " + "y" * half]).tolist()


def test_log_likelihood_is_the_sum_of_log_shares(features: TextFeatures) -> None:
    # "my" stands in four of five rows, "lost" in one, "poem" in none; "my lost", "lost poem" in none
    expected = math.log(5 / 6) + math.log(2 / 6) + 3 * math.log(1 / 6)
    assert features.log_likelihood("my lost poem") == pytest.approx(expected)
    assert features.log_likelihood("") == 0


def test_the_log_likelihood_ratio_points_to_the_right_task(features: TextFeatures) -> None:
    poems = TextFeatures.fit(("write a poem", "write a song", "a poem about my cat", "poem for a card", "song of love"))
    for text, mine in (("where is my card", True), ("write a poem about cats", False)):
        assert (features.log_likelihood(text) > poems.log_likelihood(text)) is mine


def test_features_load_as_they_were_saved(features: TextFeatures, tmp_path: Path) -> None:
    features.save(tmp_path)
    again = TextFeatures.load(tmp_path)
    assert again.n_texts == len(OWN)
    assert again.scores(ASKED).tolist() == features.scores(ASKED).tolist()
    assert [again.log_likelihood(t) for t in ASKED] == [features.log_likelihood(t) for t in ASKED]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_of_many_rows_evenly_spaced_ones_are_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.routing.domain.MAX_ROWS", 2)
    features = TextFeatures.fit(OWN)
    cosines = [1 - features.scores([text])[0, 2] for text in OWN]
    kept = PIECES.transform([OWN[0], OWN[3]])
    expected = (PIECES.transform(OWN) @ kept.T).toarray().mean(axis=1)
    assert cosines == pytest.approx(expected.tolist(), abs=1e-6)

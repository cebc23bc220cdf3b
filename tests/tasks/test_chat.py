"""Open text: the user's scorers decide, the first of them what is right."""

import pytest

from smallfirst.tasks.chat import Chat
from smallfirst.tasks.task import ScoredAnswer

TASK = Chat(name="letters", scorers=("token_f1", "exact"))


def test_the_first_scorer_gives_the_score_against_the_best_gold_answer() -> None:
    golds = ("police killed the gunman", "the gunman is dead")
    assert TASK.score(golds, "police kill the gunman") == pytest.approx(2 * 2 / 6)
    assert TASK.score(golds, "The gunman is dead!") == 1.0
    assert TASK.score(golds, None) == 0.0


def test_every_scorer_is_measured_by_its_name_and_no_answer_counts_as_0() -> None:
    rows = [
        ScoredAnswer(("police killed the gunman",), "police kill the gunman", 0.75),
        ScoredAnswer(("yes",), "Yes.", 1.0),
        ScoredAnswer(("yes",), None, 0.0),
        ScoredAnswer(("yes", "sure"), "sure", 1.0),
    ]
    found = TASK.measures(rows)
    assert list(found) == ["token_f1", "exact"]
    assert found["token_f1"].value == pytest.approx((2 / 3 + 1 + 0 + 1) / 4)
    assert found["exact"].value == pytest.approx(2 / 4)
    assert all(0 <= e.low < e.value < e.high <= 1 and e.n == 4 for e in found.values())
    assert TASK.parts(rows) == ()
    assert TASK.measures([])["exact"].n == 0

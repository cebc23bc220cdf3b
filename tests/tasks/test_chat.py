"""Open text: the user's scorers decide, the first of them what is right."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.data.dataset import Message
from smallfirst.tasks.chat import Chat
from smallfirst.tasks.task import ScoredAnswer, Shot

TASK = Chat(name="letters", scorers=("token_f1", "exact"))


def test_the_whole_text_is_the_answer() -> None:
    assert TASK.parse(" Dear all,\n\nno.\n") == "Dear all,\n\nno."
    assert TASK.parse(" \n") is None


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


def test_a_scorer_is_told_the_question(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("installed")
    (folder / "echoes.py").write_text("def echo(question, answer, gold):\n    return question == answer\n")
    info = folder / "echoes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echoes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[smallfirst.scorers]\necho = echoes:echo\n")
    monkeypatch.syspath_prepend(str(folder))
    task = Chat(name="x", scorers=("echo",))
    assert task.measures([ScoredAnswer(("gold",), "hello", 0.0, "hello")])["echo"].value == 1.0
    assert task.score(("gold",), "hello", question="hello") == 1.0
    assert task.score(("gold",), "hello") == 0.0


def test_a_general_model_is_told_the_job_and_shown_solved_rows() -> None:
    task = TASK.model_copy(update={"about": "Answer as our desk does."})
    assert task.instructions((Shot("hi", "hello"),)) == (
        Message(role="system", content="Answer as our desk does."),
        Message(role="user", content="hi"),
        Message(role="assistant", content="hello"),
    )
    assert TASK.instructions(())[0].content == "Answer the user's message."


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"scorers": ()}, "open text needs at least one scorer, such as token_f1"),
        ({"scorers": ("exact", "exact")}, "scorers repeat"),
    ],
)
def test_settings_that_make_no_task_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=rule):
        Chat(name="x", **values)

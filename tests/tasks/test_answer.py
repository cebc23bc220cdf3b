"""Short answers: what is read as the answer, how right it is, and when saying nothing is right."""

import pydantic
import pytest

from smallfirst.base.stats.intervals import wilson
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.task import ScoredAnswer

OPEN = Answer(name="rules")
CHOICES = Answer(name="pubmed", choices=("yes", "no", "maybe"))
NONE = Answer(name="rules", not_answerable="not answerable")


@pytest.mark.parametrize(("text", "answer"), [
    (" 308", "308"), ("308\n\nBecause the text says so.", "308"),
    ("\n\n  the Denver\nBroncos \n \nThat is all", "the Denver\nBroncos"), ("", None), (" \n\n ", None),
])  # fmt: skip
def test_an_open_answer_is_what_stands_before_the_first_blank_line(text: str, answer: str | None) -> None:
    assert OPEN.parse(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("The answer is: MAYBE", "maybe"), ("maybe\n\nno evidence, yes?", "maybe"), ("yes or no", None)],
)
def test_one_of_a_few_choices_is_read_as_a_label_is(text: str, answer: str | None) -> None:
    assert CHOICES.parse(text) == answer


@pytest.mark.parametrize("task", [OPEN, NONE])
def test_an_open_answer_scores_its_token_f1_with_the_best_gold_answer(task: Answer) -> None:
    golds = ("14 December 1972 UTC", "December 1972")
    assert task.score(golds, "december, 1972") == 1.0
    assert task.score(golds, "in December 1972") == pytest.approx(4 / 5)  # 2 of 3 said, 2 of 2 there
    assert task.score(golds, "1969") == 0.0
    assert task.score(golds, None) == 0.0


def test_saying_that_there_is_no_answer_is_right_only_where_there_is_none() -> None:
    assert NONE.score(("not answerable",), "not answerable") == 1.0
    assert NONE.score(("Not answerable.",), "not answerable") == 1.0
    assert NONE.score(("308",), "not answerable") == 0.0
    assert NONE.score(("308", "not answerable"), "not answerable") == 1.0
    assert NONE.score(("not answerable",), None) == 0.0


def answered(task: Answer, *rows: tuple[tuple[str, ...], str | None]) -> list[ScoredAnswer]:
    return [ScoredAnswer(golds, answer, task.score(golds, answer)) for golds, answer in rows]


def test_where_a_question_may_have_no_answer_saying_so_is_measured_apart() -> None:
    rows = answered(
        NONE,
        (("308",), "308"),
        (("December 1972",), "in December 1972"),
        (("Denver",), "not answerable"),
        (("not answerable",), "not answerable"),
        (("not answerable",), "Denver"),
        (("not answerable",), None),
    )
    found = NONE.measures(rows)
    assert list(found) == ["token_f1", "exact_match", "answerable_f1", "abstain_precision", "abstain_recall"]
    assert found["token_f1"].value == pytest.approx((1 + 0.8 + 0 + 1 + 0 + 0) / 6)
    assert found["exact_match"] == wilson(2, 6)
    assert found["answerable_f1"].value == pytest.approx((1 + 0.8 + 0) / 3)
    assert found["answerable_f1"].n == 3
    assert found["abstain_precision"] == wilson(1, 2)
    assert found["abstain_recall"] == wilson(1, 3)


def test_choices_are_measured_as_a_classification() -> None:
    rows = answered(CHOICES, (("yes",), "yes"), (("yes",), "no"), (("no",), "no"), (("maybe",), None))
    # yes: 2 * 1 / (1 said + 2 there), no: 2 * 1 / (2 + 1), maybe: 0
    assert CHOICES.measures(rows)["macro_f1"].value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    counts = [(part.name, part.n_gold, part.n_said, part.n_right) for part in CHOICES.parts(rows)]
    assert counts == [("yes", 2, 1, 1), ("no", 1, 2, 1), ("maybe", 1, 0, 0)]


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"choices": ("yes",)}, "a question with choices needs at least two"),
        ({"choices": ("yes", "no", "yes")}, "choices repeat"),
        (
            {"choices": ("yes", "no", "unknown"), "not_answerable": "unknwon"},
            'not_answerable "unknwon" must be one of the choices — did you mean "unknown"?',
        ),
    ],
)
def test_settings_that_make_no_task_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=rule.replace("?", r"\?")):
        Answer(name="x", **values)

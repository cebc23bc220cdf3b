"""A model against itself: counts by hand, the bound on the best match by drawing models at random."""

from __future__ import annotations

import math

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.self_agreement import (
    TeacherAgreement,
    TeacherAnswer,
    agreement_with_people,
    answer_matcher,
    self_agreement,
)
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract


def asked(answers: dict[str, str | None], golds: dict[str, str], *, model: str = "big", note: str = "") -> Evaluation:
    """One pass: answers by row, right where they are the gold one."""
    rows = [evaluated_row(key, golds[key], answer) for key, answer in answers.items()]
    return evaluation_of(rows, candidate="large", model=model, note=note)


GOLD = {"1": "a", "2": "a", "3": "b", "4": "b", "5": "a"}
FIRST = {"1": "a", "2": "a", "3": "a", "4": "b", "5": None}
AGAIN = {"1": "a", "2": "b", "3": "a", "4": "b", "5": None}


def test_agreement_and_rightness_are_counted_on_the_rows_of_both_passes() -> None:
    found = self_agreement(asked(FIRST, GOLD, note="May"), asked(AGAIN | {"6": "a"}, GOLD | {"6": "a"}, note="June"))
    assert found.agreement == wilson(3, 5)  # 1, 3 and 4; no answer to 5 is no agreement
    assert found.accuracy == wilson(3, 5)  # 1, 2, 4
    assert found.same_wrong_answer == wilson(1, 5)  # 3
    assert found.note == "May; June"


def test_what_can_be_reached_lies_between_the_agreement_and_its_root() -> None:
    found = self_agreement(asked(FIRST, GOLD), asked(AGAIN, GOLD))
    low, high = found.attainable
    assert low == wilson(3, 5).low
    assert high == pytest.approx(math.sqrt(wilson(3, 5).high))
    assert "the same answer on 0.600" in found.in_words
    assert f"{low:.3f} to {high:.3f} of rows at best" in found.in_words


def test_passes_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(SmallfirstError, match="two passes of big share no row"):
        self_agreement(asked({"1": "a"}, GOLD), asked({"2": "a"}, GOLD))
    with pytest.raises(SmallfirstError, match="made by big and other"):
        self_agreement(asked(FIRST, GOLD), asked(AGAIN, GOLD, model="other"))


DESK = Classify(name="desk", labels=("card", "fee", "pin"))
RULES = Answer(name="rules")


def test_an_unknown_confidence_counts_at_0_alone() -> None:
    assert TeacherAnswer("card", 0.8).is_confident(0.8)
    assert not TeacherAnswer("card", 0.8).is_confident(0.81)
    assert TeacherAnswer("card").is_confident(0.0)
    assert not TeacherAnswer("card").is_confident(0.1)
    assert not TeacherAnswer(None).is_confident(0.0)


def test_written_answers_agree_as_far_as_the_task_takes_them_for_right() -> None:
    same = answer_matcher(RULES)
    assert same("the 21 days", "21 Days")  # articles and case aside, token F1 is 1
    assert not same("21 days", "three weeks")
    shop = {"type": "object", "properties": {"on": {"type": "string"}}}
    dates = answer_matcher(Extract(name="shop", json_schema=shop, normalise={"on": "date"}))
    assert dates('{"on": "May 3, 2024"}', '{"on": "2024-05-03"}')
    assert not dates('{"on": "May 3, 2024"}', '{"on": "2024-05-04"}')


def test_agreement_with_people_by_hand() -> None:
    said = [("card", 0.95), ("card", 0.9), ("fee", 0.9), ("pin", 0.6), ("pin", 0.3), (None, None)]
    answers = [TeacherAnswer(answer, sure) for answer, sure in said]
    golds = [("card",), ("fee",), ("fee",), ("card", "pin"), ("fee",), ("pin",)]
    found = agreement_with_people(answers, golds, DESK, min_confidence=0.9)
    assert found.accuracy == wilson(3, 6)
    assert found.confident_accuracy == wilson(2, 3)


def test_without_rows_there_is_no_trust_and_the_words_hold_every_figure_with_its_interval() -> None:
    assert agreement_with_people([], [], DESK, min_confidence=0.5) == TeacherAgreement()
    assert TeacherAgreement().in_words == []
    found = agreement_with_people([TeacherAnswer("card", 0.8)], [("card",)], DESK, min_confidence=0.5)
    assert found.model_copy(update={"checked_on": "selection rows"}).in_words == [
        "it is right on 1.000 [0.207, 1.000] of 1 selection rows; where it was confident, on 1.000 [0.207, 1.000] of 1"
    ]

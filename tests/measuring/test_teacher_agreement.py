"""Agreement of a teacher with people, counted by hand."""

from __future__ import annotations

from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.teacher_agreement import (
    TeacherAgreement,
    TeacherAnswer,
    agreement_with_people,
)
from smallfirst.tasks.classify import Classify

DESK = Classify(name="desk", labels=("card", "fee", "pin"))


def test_an_unknown_confidence_counts_at_0_alone() -> None:
    assert TeacherAnswer("card", 0.8).is_confident(0.8)
    assert not TeacherAnswer("card", 0.8).is_confident(0.81)
    assert TeacherAnswer("card").is_confident(0.0)
    assert not TeacherAnswer("card").is_confident(0.1)
    assert not TeacherAnswer(None).is_confident(0.0)


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

"""A question in one form for both shapes, and how sure its answer is."""

from __future__ import annotations

import pytest

from smallfirst.traffic.wire import openai_decisions, systemone
from smallfirst.traffic.wire.questions import Verdict, confidence_of, label_of

CARD, ANGRY = {"value": "card", "description": "Cards"}, {"label": "angry", "description": "Shouts"}


def openai(*questions):
    return openai_decisions.read_request({"model": "m", "input": "s", "questions": list(questions)}).questions


def jev(**questions):
    return systemone.read_request({"model": "m", "state": "s", "questions": questions}).questions


def test_a_question_is_the_same_in_both_shapes_whatever_its_name():
    ours = openai(
        {"type": "predicate", "instructions": "It is urgent.", "name": "urgent"},
        {
            "type": "choice",
            "instructions": "Topic?",
            "choices": [{"value": "card", "description": "Cards"}, {"value": "fee"}],
        },
        {
            "type": "score",
            "instructions": "Anger?",
            "levels": [{"label": "calm"}, {"label": "angry", "description": "Shouts"}],
        },
    )
    theirs = jev(
        a={"type": "noul", "instructions": "It is urgent."},
        b={"type": "choice", "instructions": "Topic?", "criteria": {"card": "Cards", "fee": None}},
        c={
            "type": "score",
            "instructions": "Anger?",
            "criteria": ["calm", ANGRY],
        },
    )
    assert [one.text for one in ours] == [one.text for one in theirs]
    assert [one.labels for one in ours] == [("true", "false"), ("card", "fee"), ("calm", "angry")]
    assert ours[1].text == "Topic?\ncard: Cards\nfee\nAnswer with one of these."


def test_another_wording_or_another_option_is_another_question():
    first, *others = openai(
        {"type": "choice", "instructions": "Topic?", "choices": [{"value": "card"}, {"value": "fee"}]},
        {"type": "choice", "instructions": "Topic ?", "choices": [{"value": "card"}, {"value": "fee"}]},
        {"type": "choice", "instructions": "Topic?", "choices": [{"value": "card"}, {"value": "fees"}]},
    )
    assert first.text not in {other.text for other in others}


def test_labels_tell_a_boolean_from_a_text_that_reads_so():
    assert [label_of(value) for value in (True, "true", False, "yes")] == ["true", '"true"', "false", "yes"]


def test_a_question_without_labels_of_its_own_is_no_task():
    same, empty, image, one_level = (
        *openai(
            {"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": "a"}]},
            {"type": "choice", "instructions": "?", "choices": [{"value": ""}, {"value": "a"}]},
            {"type": "predicate", "instructions": [{"type": "input_image", "image_url": "data:,"}]},
        ),
        *jev(a={"type": "score", "criteria": ["only"]}),
    )
    assert [one.is_task for one in (same, empty, image, one_level)] == [False] * 4


@pytest.mark.parametrize(
    ("kind", "probabilities", "confidence"),
    [
        ("choice", [0.8, 0.1, 0.1], 0.7),  # (0.8 - 1/3) / (2/3)
        ("choice", [0.25] * 4, 0.0),
        ("choice", [0.9, 0.0], 1.0),  # shares of what was given
        ("choice", [0.3], 1.0),
        ("score", [0.1, 0.1, 0.8], 0.55),  # 1 - (0.2 + 0.1) / (2/3)
        ("score", [0.5, 0.0, 0.5], 0.0),  # never below 0
    ],
)
def test_confidence_follows_its_definition(kind, probabilities, confidence):
    assert confidence_of(kind, probabilities) == pytest.approx(confidence)


def test_a_verdict_has_a_likeliest_option_and_a_mean_level():
    assert (Verdict((0.2, 0.4, 0.4)).best, Verdict((0.2, 0.4, 0.4)).expected) == (1, pytest.approx(1.2))
    assert Verdict().refused

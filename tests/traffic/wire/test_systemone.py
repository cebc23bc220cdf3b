"""System One's shape: strict requests, answers under their names."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.traffic.wire import systemone
from smallfirst.traffic.wire.questions import Usage, Verdict

QUESTIONS = {
    "urgent": {"type": "noul", "instructions": "Is it urgent?", "criteria": {"true": "Today", "false": None}},
    "team": {"type": "choice", "criteria": {"cards": "Cards", "fees": None}},
    "anger": {"type": "score", "instructions": {"task": "anger"}, "criteria": ["calm", {"label": "angry", "x": 1}]},
}
ANSWERS = {
    "urgent": {"type": "noul", "noul": 0.98},
    "team": {"type": "choice", "choice": "fees", "confidence": 0.5, "probabilities": {"cards": 0.25, "fees": 0.75}},
    "anger": {
        "type": "score",
        "score": 0.25,
        "confidence": 0.5,
        "legend": {"0": "calm", "1": {"label": "angry", "x": 1}},
        "probabilities": {"0": 0.75, "1": 0.25},
    },
}


def body(**changed):
    return {"model": "jev-latest", "state": "My card is lost", "questions": QUESTIONS, **changed}


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({key: value for key, value in body().items() if key != "model"}, "model"),
        (body(state=None), "state"),
        (body(questions={}), "questions"),
        (body(questions={"a": {"type": "predicate", "instructions": "?"}}), "a"),
        (body(questions={"a": {"type": "noul"}}), "a"),
        (body(questions={"a": {"type": "noul", "criteria": {"maybe": "?"}, "instructions": "?"}}), "maybe"),
        (body(questions={"a": {"type": "choice", "instructions": "?"}}), "criteria"),
        (body(questions={"a": {"type": "choice", "criteria": {}}}), "criteria"),
        (body(questions={"a": {"type": "choice", "criteria": dict.fromkeys(map(str, range(256)))}}), "criteria"),
        (body(questions={"a": {"type": "score", "criteria": list("abcdefghijk")}}), "criteria"),
        (body(questions={"a": {"type": "score", "criteria": ["a"], "levels": 1}}), "levels"),
        (body(assets={}), "assets"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused_at_its_place(given, place):
    with pytest.raises(pydantic.ValidationError) as refused:
        systemone.read_request(given)
    assert any(place in error["loc"] for error in refused.value.errors())


def test_images_and_boxes_are_media_and_extensions_pass():
    box = {"type": "box", "instructions": "The dog"}
    asked = systemone.read_request(body(questions={**QUESTIONS, "dog": box}, keep_alive="5m"))
    assert asked.has_media
    assert [one.name for one in asked.questions] == list(QUESTIONS)
    assert systemone.read_request(body(images=["AA=="])).has_media
    assert not systemone.read_request(body(keep_alive="5m")).has_media


def test_answers_come_back_as_they_were_under_their_names():
    questions = systemone.read_request(body()).questions
    response = {"answers": dict(reversed(ANSWERS.items())), "usage": {"input_tokens": 5, "output_tokens": 1}}
    verdicts = systemone.read_response(response, questions)
    assert [one.probabilities for one in verdicts] == [(0.98, pytest.approx(0.02)), (0.25, 0.75), (0.75, 0.25)]
    usage = Usage.of(response)
    written = systemone.write_response("jev-1", questions, verdicts, usage)
    assert written == {"model": "jev-1", "answers": ANSWERS, "usage": {"input_tokens": 5, "output_tokens": 1}}
    computed = [Verdict(one.probabilities) for one in verdicts]
    assert systemone.write_response("jev-1", questions, computed, usage) == written


def test_a_refusal_stays_one_and_a_broken_answer_is_named():
    questions = systemone.read_request(body()).questions[:1]
    refused = systemone.read_response({"answers": {"urgent": {"type": "refusal"}}}, questions)
    assert systemone.write_response("m", questions, refused, Usage())["answers"] == {"urgent": {"type": "refusal"}}
    for answers in ({}, {"urgent": {"type": "score"}}, {"urgent": {"type": "noul"}}, {"other": None}, []):
        with pytest.raises(ValueError, match=r"expected|without its probabilities"):
            systemone.read_response({"answers": answers}, questions)

"""OpenAI's shape: strict requests, states as text, answers in order."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.traffic.wire import openai_decisions
from smallfirst.traffic.wire.openai_decisions import Body
from smallfirst.traffic.wire.questions import Usage, Verdict

QUESTIONS = [
    {"type": "predicate", "instructions": "It is urgent.", "name": "urgent"},
    {"type": "choice", "instructions": "Paid?", "choices": [{"value": True}, {"value": "true"}, {"value": "open"}]},
    {"type": "score", "instructions": "Anger?", "levels": [{"label": "calm"}, {"label": "angry"}]},
]
ANSWERS = [
    {"type": "predicate", "name": "urgent", "probability": 0.9},
    {
        "type": "choice",
        "name": None,
        "choice": "true",
        "confidence": 0.4,
        "probabilities": [
            {"value": "true", "probability": 0.6},
            {"value": True, "probability": 0.3},
            {"value": "open", "probability": 0.1},
        ],
    },
    {
        "type": "score",
        "name": None,
        "score": 0.25,
        "confidence": 0.5,
        "probabilities": [
            {"value": 0, "label": "calm", "probability": 0.75},
            {"value": 1, "label": "angry", "probability": 0.25},
        ],
    },
]


def request(state="s", questions=QUESTIONS):
    return openai_decisions.read_request({"model": "m", "input": state, "questions": questions})


@pytest.mark.parametrize(
    ("given", "text", "has_media"),
    [
        ("My card", "My card", False),
        ([{"role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]}], "a\nb", False),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]}], '{"a": 1}', False),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}], "", True),
        (
            [
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ],
            '[{"role": "assistant", "content": "No"}, {"role": "assistant", "call": "f", "content": "{}"}, '
            '{"role": "tool", "content": "x"}]',
            False,
        ),
    ],
)
def test_the_state_is_read_as_text(given, text, has_media):
    assert (request(given).text, request(given).has_media) == (text, has_media)


def test_answers_come_back_as_they_were_and_in_their_order():
    questions = request().questions
    verdicts = openai_decisions.read_response({"answers": ANSWERS}, questions)
    assert [one.probabilities for one in verdicts] == [(0.9, pytest.approx(0.1)), (0.3, 0.6, 0.1), (0.75, 0.25)]
    assert openai_decisions.write_response("m", questions, verdicts, Usage(7, 2, 3))["answers"] == ANSWERS
    computed = [Verdict(one.probabilities) for one in verdicts]
    written = openai_decisions.write_response("m", questions, computed, Usage(7, 2, 3))
    assert [one.get("choice") for one in written["answers"]] == [None, "true", None]
    assert written["answers"][2] == ANSWERS[2]
    assert written["usage"]["total_tokens"] == 9
    assert written["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert Usage.of(written) == Usage(7, 2, 3)


def test_a_refusal_stays_one_and_a_broken_answer_is_named():
    questions = request().questions[:1]
    (refused,) = openai_decisions.read_response({"answers": [{"type": "refusal", "name": "urgent"}]}, questions)
    assert openai_decisions.write_response("m", questions, [refused], Usage())["answers"] == [
        {"type": "refusal", "name": "urgent"}
    ]
    for answers in ([], [{"type": "score"}], [{"type": "predicate"}], [None], None):
        with pytest.raises(ValueError, match=r"expected|without its probabilities"):
            openai_decisions.read_response({"answers": answers}, questions)


def test_a_body_with_some_of_its_questions_keeps_all_else():
    asked = openai_decisions.read_request({**request().raw, "prompt_cache_key": "k"})
    part = openai_decisions.with_questions(asked, asked.questions[1:2], "other")
    assert part == {"model": "other", "input": "s", "prompt_cache_key": "k", "questions": [QUESTIONS[1]]}


PREDICATE = {"type": "predicate", "instructions": "It is urgent."}


def choice(*values):
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}


def score(n):
    return {"type": "score", "instructions": "How?", "levels": [{"label": str(i)} for i in range(n)]}


def body(**changed):
    return {"model": "gpt-6-luna", "input": "My card is lost", "questions": [PREDICATE], **changed}


def nested(levels):
    value: dict = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return [{"role": "user", "content": [{"type": "input_json", "data": value}]}]


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "12 EUR"}
CALL = {"type": "function_call", "call_id": "1", "name": "price", "arguments": "{}"}


@pytest.mark.parametrize(
    "given",
    [
        body(questions=[PREDICATE] * 400, prompt_cache_key="k", prompt_cache_options={"ttl": "30m"}),
        body(questions=[choice(*map(str, range(255))), choice("true", True, False), score(10)]),
        body(questions=[{**PREDICATE, "instructions": [{"type": "input_text", "text": "a"}, IMAGE], "name": "urgent"}]),
        body(input=nested(32), safety_identifier="x" * 128),
        body(input=[{"role": "system", "content": "s"}, {"role": "assistant", "content": "a", "phase": None}]),
        body(input=[CALL, OUTPUT, {"type": "message", "role": "user", "content": [IMAGE] * 128}]),
        body(input=[{**CALL, "type": "custom_tool_call", "arguments": None, "input": "x"}]),
    ],
)
def test_what_the_reference_allows_is_read(given):
    Body.model_validate(given)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (body(model=""), "model"),
        (body(input=[]), "input"),
        (body(input=3), "input"),
        (body(questions=[]), "questions"),
        (body(questions=[PREDICATE] * 401), "questions"),
        (body(questions=[{**PREDICATE, "name": "a"}] * 2), "questions"),
        (body(questions=[{**PREDICATE, "type": "noul"}]), "questions"),
        (body(questions=[{**PREDICATE, "criteria": {}}]), "criteria"),
        (body(questions=[{"type": "predicate"}]), "instructions"),
        (body(questions=[choice("a")]), "choices"),
        (body(questions=[choice("a", "a")]), "choices"),
        (body(questions=[choice(*map(str, range(256)))]), "choices"),
        (body(questions=[choice("a", 1)]), "value"),
        (body(questions=[score(1)]), "levels"),
        (body(questions=[score(11)]), "levels"),
        (body(temperature=0), "temperature"),
        (body(input=[{"role": "tool", "content": "x"}]), "input"),
        (body(input=[{"role": "user", "content": [{"type": "input_video", "text": "x"}]}]), "type"),
    ],
)
def test_what_it_does_not_allow_is_refused_at_its_place(given, place):
    with pytest.raises(pydantic.ValidationError) as refused:
        Body.model_validate(given)
    found = [error["loc"] for error in refused.value.errors()]
    assert any(place in loc for loc in found), found

"""OpenAI's shape: states are read as text, answers in order, and other shapes' questions are written in it."""

from __future__ import annotations

import pytest

from smallfirst.traffic.decisions import openai_shape, systemone_shape
from smallfirst.traffic.decisions.question import Usage, Verdict

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
    return openai_shape.read_request({"model": "m", "input": state, "questions": questions})


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
    verdicts = openai_shape.read_response({"answers": ANSWERS}, questions)
    assert [one.probabilities for one in verdicts] == [(0.9, pytest.approx(0.1)), (0.3, 0.6, 0.1), (0.75, 0.25)]
    assert openai_shape.write_response("m", questions, verdicts, Usage(7, 2, 3))["answers"] == ANSWERS
    computed = [Verdict(one.probabilities) for one in verdicts]
    written = openai_shape.write_response("m", questions, computed, Usage(7, 2, 3))
    assert [one.get("choice") for one in written["answers"]] == [None, "true", None]
    assert written["answers"][2] == ANSWERS[2]
    assert written["usage"]["total_tokens"] == 9
    assert written["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert Usage.of(written) == Usage(7, 2, 3)


def test_a_refusal_stays_one_and_a_broken_answer_is_named():
    questions = request().questions[:1]
    (refused,) = openai_shape.read_response({"answers": [{"type": "refusal", "name": "urgent"}]}, questions)
    assert openai_shape.write_response("m", questions, [refused], Usage())["answers"] == [
        {"type": "refusal", "name": "urgent"}
    ]
    for answers in ([], [{"type": "score"}], [{"type": "predicate"}], [None], None):
        with pytest.raises(ValueError, match=r"expected|without its probabilities"):
            openai_shape.read_response({"answers": answers}, questions)


def test_a_body_with_some_of_its_questions_keeps_all_else():
    asked = openai_shape.read_request({**request().raw, "prompt_cache_key": "k"})
    part = openai_shape.with_questions(asked, asked.questions[1:2], "other")
    assert part == {"model": "other", "input": "s", "prompt_cache_key": "k", "questions": [QUESTIONS[1]]}


def test_questions_of_the_other_shape_are_written_within_the_limits_of_this_one():
    asked = systemone_shape.read_request(
        {
            "model": "m",
            "state": {"ticket": "late"},
            "questions": {
                "a": {"type": "noul", "criteria": {"true": "Late"}},
                "b": {"type": "choice", "criteria": {"card": {"is": "Cards"}, "fee": None}},
                "c": {"type": "score", "instructions": ["How", "angry"], "criteria": ["calm", "angry"]},
            },
        }
    )
    written = openai_shape.write_request(asked, asked.questions, "luna")
    assert openai_shape.read_request(written).text == '{"ticket": "late"}'
    assert written["questions"] == [
        {"type": "predicate", "name": "a", "instructions": "The text fits the description of true.\ntrue: Late"},
        {
            "type": "choice",
            "name": "b",
            "instructions": "Choose the option that fits the text best.",
            "choices": [{"value": "card", "description": '{"is": "Cards"}'}, {"value": "fee"}],
        },
        {
            "type": "score",
            "name": "c",
            "instructions": '["How", "angry"]',
            "levels": [{"label": "calm"}, {"label": "angry"}],
        },
    ]
    alone = systemone_shape.read_request(
        {"model": "m", "state": ["a", 1], "questions": {"a": {"type": "choice", "criteria": {"x": None}}}}
    )
    with pytest.raises(ValueError, match="takes 2 to 255 choices"):
        openai_shape.write_request(alone, alone.questions, "luna")
    assert openai_shape.write_request(alone, (), "luna")["input"] == '["a", 1]'

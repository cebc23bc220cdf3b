"""A recorded decision is one exchange a question, and reads as a prompt with a label as its answer."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from smallfirst.traffic.decisions.exchanges import one_question_each, read_label
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import Answer, Turn, read_answer, read_prompt

DECISIONS, SYSTEM_ONE = "/v1/decisions", "/v1/systemone"
OPENAI = (
    {
        "model": "luna",
        "input": "My card is lost",
        "questions": [
            {"type": "predicate", "instructions": "It is urgent.", "name": "urgent"},
            {"type": "choice", "instructions": "Team?", "choices": [{"value": "cards"}, {"value": "fees"}]},
            {"type": "score", "instructions": "Anger?", "levels": [{"label": "calm"}, {"label": "angry"}]},
        ],
    },
    {
        "model": "luna-1",
        "answers": [
            {"type": "predicate", "name": "urgent", "probability": 0.2},
            {"type": "choice", "choice": "cards", "probabilities": [{"value": "cards", "probability": 0.9}]},
            {
                "type": "score",
                "score": 0.6,
                "probabilities": [
                    {"value": 0, "label": "calm", "probability": 0.4},
                    {"value": 1, "label": "angry", "probability": 0.6},
                ],
            },
        ],
    },
)
JEV = (
    {
        "model": "jev",
        "state": "My card is lost",
        "questions": {
            "a": {"type": "noul", "instructions": "It is urgent."},
            "b": {"type": "choice", "instructions": "Team?", "criteria": {"cards": None, "fees": None}},
            "c": {"type": "score", "instructions": "Anger?", "criteria": ["calm", "angry"]},
        },
    },
    {
        "model": "jev-1",
        "answers": {
            "a": {"type": "noul", "noul": 0.2},
            "b": {"type": "choice", "choice": "cards", "probabilities": {"cards": 0.9, "fees": 0.1}},
            "c": {
                "type": "score",
                "score": 0.6,
                "legend": {"0": "calm", "1": "angry"},
                "probabilities": {"0": 0.4, "1": 0.6},
            },
        },
    },
)


def exchange(route, request, response):
    return Exchange(
        id="e",
        at=datetime.now(UTC),
        route=route,
        request=request,
        response=response,
        model="m",
        prompt_tokens=31,
        cost_usd=0.3,
    )


@pytest.mark.parametrize(("route", "bodies"), [(DECISIONS, OPENAI), (SYSTEM_ONE, JEV)])
def test_each_question_of_both_shapes_reads_as_the_same_prompt_and_label(route, bodies):
    parts = list(one_question_each([exchange(route, *bodies)]))
    assert [(one.id, one.prompt_tokens) for one in parts] == [("e#0", 10), ("e#1", 10), ("e#2", 10)]
    assert sum(one.cost_usd for one in parts) == pytest.approx(0.3)
    prompts = [read_prompt(route, one.request) for one in parts]
    assert [prompt.turns[1] for prompt in prompts] == [Turn("user", "My card is lost")] * 3
    assert [prompt.turns[0].text for prompt in prompts] == [
        "It is urgent.\nIs this true of the text? Answer true or false.",
        "Team?\ncards\nfees\nAnswer with one of these.",
        "Anger?\ncalm\nangry\nAnswer with one of these, listed from the lowest to the highest.",
    ]
    assert len({prompt.response_format for prompt in prompts}) == 3
    assert [read_answer(route, one.response) for one in parts] == [Answer("false"), Answer("cards"), Answer("angry")]


def test_what_is_no_decision_of_several_questions_passes_as_it_is():
    chat = exchange("/v1/chat/completions", {"messages": []}, {})
    failed = exchange(DECISIONS, OPENAI[0], {"error": {"message": "overloaded"}})
    malformed = exchange(DECISIONS, {"model": "m"}, OPENAI[1])
    assert list(one_question_each([chat, failed, malformed])) == [chat, failed, malformed]
    assert read_prompt(DECISIONS, OPENAI[0]) is None
    assert read_prompt(DECISIONS, {"model": "m"}) is None
    assert read_answer(DECISIONS, OPENAI[1]) is None


def test_refusals_and_broken_answers_give_no_label():
    assert read_answer(DECISIONS, {"answers": [{"type": "refusal"}]}) == Answer("", (), "refusal")
    for answers in ([{"type": "score", "probabilities": []}], [{"type": "choice"}], [{}], ["x"]):
        assert read_label(DECISIONS, {"answers": answers}) is None


def test_a_state_with_images_is_no_case_for_a_small_model():
    given = {**JEV[0], "questions": {"a": JEV[0]["questions"]["a"]}, "images": ["AA=="]}
    assert read_prompt(SYSTEM_ONE, given).has_media

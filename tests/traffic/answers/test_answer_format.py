"""Values are read from answers and written again in the same bytes."""

from __future__ import annotations

import pytest

from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.answers.json_writing import JsonWriting
from smallfirst.traffic.messages import Answer, ToolCall

FRAME = AnswerFormat(kind="label", prefix="Intent: ", suffix=".")
FENCED = AnswerFormat(kind="json", prefix="```json\n", suffix="\n```", writing=JsonWriting(decimals={"total": 2}))


def test_a_label_in_a_frame_comes_back() -> None:
    assert FRAME.parse(Answer("Intent: card arrival.")) == "card arrival"
    assert FRAME.render("card arrival") == Answer("Intent: card arrival.")


@pytest.mark.parametrize(
    "answer",
    [
        Answer("card arrival."),
        Answer("Intent: card arrival"),
        Answer("Intent:."),
        Answer("Intent: card arrival.", finish_reason="length"),
        Answer("Intent: card arrival.", finish_reason="refusal"),
        Answer("Intent: card arrival.", (ToolCall("look_up", "{}"),), "tool_calls"),
    ],
)
def test_an_answer_of_another_form_has_no_value(answer: Answer) -> None:
    assert FRAME.parse(answer) is None
    assert not FRAME.reproduces(answer)


def test_overlapping_frames_do_not_count_twice() -> None:
    assert AnswerFormat(kind="label", prefix="ab", suffix="ba").parse(Answer("aba")) is None


def test_json_in_a_fence_comes_back_with_its_decimals() -> None:
    answer = Answer('```json\n{"total": 644.90, "tax": null}\n```')
    assert FENCED.parse(answer) == {"total": 644.9, "tax": None}
    assert FENCED.reproduces(answer)
    assert FENCED.render('{"total": 3, "tax": 1}').text == '```json\n{"total": 3.00, "tax": 1}\n```'
    assert FENCED.parse(Answer("```json\n12\n```")) is None
    assert FENCED.parse(Answer('```json\n{"total": \n```')) is None
    assert not FENCED.reproduces(Answer('```json\n{"total": 644.9, "tax": null}\n```'))


def test_a_tool_call_holds_the_value_in_its_arguments() -> None:
    call = AnswerFormat(kind="label", prefix='{"queue":"', suffix='"}', tool="route_ticket")
    answer = Answer("", (ToolCall("route_ticket", '{"queue":"billing"}'),), "tool_calls")
    assert call.parse(answer) == "billing"
    assert call.render("billing") == answer
    other = ToolCall("close_ticket", '{"queue":"billing"}')
    assert call.parse(Answer("", (other,), "tool_calls")) is None
    assert call.parse(Answer("", (*answer.tool_calls, other), "tool_calls")) is None


def test_it_is_read_back_from_json() -> None:
    assert AnswerFormat.model_validate_json(FENCED.model_dump_json()) == FENCED

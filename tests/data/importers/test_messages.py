"""Questions and answers in the bodies of several APIs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallfirst.data.importers.messages import Exchange, find_exchange

ASK = {"role": "user", "content": "my card is lost"}
PARTS = [{"type": "text", "text": "my card"}, {"type": "text", "text": "is lost"}]
SAID = {"choices": [{"message": {"content": "lost"}, "finish_reason": "stop"}]}
CUT_OFF = {"finish_reason": "length", "message": {"content": "lo"}}
CALL = {"message": {"content": None, "tool_calls": [{}]}}
WRITTEN = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "lost"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, {"role": "assistant", "content": "lost"}]},
        {"conversations": [{"from": "human", "value": "my card is lost"}, {"from": "gpt", "value": "lost"}]},
        {"request": {"messages": [ASK]}, "response": SAID},
        {"request": json.dumps({"messages": [ASK]}), "response": json.dumps(SAID)},
        {
            "request": {"messages": [ASK]},
            "response": {"role": "assistant", "content": [{"type": "text", "text": "lost"}]},
        },
        {"req": {"instructions": "", "input": "my card is lost"}, "res": {"output": [{"type": "reasoning"}, WRITTEN]}},
        {"input": {"messages": [ASK]}, "preferred_output": [{"role": "assistant", "content": "lost"}]},
        {"input": [ASK], "ideal": "lost"},
        {"messages": [ASK], "response": "lost"},
    ],
)
def test_an_exchange_is_found_in_any_body(row: dict[str, Any]) -> None:
    assert find_exchange(row) == Exchange("", (), "my card is lost", "lost")  # no model is named


def test_system_prompts_earlier_turns_and_the_model_are_kept() -> None:
    turns = [{"role": "developer", "content": "File it."}, {"role": "user", "content": "hello"}]
    turns += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": PARTS}]
    found = find_exchange({"request": {"model": "large-1", "messages": turns}, "response": SAID})
    assert found == Exchange("File it.", ("hello", "hi"), "my card\nis lost", "lost", "large-1")
    beside = {"request": {"system": "File it.", "messages": [ASK]}, "response": SAID}
    assert find_exchange(beside) == Exchange("File it.", (), "my card is lost", "lost")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [ASK], "response": {**SAID, "error": {"code": "expired"}}}, "it failed: expired"),
        ({"messages": [ASK], "response": {"status_code": 429, "body": {}}}, "it failed with status 429"),
        ({"messages": [ASK], "r": {"choices": [CUT_OFF]}}, "the answer was cut off: length"),
        ({"messages": [ASK], "r": {"choices": [CALL]}}, "the answer calls a tool"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "no answer of text"),
        ({"messages": [{"role": "assistant", "content": "lost"}]}, "the answer follows no question of a user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "no messages of text"),
    ],
)
def test_a_row_without_a_whole_answer_says_why(row: dict[str, Any], why: str) -> None:
    assert find_exchange(row) == why

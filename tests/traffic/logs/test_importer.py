"""Questions and answers in the bodies of several APIs, and in logs of several products."""

from typing import Any

import pytest

from smallfirst.data.importers.table import Converted
from smallfirst.data.sources.text_files import RawRow
from smallfirst.traffic.logs.importer import LOGS

ASK = {"role": "user", "content": "my card is lost"}
PARTS = [{"type": "text", "text": "my card"}, {"type": "text", "text": "is lost"}]
SAID = {"choices": [{"message": {"content": "lost"}, "finish_reason": "stop"}]}
CUT_OFF = {"finish_reason": "length", "message": {"content": "lo"}}
CALL = {"message": {"content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}}
WRITTEN = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "lost"}]}


def converted(row: dict[str, Any]) -> Converted:
    assert LOGS.recognizes(row)
    return LOGS.convert([RawRow("log.jsonl", 1, row)])


def test_system_prompts_earlier_turns_and_the_model_are_kept() -> None:
    turns = [{"role": "developer", "content": "File it."}, {"role": "user", "content": "hello"}]
    turns += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": PARTS}]
    found = converted({"request": {"model": "large-1", "messages": turns}, "response": SAID})
    assert found.table.rows == [{"text": "my card\nis lost", "answer": "lost"}]
    assert (found.about, found.model) == ("File it.", "large-1")
    beside = converted({"request": {"system": "File it.", "messages": [ASK]}, "response": SAID})
    assert (beside.about, beside.table.rows) == ("File it.", [{"text": "my card is lost", "answer": "lost"}])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [ASK], "response": {**SAID, "error": {"code": "expired"}}}, "it failed: expired"),
        ({"messages": [ASK], "response": {"status_code": 429, "body": {}}}, "it failed: status 429"),
        ({"messages": [ASK], "r": {"choices": [CUT_OFF]}}, "the answer was cut off: length"),
        ({"messages": [ASK], "r": {"choices": [CALL]}}, "the answer calls a tool"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "no answer of text"),
        ({"messages": [ASK]}, "no answer: was the content of messages stored?"),
        (
            {"messages": [{"role": "assistant", "content": "lost"}]},
            "no request with messages or a prompt: was the content of messages stored?",
        ),
        ({"request": {"messages": [ASK, WRITTEN]}, "response": SAID}, "the answer follows no question of a user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}]},
            "no messages of text",
        ),
    ],
)
def test_a_row_without_a_whole_answer_says_why(row: dict[str, Any], why: str) -> None:
    found = converted(row)
    assert ([problem.rule for problem in found.unused], found.table.rows) == ([why], [])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "my card is lost", "completion": "lost"},
        {"input": "my card is lost", "output": {"thing": "card"}},
        {"question": "is it lost", "answer": "yes", "context": "my card is lost"},
        {"input": ["a", "b"], "output": "lost"},
    ],
)
def test_a_table_is_no_log(row: dict[str, Any]) -> None:
    assert not LOGS.recognizes(row)

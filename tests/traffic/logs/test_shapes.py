"""Requests, responses, times and numbers read the same in whatever spelling a log has them."""

from datetime import UTC, datetime

import pytest
from fixtures.logs import RESPONSE

from smallfirst.traffic.logs.shapes import CHAT, moment, number, request_body, response_body, route_of
from smallfirst.traffic.wire import ModelAnswer, ToolCall, Turn, read_answer, read_prompt

CALL = {"id": "c", "type": "function", "function": {"name": "file", "arguments": '{"label": "lost"}'}}


def test_a_text_of_json_is_asked_as_it_is():
    body = request_body('{"question": "a", "n": 2}')
    assert body is not None
    assert read_prompt(CHAT, body).turns == (Turn("user", '{"question": "a", "n": 2}'),)


@pytest.mark.parametrize("given", [None, "", " ", [], {}, {"a": 1}, 3, [1, 2], [{"a": 1}]])
def test_what_asks_nothing(given):
    assert request_body(given) is None


def test_an_answer_of_json_stays_as_it_was_written():
    assert read_answer(CHAT, response_body('{"label":  "lost"}')) == ModelAnswer('{"label":  "lost"}')
    assert read_answer(CHAT, response_body({"label": "lost", "sure": True})) == ModelAnswer(
        '{"label": "lost", "sure": true}'
    )


@pytest.mark.parametrize(
    "given",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"type": "ai", "content": "", "tool_calls": [{"name": "file", "args": {"label": "lost"}, "id": "c"}]},
        [{"role": "assistant", "parts": [{"type": "tool_call", "name": "file", "arguments": {"label": "lost"}}]}],
    ],
)
def test_tool_calls(given):
    expected = ModelAnswer("", (ToolCall("file", '{"label": "lost"}'),), "tool_calls")
    assert read_answer(CHAT, response_body(given)) == expected


def test_the_route_is_told_or_guessed():
    assert route_of("https://api.example.com/v1/responses?a=1", {}, {}) == "/v1/responses"
    assert route_of("", {"input": "a"}, {"output": []}) == "/v1/responses"
    assert route_of(None, {}, {"type": "message", "content": []}) == "/v1/messages"
    assert route_of("", {"prompt": "a"}, {}) == "/v1/completions"
    assert route_of("", {"messages": []}, RESPONSE) == CHAT


@pytest.mark.parametrize("given", [
    1764201600, 1764201600.0, "1764201600", 1764201600000, "1764201600000000000", "2025-11-27T00:00:00Z",
    "2025-11-27 00:00:00.000", "2025-11-27T01:00:00+01:00", datetime(2025, 11, 27),
])  # fmt: skip
def test_one_moment_in_many_spellings(given):
    assert moment(given) == datetime(2025, 11, 27, tzinfo=UTC)


@pytest.mark.parametrize("given", [None, "", "soon", 12, True, "0001-01-01", float("nan"), float("inf")])
def test_what_is_no_moment(given):
    assert moment(given) is None


def test_numbers():
    assert [number(v) for v in (0.5, "0.5", 0, None, "", "free", -1, float("nan"), True)] == [0.5, 0.5, 0, *[None] * 6]

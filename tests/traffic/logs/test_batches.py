"""Batch files are joined by custom_id in any order; what has no counterpart is named."""

from __future__ import annotations

from fixtures.logs import ASKED, MESSAGES, RESPONSE

from smallfirst.traffic.messages import read_answer, read_prompt


def asked(id):
    return {
        "custom_id": id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": MESSAGES},
    }


def answered(id, **more):
    return {"id": "b", "custom_id": id, "response": {"status_code": 200, "body": RESPONSE}, "error": None} | more


def test_openai_batches(read_records):
    found, problems = read_records(asked("a"), answered("b"), answered("a"), asked("b"), asked("c"), answered("d"))
    assert [one.id for one in found] == ["a", "b"]
    assert read_prompt(found[0].route, found[0].request).turns == ASKED
    assert read_answer(found[0].route, found[0].response).text == "lost_card"
    assert [problem.line for problem in problems] == [5, 6]


def test_a_failed_line_of_a_batch_keeps_its_status(read_records):
    (one,), _ = read_records(
        asked("a"), answered("a", response={"status_code": 400, "body": {"error": {"message": "no"}}})
    )
    assert one.status == 400


def test_anthropic_batches(read_records):
    params = {"model": "claude", "system": "File it.", "messages": [MESSAGES[1]]}
    message = {"type": "message", "content": [{"type": "text", "text": "lost_card"}], "usage": {"input_tokens": 5}}
    result = {"custom_id": "a", "result": {"type": "succeeded", "message": message}}
    (one,), _ = read_records({"custom_id": "a", "params": params}, result)
    assert one.route == "/v1/messages"
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"

"""OpenAI's own SDK reads the answers, whole and streamed, on its routes; Anthropic's events come in their order."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from smallfirst.traffic.wire.dialects import new_id, read_answer, write_reply
from smallfirst.traffic.wire.messages import Answer, Reply, ToolCall

LABEL = Answer("Intent: lost card")
CALL = Answer("", (ToolCall("file", '{"queue": "cards"}'),), "tool_calls")


def written(route: str, answer: Answer, **body: object) -> tuple[str, bytes]:
    """Content type and body."""
    return write_reply(route, Reply(new_id(route), body, answer, 7, 2, "gpt-large", "fp_1", 1_700_000_000))


def client(route: str, answer: Answer) -> openai.OpenAI:
    """The SDK in front of a server that answers as the small model would."""

    def serve(request: httpx.Request) -> httpx.Response:
        content_type, content = written(route, answer, **json.loads(request.content))
        return httpx.Response(200, headers={"content-type": content_type}, content=content)

    return openai.OpenAI(
        api_key="-", base_url="http://small/v1", http_client=httpx.Client(transport=httpx.MockTransport(serve))
    )


@pytest.mark.parametrize("answer", [LABEL, CALL])
def test_a_chat_is_the_same_whole_and_streamed(answer):
    chat = client("chat/completions", answer).chat.completions
    whole = chat.create(model="m", messages=[])
    assert whole.id.startswith("chatcmpl-")
    assert (whole.choices[0].message.content or "") == answer.text
    assert whole.choices[0].finish_reason == answer.finish_reason
    assert whole.usage is not None
    assert whole.usage.total_tokens == 9
    chunks = list(chat.create(model="m", messages=[], stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == answer.text
    said = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.function.name for call in said if call.function and call.function.name] == [
        call.name for call in answer.tool_calls
    ]
    assert "".join(call.function.arguments or "" for call in said if call.function) == "".join(
        call.arguments for call in answer.tool_calls
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == answer.finish_reason
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = list(chat.create(model="m", messages=[], stream=True))
    assert len(plain) == len(chunks) - 1


@pytest.mark.parametrize("answer", [LABEL, CALL])
def test_a_response_is_the_same_whole_and_streamed(answer):
    responses = client("responses", answer).responses
    whole = responses.create(model="m", input="x", instructions="sort")
    assert whole.instructions == "sort"
    assert read_answer("/v1/responses", whole.model_dump()) == answer
    assert whole.output_text == answer.text
    events = list(responses.create(model="m", input="x", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert read_answer("/v1/responses", events[-1].response.model_dump()) == answer
    said = [event.delta for event in events if event.type.endswith(".delta")]
    assert said == [answer.text or answer.tool_calls[0].arguments]


def test_a_completion_is_the_same_whole_and_streamed():
    completions = client("completions", LABEL).completions
    whole = completions.create(model="m", prompt="x")
    chunks = list(completions.create(model="m", prompt="x", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text == LABEL.text
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("answer", [LABEL, CALL])
def test_a_message_is_the_same_whole_and_streamed(answer):
    whole = json.loads(written("messages", answer)[1])
    read = read_answer("/v1/messages", whole)
    assert read is not None
    assert (read.text, read.finish_reason) == (answer.text, answer.finish_reason)
    sent = written("messages", answer, stream=True)[1].decode()
    events = [piece.split("\ndata: ") for piece in sent.removesuffix("\n\n").split("\n\n")]
    kinds = [kind.removeprefix("event: ") for kind, _ in events]
    assert kinds == ["message_start", *(f"content_block_{part}" for part in ("start", "delta", "stop"))] + [
        "message_delta",
        "message_stop",
    ]
    (delta,) = (json.loads(data)["delta"] for kind, data in events if kind.endswith("content_block_delta"))
    assert delta.get("text", delta.get("partial_json")) == (answer.text or answer.tool_calls[0].arguments)

"""OpenAI's responses: read an answer, find it in a stream's events, write it whole or as events."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.traffic.wire.messages import Answer, Json, Reply, ToolCall, event, function_calls, objects

_DEFAULTS: Json = {
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "metadata": {},
}


def read_answer(response: Json) -> Answer | None:
    """Return the texts of all messages and the calls; None for a body without output."""
    if not isinstance(response.get("output"), list):
        return None
    items = objects(response["output"])
    calls = tuple(
        ToolCall(str(item.get("name")), str(item.get("arguments")))
        for item in items
        if item.get("type") == "function_call"
    )
    parts = [part for item in items if item.get("type") == "message" for part in objects(item.get("content"))]
    if refused := [part.get("refusal") for part in parts if part.get("type") == "refusal"]:
        return Answer(str(refused[0]), (), "refusal")
    text = "".join(str(part.get("text", "")) for part in parts)
    cut_off = response.get("status") == "incomplete"
    return Answer(text, calls, "length" if cut_off else "tool_calls" if calls else "stop")


def assemble(events: list[Json]) -> Json | None:
    """Return the body in the last event that holds one; None for a stream that did not end."""
    whole = [one["response"] for one in events if isinstance(one.get("response"), dict)]
    return whole[-1] if whole and whole[-1].get("status") in ("completed", "incomplete", "failed") else None


def write(reply: Reply) -> Json:
    """Return the response's body."""
    body, read, written = reply.body, reply.prompt_tokens, reply.completion_tokens
    asked: Json = {name: body.get(name) for name in ("instructions", "max_output_tokens", "user", "safety_identifier")}
    asked |= {name: body.get(name, value) for name, value in _DEFAULTS.items()}
    usage = {"input_tokens": read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": written}
    return {
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": reply.model,
        "output": _output(reply),
        "previous_response_id": None,
        **asked,
        "usage": {**usage, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written},
    }


def _output(reply: Reply) -> list[Json]:
    tail, done = reply.id.removeprefix("resp_"), {"status": "completed"}
    if reply.answer.tool_calls:
        return [
            {"id": f"fc_{tail}{i}", "type": "function_call", **done, "call_id": call["id"], **call["function"]}
            for i, call in enumerate(function_calls(reply))
        ]
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": reply.answer.text}
    return [{"id": f"msg_{tail}", "type": "message", **done, "role": "assistant", "content": [part]}]


def stream(reply: Reply, whole: Json) -> Iterator[bytes]:
    """Yield the events of the response, numbered."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[tuple[str, Json]] = [("created", {"response": begun}), ("in_progress", {"response": begun})]
    for index, item in enumerate(whole["output"]):
        place = {"output_index": index}
        of_item = {**place, "item_id": item["id"]}
        is_message = item["type"] == "message"
        empty: Json = {"content": []} if is_message else {"arguments": ""}
        events.append(("output_item.added", {**place, "item": {**item, "status": "in_progress", **empty}}))
        if is_message:
            events += _text_events({**of_item, "content_index": 0}, item["content"][0])
        else:
            said = item["arguments"]
            done = {**of_item, "arguments": said, "name": item["name"]}
            events.append(("function_call_arguments.delta", {**of_item, "delta": said}))
            events.append(("function_call_arguments.done", done))
        events.append(("output_item.done", {**place, "item": item}))
    events.append(("completed", {"response": whole}))
    for number, (kind, values) in enumerate(events):
        yield event(f"response.{kind}", **values, sequence_number=number)


def _text_events(place: Json, part: Json) -> list[tuple[str, Json]]:
    said = part["text"]
    return [
        ("content_part.added", {**place, "part": {**part, "text": ""}}),
        ("output_text.delta", {**place, "delta": said, "logprobs": []}),
        ("output_text.done", {**place, "text": said, "logprobs": []}),
        ("content_part.done", {**place, "part": part}),
    ]

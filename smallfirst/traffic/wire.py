"""Wire formats by route: what a request asks and a response answers in one form, streams put together, answers written.

OpenAI's chat completions and responses, and Anthropic's messages; completions are read. Typed questions: `questions`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from smallfirst.traffic.questions import ROUTE, DecisionRequest, Question, read_decision, read_label

Json = dict[str, Any]
_ROLES = {"developer": "system"}
_ELSEWHERE = ("previous_response_id", "conversation")
"""What of a request refers to messages that it does not hold."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    """system, user, assistant or tool."""
    text: str
    """Its text, parts joined by line breaks."""


class Prompt(NamedTuple):
    """What a request asks."""

    model: str
    turns: tuple[Turn, ...]
    """Oldest first; a separate system text or `instructions` comes first."""
    tools: str = ""
    """Tools and the choice among them as canonical JSON; empty without tools."""
    response_format: str = ""
    """The answer's required format as canonical JSON; empty for text."""
    has_media: bool = False
    """True if the model gets more than `turns` hold: images, files, or a conversation that the API has stored."""


class ToolCall(NamedTuple):
    """A function that an answer calls."""

    name: str
    arguments: str
    """JSON as the model wrote it."""


class ModelAnswer(NamedTuple):
    """What a response answers."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    """stop, length, tool_calls, content_filter or refusal."""


class Reply(NamedTuple):
    """One answer to one request, as it is to be written."""

    id: str
    body: Json
    """The request's."""
    answer: ModelAnswer
    prompt_tokens: int
    completion_tokens: int
    model: str
    """Model name that the response carries."""
    fingerprint: str
    """`system_fingerprint` of completions: it tells the small model's answers from the upstream's."""
    created: int
    """Seconds since 1970."""


def request_prompt(request: Json) -> Prompt | None:
    """Return what a request with messages, an input or a prompt asks; None for a malformed body."""
    found = _turns(request)
    if found is None or not found[0]:
        return None
    turns, has_media = found
    has_media = has_media or any(request.get(key) for key in _ELSEWHERE) or isinstance(request.get("prompt"), dict)
    chosen = {key: request[key] for key in ("tools", "tool_choice", "functions", "function_call") if request.get(key)}
    wanted = request.get("response_format") or (request.get("text") if isinstance(request.get("text"), dict) else None)
    model = request.get("model")
    return Prompt(
        model if isinstance(model, str) else "",
        tuple(turns),
        canonical(chosen) if chosen else "",
        canonical(wanted) if wanted else "",
        has_media,
    )


def _turns(request: Json) -> tuple[list[Turn], bool] | None:
    system, _ = text_of(request.get("system", request.get("instructions")))
    turns, has_media = ([Turn("system", system)] if system else []), False
    given = request.get("messages", request.get("input", request.get("prompt")))
    if isinstance(given, str):
        return [*turns, Turn("user", given)], False
    if not isinstance(given, list):
        return None
    for item in given:
        if not isinstance(item, dict):
            return None
        role = str(item.get("role", "tool"))
        text, media = text_of(item.get("content", item.get("output")))
        text += "".join(canonical(call.get("function")) for call in objects(item.get("tool_calls")))
        if item.get("type") == "function_call":
            role, text = "assistant", canonical({key: item.get(key) for key in ("name", "arguments")})
        turns.append(Turn(_ROLES.get(role, role), text))
        has_media = has_media or media
    return turns, has_media


def text_of(content: Any) -> tuple[str, bool]:
    """Return the text of a message's content, and True if there is more than text in it."""
    if content is None:
        return "", False
    if isinstance(content, str):
        return content, False
    if not isinstance(content, Sequence):
        return "", True
    kinds = ("text", "input_text", "output_text")
    own = (part for part in content if not isinstance(part, dict) or part.get("type", "text") in kinds)
    texts = [part.get("text") if isinstance(part, dict) else part for part in own]
    words = [text for text in texts if isinstance(text, str)]
    return "\n".join(words), len(words) < len(content)


def objects(items: Any) -> list[Json]:
    """Return the objects in a list; none for anything else, since a client may send any JSON."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal values, equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def compact(value: Any) -> str:
    """Return `value` as the providers write JSON: without spaces, in its own order of keys."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def data_line(value: Json) -> bytes:
    """Return a server-sent event without a name."""
    return f"data: {compact(value)}\n\n".encode()


def event(kind: str, **values: Any) -> bytes:
    """Return a server-sent event whose name is its type."""
    return f"event: {kind}\n".encode() + data_line({"type": kind, **values})


def function_calls(reply: Reply) -> list[Json]:
    """Return the calls of an answer as chat completions have them."""
    return [
        {"id": f"call_{reply.id[-20:]}{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for i, c in enumerate(reply.answer.tool_calls)
    ]


# OpenAI's chat completions; completions are read

_ONCE = frozenset({"id", "index", "name", "role", "type"})
"""Members of a piece that later pieces repeat and do not continue."""


def _read_chat(response: Json) -> ModelAnswer | None:
    """Return the first choice; None where there is none."""
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return None
    reason = str(first.get("finish_reason") or "stop")
    message = first.get("message")
    if not isinstance(message, dict):
        text = first.get("text")
        return ModelAnswer(text, (), reason) if isinstance(text, str) else None
    if message.get("refusal"):
        return ModelAnswer(str(message["refusal"]), (), "refusal")
    calls = objects([call.get("function") for call in objects(message.get("tool_calls"))])
    named = tuple(ToolCall(str(call.get("name")), str(call.get("arguments"))) for call in calls)
    return ModelAnswer(text_of(message.get("content"))[0], named, reason)


def _assemble_chat(chunks: list[Json]) -> Json:
    """Return the body that chunks amount to: their choices have deltas (chat completions) or texts (completions)."""
    whole: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for piece in chunk.pop("choices", None) or ():
            choice = choices.setdefault(piece.get("index", 0), {"index": piece.get("index", 0)})
            delta = piece.pop("delta", None)
            if delta is not None:
                _add(choice.setdefault("message", {"role": "assistant", "content": None}), delta)
            _add(choice, {key: value for key, value in piece.items() if key not in ("index", "finish_reason")})
            choice["finish_reason"] = piece.get("finish_reason") or choice.get("finish_reason")
        whole |= {key: value for key, value in chunk.items() if value is not None}
    whole["object"] = str(whole.get("object", "")).removesuffix(".chunk")
    for choice in choices.values():
        for call in choice.get("message", {}).get("tool_calls") or ():
            call.pop("index", None)
    return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _add(whole: Json, piece: Json) -> None:
    """Continue texts and lists; entries of a list with an `index` continue the entry of that index."""
    for key, value in piece.items():
        had = whole.get(key)
        if value is None or (had is not None and key in _ONCE):
            continue
        if isinstance(had, str) and isinstance(value, str):
            whole[key] = had + value
        elif isinstance(had, dict) and isinstance(value, dict):
            _add(had, value)
        elif isinstance(value, list):
            whole[key] = _continued(had if isinstance(had, list) else [], value)
        else:
            whole[key] = value


def _continued(had: list[Any], more: list[Any]) -> list[Any]:
    for entry in more:
        index = entry.get("index") if isinstance(entry, dict) else None
        found = next((one for one in had if index is not None and one.get("index") == index), None)
        if found is None:
            had.append(entry)
        else:
            _add(found, entry)
    return had


def _write_chat(reply: Reply) -> Json:
    calls = function_calls(reply)
    message: Json = {"role": "assistant", "content": None if calls else reply.answer.text}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    return {
        **_chat_head(reply, "chat.completion"),
        "choices": [choice],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
    }


def _stream_chat(reply: Reply, whole: Json) -> Iterator[bytes]:
    """Yield the chunks of a chat completion."""
    head, calls = {**_chat_head(reply, "chat.completion.chunk"), "service_tier": "default"}, function_calls(reply)
    deltas: list[Json] = [{"role": "assistant", "content": None if calls else "", "refusal": None}]
    for i, call in enumerate(calls):
        named = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{**call, "index": i, "function": named}]})
        deltas.append({"tool_calls": [{"index": i, "function": {"arguments": call["function"]["arguments"]}}]})
    deltas += [] if calls else [{"content": reply.answer.text}]
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    options = reply.body.get("stream_options")
    more = {"usage": None} if isinstance(options, dict) and options.get("include_usage") else {}
    for choice in (*({**last, "delta": delta, "finish_reason": None} for delta in deltas), last):
        yield data_line({**head, "choices": [choice], **more})
    if more:
        yield data_line({**head, "choices": [], "usage": whole["usage"]})
    yield b"data: [DONE]\n\n"


def _chat_head(reply: Reply, kind: str) -> Json:
    named = {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}
    return {**named, "system_fingerprint": reply.fingerprint}


# OpenAI's responses

_RESPONSE_DEFAULTS: Json = {
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


def _read_response(response: Json) -> ModelAnswer | None:
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
        return ModelAnswer(str(refused[0]), (), "refusal")
    text = "".join(str(part.get("text", "")) for part in parts)
    cut_off = response.get("status") == "incomplete"
    return ModelAnswer(text, calls, "length" if cut_off else "tool_calls" if calls else "stop")


def _assemble_response(events: list[Json]) -> Json | None:
    """Return the body in the last event that holds one; None for a stream that did not end."""
    whole = [one["response"] for one in events if isinstance(one.get("response"), dict)]
    return whole[-1] if whole and whole[-1].get("status") in ("completed", "incomplete", "failed") else None


def _write_response(reply: Reply) -> Json:
    body, read, written = reply.body, reply.prompt_tokens, reply.completion_tokens
    asked: Json = {name: body.get(name) for name in ("instructions", "max_output_tokens", "user", "safety_identifier")}
    asked |= {name: body.get(name, value) for name, value in _RESPONSE_DEFAULTS.items()}
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
        "output": _response_output(reply),
        "previous_response_id": None,
        **asked,
        "usage": {**usage, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written},
    }


def _response_output(reply: Reply) -> list[Json]:
    tail, done = reply.id.removeprefix("resp_"), {"status": "completed"}
    if reply.answer.tool_calls:
        return [
            {"id": f"fc_{tail}{i}", "type": "function_call", **done, "call_id": call["id"], **call["function"]}
            for i, call in enumerate(function_calls(reply))
        ]
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": reply.answer.text}
    return [{"id": f"msg_{tail}", "type": "message", **done, "role": "assistant", "content": [part]}]


def _stream_response(reply: Reply, whole: Json) -> Iterator[bytes]:
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
            events += _response_text_events({**of_item, "content_index": 0}, item["content"][0])
        else:
            said = item["arguments"]
            done = {**of_item, "arguments": said, "name": item["name"]}
            events.append(("function_call_arguments.delta", {**of_item, "delta": said}))
            events.append(("function_call_arguments.done", done))
        events.append(("output_item.done", {**place, "item": item}))
    events.append(("completed", {"response": whole}))
    for number, (kind, values) in enumerate(events):
        yield event(f"response.{kind}", **values, sequence_number=number)


def _response_text_events(place: Json, part: Json) -> list[tuple[str, Json]]:
    said = part["text"]
    return [
        ("content_part.added", {**place, "part": {**part, "text": ""}}),
        ("output_text.delta", {**place, "delta": said, "logprobs": []}),
        ("output_text.done", {**place, "text": said, "logprobs": []}),
        ("content_part.done", {**place, "part": part}),
    ]


# Anthropic's messages

_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_BLOCK_PARTS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def _read_message(response: Json) -> ModelAnswer | None:
    """Return the texts of all blocks and the calls; None for a body without content."""
    if not isinstance(response.get("content"), list):
        return None
    parts = objects(response["content"])
    calls = tuple(
        ToolCall(str(part.get("name")), compact(part.get("input"))) for part in parts if part.get("type") == "tool_use"
    )
    reason = str(response.get("stop_reason") or "end_turn")
    text = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    return ModelAnswer(text, calls, _REASONS.get(reason, reason))


def _assemble_message(events: list[Json]) -> Json:
    message: Json = {}
    blocks: dict[int, Json] = {}
    for one in events:
        kind, delta = one.get("type"), one.get("delta") or {}
        if kind == "message_start":
            message = dict(one["message"])
        elif kind == "content_block_start":
            blocks[one["index"]] = dict(one["content_block"])
        elif kind == "content_block_delta":
            block = blocks[one["index"]]
            if delta.get("type") == "input_json_delta":
                block["_json"] = block.get("_json", "") + delta["partial_json"]
            elif (part := _BLOCK_PARTS.get(delta.get("type", ""))) is not None:
                block[part] = block.get(part, "") + delta[part]
        elif kind == "message_delta":
            message |= {key: value for key, value in delta.items() if value is not None}
            message["usage"] = {**(message.get("usage") or {}), **(one.get("usage") or {})}
    for block in blocks.values():
        if (text := block.pop("_json", "")) != "":
            block["input"] = json.loads(text)
    return {**message, "content": [blocks[index] for index in sorted(blocks)]}


def _write_message(reply: Reply) -> Json:
    content: list[Json] = [
        {"type": "tool_use", "id": f"toolu_{reply.id[-20:]}{i}", "name": c.name, "input": json.loads(c.arguments)}
        for i, c in enumerate(reply.answer.tool_calls)
    ] or [{"type": "text", "text": reply.answer.text}]
    reason = {"stop": "end_turn", "tool_calls": "tool_use"}.get(reply.answer.finish_reason, reply.answer.finish_reason)
    usage = {"input_tokens": reply.prompt_tokens, "output_tokens": reply.completion_tokens}
    usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    head = {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model, "content": content}
    return {**head, "stop_reason": reason, "stop_sequence": None, "usage": usage}


def _stream_message(reply: Reply, whole: Json) -> Iterator[bytes]:
    """Yield the message's events."""
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 0}}
    yield event("message_start", message=begun)
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty: Json = {**block, "text": ""}
            delta: Json = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": reply.answer.tool_calls[index].arguments}
        yield event("content_block_start", index=index, content_block=empty)
        yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=ended, usage={"output_tokens": reply.completion_tokens})
    yield event("message_stop")


# By route


class _Dialect(NamedTuple):
    read: Callable[[Json], ModelAnswer | None]
    write: Callable[[Reply], Json]
    stream: Callable[[Reply, Json], Iterator[bytes]]
    id_prefix: str


DIALECTS = {
    "chat/completions": _Dialect(_read_chat, _write_chat, _stream_chat, "chatcmpl-"),
    "responses": _Dialect(_read_response, _write_response, _stream_response, "resp_"),
    "messages": _Dialect(_read_message, _write_message, _stream_message, "msg_"),
}
"""By the end of the path."""
_QUESTION = "question"
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")


def route_of(path: str) -> str | None:
    """Return the route of a path, such as `chat/completions`; None if a small model answers on none such."""
    return next((route for route in DIALECTS if path.endswith(f"/{route}")), None)


def read_prompt(path: str, request: Json) -> Prompt | None:
    """Return what a request asks; None on routes without messages, such as embeddings, and for a malformed body.

    A decision of one question reads as its words and its state. The model is a deployment's where the path names one.
    """
    if path == ROUTE:
        asked = read_decision(request)
        alone = asked is not None and len(asked.questions) == 1
        return question_prompt(asked.model, asked.questions[0], asked) if asked is not None and alone else None
    prompt = None if "embeddings" in path or "moderations" in path else request_prompt(request)
    named = _DEPLOYMENT.search(path)
    return prompt._replace(model=unquote(named[1])) if prompt is not None and named else prompt


def read_answer(path: str, response: Json) -> ModelAnswer | None:
    """Return what a response answers, of a decision the likeliest label; None where it holds no answer."""
    if path == ROUTE:
        label = read_label(response)
        return None if label is None else ModelAnswer(label, (), "stop" if label else "refusal")
    return DIALECTS[route_of(path) or "chat/completions"].read(response)


def read_stream(stream: bytes) -> Json | None:
    """Return the body that server-sent events amount to, whose own words say of which dialect; None for unknown ones.

    Raise ValueError, TypeError, KeyError or AttributeError if they are not what they should be.
    """
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    blocks = [[line[5:].removeprefix(" ") for line in b.split("\n") if line[:5] == "data:"] for b in text.split("\n\n")]
    events = [json.loads(data) for lines in blocks if (data := "\n".join(lines)) and data != "[DONE]"]
    first = events[0] if events else {}
    if "choices" in first:
        return _assemble_chat(events)
    if str(first.get("type")).startswith("response."):
        return _assemble_response(events)
    return _assemble_message(events) if any(one.get("type") == "message_start" for one in events) else None


def new_id(route: str) -> str:
    """Return a fresh id as the route's responses have it."""
    return DIALECTS[route].id_prefix + secrets.token_hex(14)


def write_reply(route: str, reply: Reply) -> tuple[str, bytes]:
    """Return content type and body of an answer, as a stream where the request asks for one."""
    dialect = DIALECTS[route]
    whole = dialect.write(reply)
    if reply.body.get("stream"):
        return "text/event-stream; charset=utf-8", b"".join(dialect.stream(reply, whole))
    return "application/json", compact(whole).encode()


def question_prompt(model: str, question: Question, request: DecisionRequest) -> Prompt:
    """Return one question of a decision as a prompt: the question in words, and the state.

    The response format names the question, so that no two of them are taken for one, however alike they are.
    """
    turns = (Turn("system", question.text), Turn("user", request.text))
    has_media = request.has_media or not question.is_task
    return Prompt(model, turns, "", canonical({_QUESTION: question.id}), has_media)


def question_of(response_format: str) -> str:
    """Return which typed question a prompt or a template asks, by its response format; empty for all others."""
    return response_format if response_format.startswith(f'{{"{_QUESTION}":') else ""

"""The dialects by route: read what is asked and answered, put streams together, write answers where one may."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import pydantic

from smallfirst.traffic.wire import anthropic, chat, openai_decisions, responses, systemone
from smallfirst.traffic.wire.messages import Answer, Json, Prompt, Reply, Turn, canonical, compact, request_prompt
from smallfirst.traffic.wire.questions import DecisionRequest, Question, Shape


class _Dialect(NamedTuple):
    read_answer: Callable[[Json], Answer | None]
    write: Callable[[Reply], Json]
    stream: Callable[[Reply, Json], Iterator[bytes]]
    id_prefix: str


DIALECTS = {
    "chat/completions": _Dialect(chat.read_answer, chat.write_chat, chat.stream_chat, "chatcmpl-"),
    "responses": _Dialect(responses.read_answer, responses.write, responses.stream, "resp_"),
    "completions": _Dialect(chat.read_answer, chat.write_completion, chat.stream_completion, "cmpl-"),
    "messages": _Dialect(anthropic.read_answer, anthropic.write, anthropic.stream, "msg_"),
}
"""By the end of the path; `chat/completions` ends in `completions`, too, and comes before it."""
DECISIONS: dict[str, Shape] = {openai_decisions.ROUTE: openai_decisions, systemone.ROUTE: systemone}
"""Shapes of typed questions by path."""
_QUESTION = "question"


def route_of(path: str) -> str | None:
    """Return the route of a path, such as `chat/completions`; None if a small model answers on none such."""
    return next((route for route in DIALECTS if path.endswith(f"/{route}")), None)


def read_prompt(path: str, request: Json) -> Prompt | None:
    """Return what a request asks; None on routes without messages, such as embeddings, and for a malformed body.

    A decision of one question reads as its words and its state.
    """
    if path in DECISIONS:
        asked = read_decision(path, request)
        alone = asked is not None and len(asked.questions) == 1
        return question_prompt(asked.model, asked.questions[0], asked) if asked is not None and alone else None
    return None if "embeddings" in path or "moderations" in path else request_prompt(request)


def read_answer(path: str, response: Json) -> Answer | None:
    """Return what a response answers, of a decision the likeliest label; None where it holds no answer."""
    if path in DECISIONS:
        label = read_label(path, response)
        return None if label is None else Answer(label, (), "stop" if label else "refusal")
    return DIALECTS[route_of(path) or "chat/completions"].read_answer(response)


def read_stream(stream: bytes) -> Json | None:
    """Return the body that server-sent events amount to, whose own words say of which dialect; None for unknown ones.

    Raise ValueError, TypeError, KeyError or AttributeError if they are not what they should be.
    """
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    blocks = [[line[5:].removeprefix(" ") for line in b.split("\n") if line[:5] == "data:"] for b in text.split("\n\n")]
    events = [json.loads(data) for lines in blocks if (data := "\n".join(lines)) and data != "[DONE]"]
    first = events[0] if events else {}
    if "choices" in first:
        return chat.assemble(events)
    if str(first.get("type")).startswith("response."):
        return responses.assemble(events)
    return anthropic.assemble(events) if any(one.get("type") == "message_start" for one in events) else None


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


# Typed questions


def read_decision(path: str, body: Json) -> DecisionRequest | None:
    """Return the request's questions; None on another route, and for a malformed body."""
    try:
        return DECISIONS[path].read_request(body) if path in DECISIONS else None
    except pydantic.ValidationError:
        return None


def read_label(path: str, response: Json) -> str | None:
    """Return the likeliest label of a response's only answer, empty for a refusal; None if it has not exactly one."""
    answers = response.get("answers")
    given = list(answers.values()) if isinstance(answers, dict) else answers
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        return None
    try:
        return "" if given[0].get("type") == "refusal" else DECISIONS[path].read_label(given[0])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


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


# Whether an answer of one's own can stand for the upstream's

_COMMON = frozenset(
    [
        "model",
        "stream",
        "temperature",
        "top_p",
        "user",
        "metadata",
        "tools",
        "tool_choice",
        "store",
        "seed",
        "parallel_tool_calls",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "stream_options",
        "stop",
        "n",
    ]
)
_CHAT = "messages max_tokens max_completion_tokens response_format reasoning_effort verbosity presence_penalty"
_COMPLETIONS = "prompt max_tokens presence_penalty frequency_penalty logprobs echo best_of"
_KNOWN = {
    "chat/completions": _COMMON.union(f"{_CHAT} frequency_penalty logprobs functions prompt_cache_retention".split()),
    "responses": _COMMON.union(
        ["input", "instructions", "max_output_tokens", "text", "reasoning", "truncation", "include"]
    ),
    "completions": _COMMON.union(_COMPLETIONS.split()),
    "messages": _COMMON.union(["messages", "system", "max_tokens", "top_k", "stop_sequences"]),
}
"""Settings of each route that do not change what a task's answer is."""
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "echo": (None, False),
    "store": (None, False),
    "include": (None, []),
}
"""Values of settings that ask for nothing more than the answer: no second one, no probabilities, nothing kept."""
_LIKELIEST = {"temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""The providers' own values; a client that sets a higher one asks for another answer than the likeliest."""
_BYTES_PER_TOKEN = 3
"""Fewest bytes of an answer that a token is taken to cover."""


def why_not(route: str, body: Json, answer: Answer | None = None, *, closed: bool = False) -> str:
    """Return why `answer`, if it is known already, cannot stand for the upstream's, in a clause; empty if it can.

    `closed`: it is one of the task's labels, which is chosen and not written, whatever settings of sampling there are.
    """
    for name, value in body.items():
        if name not in _KNOWN[route] and value is not None:
            return f"it sets {name}"
        sampled = not closed and isinstance(value, int | float) and value > _LIKELIEST.get(name, value)
        if sampled or (name in _DEFAULTS and value not in _DEFAULTS[name]):
            return f"it asks for {name}: {value}"
    if answer is None:
        return ""
    called = [call.name for call in answer.tool_calls]
    if wrong := _wrong_tools(body.get("tool_choice"), called):
        return wrong
    written = answer.text + "".join(call.arguments for call in answer.tool_calls)
    stop = body.get("stop") or body.get("stop_sequences") or ()
    if any(text in written for text in ([stop] if isinstance(stop, str) else stop)):
        return "a stop sequence is in the answer"
    most = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limits = [limit for limit in most if isinstance(limit, int)]
    if limits and len(written.encode()) > _BYTES_PER_TOKEN * min(limits):
        return "the answer may be longer than the request allows"
    return ""


def _wrong_tools(choice: Any, called: Collection[str]) -> str:
    """Return how an answer breaks a request's `tool_choice`, OpenAI's or Anthropic's; empty if it does not."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none":
        return "it forbids tools, and the answer calls one" if called else ""
    if kind in (None, "auto", "allowed_tools"):
        return ""
    named = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else None
    if not called or (named is not None and named not in called):
        return f"it asks for a call of {named or 'a tool'}"
    return ""

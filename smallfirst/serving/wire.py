"""OpenAI's chats and completions on the wire: JSON in, a Request; a Completion, and JSON and chunks out.

The JSON is bounded before anything is built from it; each value is visited once, without recursion. Some of OpenAI's
parameters are read, some are ignored as they have no effect on a narrow model, and some are refused by name. Any other
name is taken for a spelling mistake and refused with a suggestion. A response has a `smallfirst` object beside OpenAI's
keys.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import pydantic
import pydantic_core
from pydantic import Field
from pydantic_core import PydanticCustomError

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.data.dataset import Message
from smallfirst.models.protocol import MAX_LOGPROBS, Completion, Request, ResponseFormat, Token
from smallfirst.serving.errors import ApiError, place_of, validation_error
from smallfirst.serving.function_calls import message_of, read_conversation

MAX_DEPTH = 64
"""Objects and lists inside one another."""
MAX_KEYS = 1_024
"""Names in one object."""
MAX_KEY_CHARACTERS = 256
MAX_ELEMENTS = 50_000
"""Values in all."""
MAX_INTEGER_BITS = 64
"""Bits of an integer; nothing here counts further."""
MAX_SCHEMA_OBJECTS = 1_000
"""Objects in a schema: checking one against the rules of JSON Schema takes a quarter of a millisecond."""
MAX_SCHEMA_BYTES = 32 * 1024

MAX_TOKENS = 32_768
MAX_PARTS = 1_024
"""Parts of all messages of a chat together."""
_IGNORED_IN_MESSAGE = frozenset(("name", "refusal", "annotations", "reasoning_content"))
"""Fields of a message that no model here reads; clients send them when they send an answer back."""

CHAT_IGNORED = frozenset(
    {
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "top_p",
        "store",
        "parallel_tool_calls",
        "service_tier",
        "reasoning_effort",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "verbosity",
    }
)
"""Parameters of a chat that are accepted and have no effect."""
COMPLETION_IGNORED = frozenset({"frequency_penalty", "presence_penalty", "logit_bias", "top_p"})

Refused = Mapping[str, tuple[str, tuple[Any, ...]]]
"""By name: the reason, and the values that have no effect and are accepted."""

_ONE = "a request has one answer; send it again for another one"
_NO_TOOLS = "models here answer in text and call no tools"
CHAT_REFUSED: Refused = {
    "n": (_ONE, (1,)),
    "tools": (_NO_TOOLS, ([],)),
    "tool_choice": (_NO_TOOLS, ("none", "auto")),
    "functions": (_NO_TOOLS, ([],)),
    "function_call": (_NO_TOOLS, ("none", "auto")),
    "modalities": (_NO_TOOLS, (["text"],)),
    "audio": (_NO_TOOLS, ()),
    "prediction": ("there is no predicted output here", ()),
    "moderation": ("nothing is moderated here", ()),
    "web_search_options": ("nothing is fetched from the web", ({},)),
}
COMPLETION_REFUSED: Refused = {
    "echo": ("the prompt is not repeated", (False,)),
    "suffix": ("text is continued, not filled in", ()),
    "best_of": (_ONE, (1,)),
    "n": (_ONE, (1,)),
}
MAX_VALUE = 900
"""Characters of a header's value; what is longer ends in `...`, and is whole in the body."""
_CUT, _SAFE = "...", "/@:+ ,=();"
_HALF_ESCAPE = re.compile("%.?$")
_PLAIN = re.compile(r"(?! )[A-Za-z0-9_.~/@:+ ,=();-]{1,900}(?<! )")
"""What stands as it is, without looking at each character."""

_Place = tuple[Any, ...]
"""(parent place, key or index), or empty for the root."""


class ParsedRequest(NamedTuple):
    """A parsed body: the model, the request, and how to send the answer."""

    model: str
    request: Request
    stream: bool = False
    include_usage: bool = False
    places: bool = False  # of the values, in the answer itself


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Return the body as a JSON object. Raise ApiError 400 if it is none, or larger than the limits of `check_json`."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    check_json(value)
    return value


def has_text(text: str) -> bool:
    """Return True if there is something to read in `text`: more than spaces and characters without a shape."""
    return any(character.isprintable() and not character.isspace() for character in text)


def check_json(value: Any) -> int:
    """Return the number of objects in parsed JSON. Raise ApiError 400, naming the place, beyond the limits."""
    waiting: list[tuple[Any, int, _Place]] = [([value], 0, ())]
    n_elements = n_objects = 0
    while waiting:
        held, depth, place = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_large(place, f"nested more than {MAX_DEPTH} deep")
        n_elements += len(held)
        if n_elements > MAX_ELEMENTS + 1:
            raise _too_large((), f"more than {MAX_ELEMENTS:,} values in all")
        if isinstance(held, dict):
            n_objects += 1
            _check_names(held, place)
        for key, inner in held.items() if isinstance(held, dict) else enumerate(held):
            kind = type(inner)
            if kind is dict or kind is list:
                waiting.append((inner, depth + 1, (place, key) if depth else ()))
            elif kind is int and inner.bit_length() > MAX_INTEGER_BITS:
                raise _too_large((place, key), f"an integer of more than {MAX_INTEGER_BITS} bits")
            elif kind is float and not math.isfinite(inner):
                raise _too_large((place, key), "a number that is too large")
    return n_objects


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ApiError 400, with everything wrong in it, for a schema that no answer can be held to.

    It takes up to a quarter of a second, so call it in a thread; results of recent schemas are cached.
    """
    n_objects = check_json(schema)
    written = pydantic_core.to_json(schema)
    if len(written) > MAX_SCHEMA_BYTES:
        problems = f"{len(written):,} bytes as JSON; at most {MAX_SCHEMA_BYTES:,} are allowed"
    elif n_objects > MAX_SCHEMA_OBJECTS:
        problems = f"{n_objects:,} objects; at most {MAX_SCHEMA_OBJECTS:,} are allowed"
    else:
        problems = _schema_problems(written)
    if problems:
        place = "response_format.json_schema.schema"
        raise ApiError(400, f"{place}: {problems}.", param=place, code="invalid_schema")


@lru_cache(maxsize=256)
def _schema_problems(schema: bytes) -> str:
    """Return what is wrong with a schema in one line of at most 2 KB; empty if it is valid."""
    # Imported here since it loads jsonschema, which few servers need.
    from smallfirst.tasks.json.schema import check_schema as check

    try:
        check(pydantic_core.from_json(schema))
    except ConfigError as error:
        lines = [line.strip() for line in str(error.args[0]).splitlines()[1:]]
        return "; ".join(lines)[:2_000]
    return ""


def _check_names(held: Mapping[str, Any], place: _Place) -> None:
    if len(held) > MAX_KEYS:
        raise _too_large(place, f"more than {MAX_KEYS:,} names in one object")
    if max(map(len, held), default=0) > MAX_KEY_CHARACTERS:
        raise _too_large(place, f"a name of more than {MAX_KEY_CHARACTERS} characters")


def _too_large(place: _Place, rule: str) -> ApiError:
    keys: list[Any] = []
    while place:
        place, key = place
        keys.insert(0, key)
    where = place_of(tuple(keys[:8]))
    return ApiError(400, f"{where or 'The body'}: {rule}.", param=where or None, code="json_too_large")


class _StrictBody(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class _ChatTurn(_StrictBody):
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None and v != [] and k not in _IGNORED_IN_MESSAGE}

    @pydantic.field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        parts = [p for p in value if isinstance(p, dict) and p.get("type") == "text"]
        texts = [p["text"] for p in parts if isinstance(p.get("text"), str)]
        if len(texts) < len(value):
            raise PydanticCustomError("parts", "only parts of the form {type: text, text: …} are accepted")
        return "\n".join(texts)


class _StreamOptions(_StrictBody):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Schema(_StrictBody):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    json_schema: dict[str, Any] = Field(default={}, alias="schema")
    strict: bool | None = None
    description: str | None = Field(default=None, max_length=4096)


class _Form(_StrictBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    @pydantic.model_validator(mode="after")
    def _has_its_schema(self) -> _Form:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("schema", "json_schema comes with the type json_schema, and only with it")
        return self

    def as_format(self) -> ResponseFormat | None:
        if self.type == "text":
            return None
        given = self.json_schema
        if given is None:
            return ResponseFormat(kind="json_object")
        return ResponseFormat(
            kind="json_schema", name=given.name, json_schema=given.json_schema, strict=bool(given.strict)
        )


_TagName = Annotated[str, Field(min_length=1, max_length=64)]
_TagValue = Annotated[str, Field(max_length=512)]
_Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class _Common(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore", strict=True)
    model: str = Field(min_length=1, max_length=256)
    max_tokens: _Tokens | None = None
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[str] = Field(default=[], max_length=4)
    user: _TagValue | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    smallfirst: dict[Literal["places"], bool] = {}

    @pydantic.field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and any(t == "" or len(str(t)) > 256 for t in texts):
            raise PydanticCustomError("stop", "each stop text must have 1 to 256 characters")
        return texts

    @pydantic.model_validator(mode="after")
    def _streams(self) -> _Common:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options is only allowed when stream is true")
        return self

    def parsed(self, request: Request) -> ParsedRequest:
        asked = next(turn.content for turn in reversed(request.messages) if turn.role == "user")
        if not has_text(asked):
            param = "messages" if isinstance(self, ChatBody) else "prompt"
            raise ApiError(400, "The text to answer is empty.", param=param, code="empty_text")
        usage, places = (self.stream_options or _StreamOptions()).include_usage, self.smallfirst.get("places", False)
        return ParsedRequest(self.model, request, self.stream, usage, places)


class ChatBody(_Common):
    """The body of a chat."""

    messages: list[_ChatTurn] = Field(min_length=1)
    max_completion_tokens: _Tokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    response_format: _Form | None = None
    metadata: dict[_TagName, _TagValue] = Field(default={}, max_length=16)

    @pydantic.model_validator(mode="after")
    def _logprobs_first(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs is only allowed when logprobs is true")
        return self

    def to_request(self) -> Request:
        """Return the Request for a Model; `developer` is the newer name of the role `system`."""
        tokens = self.max_completion_tokens or self.max_tokens
        turns = [Message(role="system" if m.role == "developer" else m.role, content=m.content) for m in self.messages]
        if all(turn.role != "user" for turn in turns):  # only instructions: the last one is the question
            turns[-1] = Message(role="user", content=turns[-1].content)
        return Request(
            messages=tuple(turns),
            temperature=self.temperature,
            seed=self.seed,
            stop=tuple(self.stop),
            tags={**self.metadata, **({} if self.user is None else {"user": self.user})},
            response_format=self.response_format.as_format() if self.response_format else None,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            **({} if tokens is None else {"max_tokens": tokens}),
        )


class CompletionBody(_Common):
    """The body of a completion, with OpenAI's bounds and its 16 tokens by default."""

    prompt: str
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @pydantic.field_validator("prompt", mode="before")
    @classmethod
    def _of_one(cls, value: object) -> object:
        if isinstance(value, list):
            if len(value) != 1 or not isinstance(value[0], str):
                raise PydanticCustomError("prompt", "one prompt a request, as a text; token ids are not accepted")
            return value[0]
        return value

    def to_request(self) -> Request:
        """Return the prompt as a user message: a model here adds its task's prompt."""
        return Request(
            messages=(Message(role="user", content=self.prompt),),
            max_tokens=self.max_tokens or 16,
            temperature=self.temperature,
            seed=self.seed,
            stop=tuple(self.stop),
            tags={} if self.user is None else {"user": self.user},
            logprobs=self.logprobs,
        )


B = TypeVar("B", bound=pydantic.BaseModel)


def parse_chat(body: bytes, *, max_messages: int) -> ParsedRequest:
    """Parse the body of a chat. Raise ApiError 400 naming the field at fault."""
    values = read_fields(body)
    messages = values.get("messages")
    turns = messages if isinstance(messages, list) else []
    n_parts = sum(len(t["content"]) for t in turns if isinstance(t, dict) and isinstance(t.get("content"), list))
    for n, most, what in ((len(turns), max_messages, "messages"), (n_parts, MAX_PARTS, "parts in messages")):
        if n > most:
            raise ApiError(400, f"{n} {what}; at most {most} are allowed.", param="messages")
    tools = ""
    if values.get("tools"):
        values, tools = read_conversation(values)
    parsed = parse_body(ChatBody, values, CHAT_IGNORED, CHAT_REFUSED)
    if parsed.messages[-1].role == "assistant":
        raise ApiError(400, "The last message is the one to answer, so it cannot be the assistant's.", param="messages")
    return parsed.parsed(parsed.to_request().model_copy(update={"tools": tools}))


def parse_completion(body: bytes) -> ParsedRequest:
    """Parse the body of a completion. Raise ApiError 400 naming the field at fault."""
    parsed = parse_body(CompletionBody, read_fields(body), COMPLETION_IGNORED, COMPLETION_REFUSED)
    return parsed.parsed(parsed.to_request())


def read_fields(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON body that are not null. Raise ApiError 400 if it is no object or too large."""
    return {name: value for name, value in parse_json_object(body).items() if value is not None}


def parse_body(kind: type[B], values: Mapping[str, object], ignored: frozenset[str], refused: Refused) -> B:
    """Return the body. Raise ApiError 400 for a parameter that is unknown, refused or has no fitting value."""
    known = [*kind.model_fields, *ignored, *refused]
    for name, value in values.items():
        if name in refused:
            why, harmless = refused[name]
            # By type as well, because 1 equals True.
            if not any(type(value) is type(one) and value == one for one in harmless):
                raise ApiError(400, f'"{name}" is not supported here: {why}.', param=name, code="unsupported_parameter")
        elif name not in known:
            shown = name[:64]
            near = did_you_mean(shown, known) or "."
            raise ApiError(400, f'Unknown parameter: "{shown}"{near}', param=shown, code="unknown_parameter")
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise validation_error(error) from None


class ResponseBuilder(NamedTuple):
    """Builds the parts of one response."""

    id: str
    """`chatcmpl-…` or `cmpl-…`, also the id of the ledger row."""
    created: int
    served_name: str
    form: Literal["chat", "text"] = "chat"
    calls: bool = False
    """True for an answer to a request with tools, whose text may be a call."""

    def whole(self, answer: Completion) -> dict[str, Any]:
        """Return the response to a request that is not streamed."""
        return {
            **self._head("chat.completion" if self.form == "chat" else "text_completion"),
            "system_fingerprint": system_fingerprint(answer.answered_by),
            "choices": [self._choice(answer)],
            "usage": usage(answer),
            "smallfirst": self.explanation(answer),
        }

    def opening(self, *, include_usage: bool) -> dict[str, Any]:
        """Return the first chunk of a chat, which carries the role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk({"delta": delta, "logprobs": None}, None, include_usage)

    def piece(self, text: str, tokens: Sequence[Token] = (), *, include_usage: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": text}} if self.form == "chat" else {"text": text}
        return self._chunk({**said, "logprobs": self._logprobs(tokens)}, None, include_usage)

    def last(self, answer: Completion, *, include_usage: bool) -> dict[str, Any]:
        """Return the last chunk of the answer, with the `smallfirst` object."""
        refusal: dict[str, Any] = {"refusal": answer.text} if answer.refusal else {}
        ended: str = answer.finish_reason
        if self.calls:
            refusal, ended = self._delta(answer)
        said: dict[str, Any] = {"delta": refusal} if self.form == "chat" else {"text": refusal.get("refusal", "")}
        chunk = self._chunk({**said, "logprobs": None}, ended, include_usage)
        chunk["system_fingerprint"] = system_fingerprint(answer.answered_by)
        chunk["smallfirst"] = self.explanation(answer)
        return chunk

    def usage_chunk(self, answer: Completion) -> dict[str, Any]:
        """Return the chunk of usage that ends a stream if the client asked for it."""
        head = {**self._head(self._chunk_kind), "system_fingerprint": system_fingerprint(answer.answered_by)}
        return {**head, "choices": [], "usage": usage(answer)}

    def explanation(self, completion: Completion) -> dict[str, Any]:
        route = completion.route
        return {
            "route": self.stage(completion),
            "why": route.why if route else None,
            "certified": certified(completion),
            "certified_fields": list(fields) if route and (fields := route.certified_fields) is not None else None,
            "confidence": confidence(completion),
            "read": {
                path: place and place.model_dump(exclude_defaults=True) for path, place in completion.read.items()
            },
            "threshold": route.threshold if route else None,
            **({"language": route.language} if route and route.language else {}),
            "task": (route.task or None) if route else None,
            "guarantee": (route.guarantee or None) if route else None,
            "steps": [step.model_dump(exclude_defaults=True) for step in route.trail] if route else [],
            "cost_usd": completion.cost_usd,
            "charges": [line.model_dump(mode="json", exclude_defaults=True) for line in completion.charges],
            "latency_ms": completion.latency_ms,
            "answered_by": completion.answered_by,
            "alternatives": [
                {"label": label, "probability": probability} for label, probability in completion.alternatives
            ],
        }

    def stage(self, completion: Completion) -> str:
        """Return the Router's stage that answered; the served name where no Router chose."""
        return completion.route.stage if completion.route else self.served_name

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served_name}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.form == "chat" else "text_completion"

    def _delta(self, answer: Completion) -> tuple[dict[str, Any], str]:
        message, ended = message_of(answer, self.id)
        calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls", ()))]
        given = {name: value for name, value in message.items() if value is not None}
        return given | ({"tool_calls": calls} if calls else {}), ended

    def _choice(self, answer: Completion) -> dict[str, Any]:
        if self.calls:
            made, ended = message_of(answer, self.id)
            whole = {"role": "assistant", **made, "annotations": []}
            return {"index": 0, "message": whole, "logprobs": None, "finish_reason": ended}
        text, refusal = (None, answer.text) if answer.refusal else (answer.text, None)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": refusal, "annotations": []}
        said: dict[str, Any] = {"message": message} if self.form == "chat" else {"text": answer.text}
        logprobs = self._logprobs(answer.tokens)
        return {"index": 0, **said, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def _chunk(self, said: dict[str, Any], finish_reason: str | None, include_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, **said, "finish_reason": finish_reason}
        chunk = {**self._head(self._chunk_kind), "system_fingerprint": None, "choices": [choice]}
        return {**chunk, "usage": None} if include_usage else chunk

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self.form == "chat":
            content = [
                {**_token(t.text, t.logprob, t.octets), "top_logprobs": [_token(*o) for o in t.top]} for t in tokens
            ]
            return {"content": content, "refusal": None}
        offsets = [0, *accumulate(len(token.text) for token in tokens)][:-1]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets,
        }


def _token(text: str, logprob: float, octets: Sequence[int] = ()) -> dict[str, Any]:
    # JSON has no infinity; OpenAI writes -9999 for an impossible token.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(octets or text.encode())}


def confidence(completion: Completion) -> float | None:
    """Return the confidence that the route was chosen by, or the model's own where no Router chose."""
    return completion.route.confidence if completion.route else completion.confidence


def certified(completion: Completion) -> bool:
    """Return True if a Router's certificate covers this answer."""
    return completion.route is not None and completion.route.certified


def usage(answer: Completion) -> dict[str, Any]:
    """Return OpenAI's `usage` object."""
    cached = {"prompt_tokens_details": {"cached_tokens": answer.cached_tokens}} if answer.cached_tokens else {}
    return {
        **cached,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


@lru_cache(maxsize=256)
def system_fingerprint(answered_by: str) -> str:
    """Return `fp_` and ten hex digits that change when another model answers."""
    return f"fp_{hashlib.sha256(answered_by.encode()).hexdigest()[:10]}"


def model_entry(name: str, created: int, description: str = "") -> dict[str, Any]:
    """Return one entry of /v1/models; `description` says who answers and what is promised, where that is known."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": "smallfirst"}
    return entry | ({"description": description} if description else {})


def sse_event(value: dict[str, Any] | str) -> bytes:
    """Return one server-sent event, in ASCII because some clients split lines at a bare U+2028 as well."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


def header_value(text: str) -> str:
    """Return any text as the value of a header: ASCII without control characters or white space at its ends.

    `urllib.parse.unquote` gives the text back, up to white space at its ends and to MAX_VALUE.
    """
    if _PLAIN.fullmatch(text):
        return text
    whole = quote(text, safe=_SAFE, errors="replace").strip(" ")
    if len(whole) <= MAX_VALUE:
        return whole
    kept = _HALF_ESCAPE.sub("", whole[: MAX_VALUE - len(_CUT)])
    return quote(unquote(kept, errors="ignore"), safe=_SAFE) + _CUT


def raw_headers(values: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI takes them, each value by `header_value`."""
    return [(name.encode("ascii"), header_value(text).encode("ascii")) for name, text in values.items()]

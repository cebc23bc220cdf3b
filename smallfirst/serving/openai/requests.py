"""Parse the bodies of chats and completions into Requests, one per prompt.

Some of OpenAI's parameters are read, some are ignored as they have no effect on a narrow model, and some are refused by
name. Any other name is taken for a spelling mistake and refused with a suggestion.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from smallfirst.data.dataset import Message
from smallfirst.errors import did_you_mean
from smallfirst.models.protocol import MAX_LOGPROBS, Request, ResponseFormat
from smallfirst.serving.openai.errors import ApiError, validation_error
from smallfirst.serving.openai.json_limits import parse_json_object

MAX_CHOICES = 8
"""Answers to one prompt at most (`n`)."""
MAX_PROMPTS = 64
"""Prompts of one completion at most."""
MAX_TOKENS = 32_768
MAX_PARTS = 1_024
"""Parts of all messages of a chat together."""
MAX_BIASES = 300
_DEFAULT_COMPLETION_TOKENS = 16
"""`max_tokens` of a completion if the client sends none, as at OpenAI."""
_MAX_COMPLETION_LOGPROBS = 5
"""Most alternatives for each token of a completion, as at OpenAI."""
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
EMBEDDING_IGNORED = frozenset({"user"})

Refused = Mapping[str, tuple[str, tuple[Any, ...]]]
"""By name: the reason, and the values that have no effect and are accepted."""

_NO_TOOLS = "models here answer in text and call no tools"
_NO_AUDIO = "models here answer in text"
CHAT_REFUSED: Refused = {
    "tools": (_NO_TOOLS, ([],)),
    "tool_choice": (_NO_TOOLS, ("none", "auto")),
    "functions": (_NO_TOOLS, ([],)),
    "function_call": (_NO_TOOLS, ("none", "auto")),
    "modalities": (_NO_AUDIO, (["text"],)),
    "audio": (_NO_AUDIO, ()),
    "prediction": ("there is no predicted output here", ()),
    "moderation": ("nothing is moderated here", ()),
    "web_search_options": ("nothing is fetched from the web", ({},)),
}
COMPLETION_REFUSED: Refused = {
    "echo": ("the prompt is not repeated", (False,)),
    "suffix": ("text is continued, not filled in", ()),
    "best_of": ("every generated answer is returned", (1,)),
}
EMBEDDING_REFUSED: Refused = {"dimensions": ("the vectors of a model have a fixed length", ())}


class ParsedRequest(NamedTuple):
    """A parsed body: the model, its requests, and how to send the answer."""

    model: str
    requests: tuple[Request, ...]
    """One per prompt; a chat has one."""
    n: int = 1
    stream: bool = False
    include_usage: bool = False

    @property
    def n_draws(self) -> int:
        return len(self.requests) * (self.n if self.requests[0].temperature > 0 else 1)

    def draws(self) -> tuple[Request, ...]:
        """Return the requests to ask, grouped by prompt: `n` with a seed each, or one if all answers would be equal."""
        if self.n == 1:
            return self.requests
        return tuple(
            request if request.temperature == 0 else request.model_copy(update={"seed": _seed(request, i)})
            for request in self.requests
            for i in range(self.n if request.temperature > 0 else 1)
        )


def _seed(request: Request, i: int) -> int:
    return random.getrandbits(31) if request.seed is None else (request.seed + i) % 2**31


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class _Turn(_Strict):
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


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Schema(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    json_schema: dict[str, Any] = Field(default={}, alias="schema")
    strict: bool | None = None
    description: str | None = Field(default=None, max_length=4096)


class _Form(_Strict):
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
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[str] = Field(default=[], max_length=4)
    user: _TagValue | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None

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

    def parsed(self, *requests: Request) -> ParsedRequest:
        options = self.stream_options or _StreamOptions()
        return ParsedRequest(self.model, requests, self.n, self.stream, options.include_usage)


class ChatBody(_Common):
    """The body of a chat."""

    messages: list[_Turn] = Field(min_length=1)
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
    """The body of a completion."""

    prompt: list[str] = Field(min_length=1, max_length=MAX_PROMPTS)
    logprobs: int | None = Field(default=None, ge=0, le=_MAX_COMPLETION_LOGPROBS)

    @pydantic.field_validator("prompt", mode="before")
    @classmethod
    def _as_prompts(cls, value: object) -> object:
        if isinstance(value, list) and value and not isinstance(value[0], str):
            raise PydanticCustomError("prompt", "prompts must be texts; token ids of another model are not accepted")
        return [value] if isinstance(value, str) else value

    def to_requests(self) -> tuple[Request, ...]:
        """Return a Request for each prompt, as a user message: a model here adds its task's prompt."""
        rest: dict[str, Any] = {
            "max_tokens": self.max_tokens or _DEFAULT_COMPLETION_TOKENS,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": tuple(self.stop),
            "tags": {} if self.user is None else {"user": self.user},
            "logprobs": self.logprobs,
        }
        return tuple(Request(messages=(Message(role="user", content=text),), **rest) for text in self.prompt)


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
    parsed = parse_body(ChatBody, values, CHAT_IGNORED, CHAT_REFUSED)
    if parsed.messages[-1].role == "assistant":
        raise ApiError(400, "The last message is the one to answer, so it cannot be the assistant's.", param="messages")
    return parsed.parsed(parsed.to_request())


def parse_completion(body: bytes) -> ParsedRequest:
    """Parse the body of a completion. Raise ApiError 400 naming the field at fault."""
    parsed = parse_body(CompletionBody, read_fields(body), COMPLETION_IGNORED, COMPLETION_REFUSED)
    return parsed.parsed(*parsed.to_requests())


def read_fields(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON body that are not null. Raise ApiError 400 if it is no object or too large."""
    values = parse_json_object(body)
    bias = values.get("logit_bias")  # the one list that no model of a body reads, and so checks
    if isinstance(bias, dict) and len(bias) > MAX_BIASES:
        raise ApiError(400, f"logit_bias: {len(bias)} entries; at most {MAX_BIASES} are allowed.", param="logit_bias")
    return {name: value for name, value in values.items() if value is not None}


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

"""OpenAI's wire format: a body becomes a Request, a Completion becomes a body. No sockets here.

Of OpenAI's parameters some are read, some have no effect on a narrow model and are ignored
(IGNORED), and some would change what the answer means and are refused by name (REFUSED). A name
outside these lists is a spelling mistake: it is refused with a suggestion. The price: a parameter
that OpenAI adds tomorrow is refused until it is listed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import pydantic_core
from pydantic import Field
from pydantic_core import PydanticCustomError

from smallfirst.data.dataset import Message
from smallfirst.errors import did_you_mean
from smallfirst.models.model import Request

IGNORED = frozenset(
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
"""OpenAI's parameters that are accepted and have no effect."""

_NO_TOOLS = "models here answer in text and call no tools"
_NO_AUDIO = "models here answer in text"
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "tools": (_NO_TOOLS, ([],)),
    "tool_choice": (_NO_TOOLS, ("none", "auto")),
    "functions": (_NO_TOOLS, ([],)),
    "function_call": (_NO_TOOLS, ("none", "auto")),
    "n": ("one answer is given for each request", (1,)),
    "response_format": ("only text is returned", ({"type": "text"},)),
    "logprobs": ("read `smallfirst.confidence` and `alternatives` instead", (False,)),
    "top_logprobs": ("read `smallfirst.confidence` and `alternatives` instead", (0,)),
    "modalities": (_NO_AUDIO, (["text"],)),
    "audio": (_NO_AUDIO, ()),
    "prediction": ("there is no predicted output here", ()),
    "moderation": ("nothing is moderated here", ()),
    "web_search_options": ("nothing is fetched from the web", ({},)),
}
"""OpenAI's parameters that are refused: why, and which values ask for nothing and may come."""

_SILENT_IN_MESSAGE = frozenset(("name", "refusal", "annotations", "reasoning_content"))
"""Fields of a message that carry nothing a model here reads (clients send answers back whole)."""


class WireError(Exception):
    """A refusal in the form OpenAI's clients understand."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """`kind` is OpenAI's `error.type`; `param` the field at fault."""
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.code = code
        self.headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}


class ChatCall(NamedTuple):
    """A parsed body: which model is asked what, and how the answer is to be sent."""

    model: str
    request: Request
    stream: bool
    include_usage: bool


class _Turn(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_silent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        kept = {k: v for k, v in value.items() if v is not None and v != []}
        return {k: v for k, v in kept.items() if k not in _SILENT_IN_MESSAGE}

    @pydantic.field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        parts = [p for p in value if isinstance(p, dict) and p.get("type") == "text"]
        texts = [p["text"] for p in parts if isinstance(p.get("text"), str)]
        if len(texts) < len(value):
            raise PydanticCustomError("parts", "only parts of the form {type: text, text: …} are accepted")
        return "\n".join(texts)


class _StreamOptions(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


_TagName = Annotated[str, Field(min_length=1, max_length=64)]
_TagValue = Annotated[str, Field(max_length=512)]


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore", strict=True)
    model: str = Field(min_length=1, max_length=256)
    messages: list[_Turn] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=32_768)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[str] = Field(default=[], max_length=4)
    metadata: dict[_TagName, _TagValue] = Field(default={}, max_length=16)
    user: _TagValue | None = None
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @pydantic.field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and any(t == "" or len(str(t)) > 256 for t in texts):
            raise PydanticCustomError("stop", "each stop text has 1 to 256 characters")
        return texts

    def to_request(self) -> Request:
        """The Request of a Model; a developer message is a system message by its newer name."""
        written = self.model_dump(include={"temperature", "seed"})
        tokens = self.max_completion_tokens or self.max_tokens
        return Request(
            messages=tuple(
                Message(role="system" if m.role == "developer" else m.role, content=m.content) for m in self.messages
            ),
            stop=tuple(self.stop),
            tags={**self.metadata, **({} if self.user is None else {"user": self.user})},
            **written,
            **({} if tokens is None else {"max_tokens": tokens}),
        )


def parse_chat(body: bytes, *, max_messages: int) -> ChatCall:
    """What a chat body asks for. Raises WireError 400 naming the field at fault."""
    values = {name: value for name, value in json_object(body).items() if value is not None}
    for name, value in values.items():
        _check_name(name, value)
    messages = values.get("messages")
    if isinstance(messages, list) and len(messages) > max_messages:
        raise WireError(400, f"{len(messages)} messages; at most {max_messages} are read.", param="messages")
    try:
        parsed = _Body.model_validate(values)
    except pydantic.ValidationError as error:
        raise _explain(error) from None
    if parsed.messages[-1].role != "user":
        raise WireError(400, "The last message must be from the user.", param="messages")
    return ChatCall(parsed.model, parsed.to_request(), parsed.stream, parsed.stream_options.include_usage)


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises WireError 400."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise WireError(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise WireError(400, "The body must be a JSON object.", code="invalid_json")
    return value


def _check_name(name: str, value: object) -> None:
    if name in REFUSED:
        why, harmless = REFUSED[name]
        if value not in harmless:
            raise WireError(
                400,
                f'"{name}" is not supported here: {why}.',
                param=name,
                code="unsupported_parameter",
            )
    elif name not in IGNORED and name not in _Body.model_fields:
        shown = name[:64]
        near = did_you_mean(shown, [*_Body.model_fields, *IGNORED, *REFUSED]) or "."
        raise WireError(400, f'Unknown parameter: "{shown}"{near}', param=shown, code="unknown_parameter")


def _explain(error: pydantic.ValidationError) -> WireError:
    """All broken rules in one refusal, without repeating what was sent."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    places = [_place(problem["loc"]) for problem in problems]
    rules = [f"{place}: {p['msg']}" for place, p in zip(places, problems, strict=True)]
    more = f"; and {len(rules) - 5} more" if len(rules) > 5 else ""
    return WireError(400, "; ".join(rules[:5]) + more, param=places[0], code=str(problems[0]["type"]))


def _place(path: tuple[int | str, ...]) -> str:
    """`messages[0].role` from ("messages", 0, "role")."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in path]
    return "".join(parts).removeprefix(".")


def messages_json(request: Request) -> str:
    """The messages as canonical JSON, the text behind `messages_sha256`."""
    turns = [[message.role, message.content] for message in request.messages]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def messages_sha256(request: Request) -> str:
    """SHA-256 in hex of the messages: equal questions have equal hashes."""
    return hashlib.sha256(messages_json(request).encode()).hexdigest()


def model_missing(name: str, served: Iterable[str]) -> WireError:
    """The refusal for a name that is not served, with the nearest one and the list."""
    known = sorted(served)
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    shown = name[:128]
    near = did_you_mean(shown, known) or "."
    return WireError(
        404,
        f'The model "{shown}" is not served here{near} Served: {", ".join(known[:20])}{more}.',
        param="model",
        code="model_not_found",
    )

"""The words of OpenAI's wire format that all routes share: refusals, JSON bodies, hashes. No sockets here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pydantic
import pydantic_core

from smallfirst.errors import did_you_mean
from smallfirst.models.protocol import Request


class ApiError(Exception):
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


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises WireError 400."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return value


def validation_error(error: pydantic.ValidationError) -> ApiError:
    """All broken rules in one refusal, without repeating what was sent."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    places = [_place(problem["loc"]) for problem in problems]
    rules = [f"{place}: {p['msg']}" if place else p["msg"] for place, p in zip(places, problems, strict=True)]
    more = f"; and {len(rules) - 5} more" if len(rules) > 5 else ""
    return ApiError(400, "; ".join(rules[:5]) + more, param=places[0] or None, code=str(problems[0]["type"]))


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


def model_not_found(name: str, served: Iterable[str]) -> ApiError:
    """The refusal for a name that is not served, with the nearest one and the list."""
    known = sorted(served)
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    shown = name[:128]
    near = did_you_mean(shown, known) or "."
    return ApiError(
        404,
        f'The model "{shown}" is not served here{near} Served: {", ".join(known[:20])}{more}.',
        param="model",
        code="model_not_found",
    )

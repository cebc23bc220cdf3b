"""Errors as a client sees them, in OpenAI's format. Details of the server stay in its log."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import pydantic
from starlette.responses import JSONResponse

from smallfirst.base.errors import (
    AnswerLost,
    ModelError,
    RateLimited,
    RequestRefused,
    Unauthorised,
    Unavailable,
    as_full_disk,
    did_you_mean,
)
from smallfirst.base.records import field_names_at
from smallfirst.ledger.database import LedgerAway, LedgerUnavailable
from smallfirst.models.remote.client import CircuitOpenError

RETRY_AFTER_S = 2
"""Seconds that a refused client is asked to wait; about the time that one large answer takes."""
_log = logging.getLogger("smallfirst.serving")


class ClientDisconnected(Exception):
    """The client has left; nobody waits for the answer."""


class ApiError(Exception):
    """An error response in the format that OpenAI's clients understand."""

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

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def validation_error(error: pydantic.ValidationError, kind: type[pydantic.BaseModel] | None = None) -> ApiError:
    """Return one ApiError 400 with the first five broken rules, without repeating what was sent.

    With the `kind` that was read, an unknown field is called so, with the nearest known one.
    """
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    places, rules = [place_of(problem["loc"]) for problem in problems], []
    for place, problem in zip(places, problems, strict=True):
        said = problem["msg"].removeprefix("Value error, ")
        rules.append(f"{place}: {said}" if place else said)
        if kind is not None and problem["type"] == "extra_forbidden":
            *path, name = problem["loc"]
            rules[-1] = f'Unknown parameter: "{place}"{did_you_mean(str(name)[:64], field_names_at(kind, tuple(path)))}'
    more = f"; and {len(rules) - 5} more" if len(rules) > 5 else ""
    unknown = kind is not None and problems[0]["type"] == "extra_forbidden"
    code = "unknown_parameter" if unknown else str(problems[0]["type"])
    return ApiError(400, "; ".join(rules[:5]) + more, param=places[0] or None, code=code)


def place_of(path: tuple[int | str, ...]) -> str:
    """Return a place such as `questions[0].choices`; alternatives of a union, written `<name>`, are no part of it."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in path if not str(part).startswith("<")
    ]
    return "".join(parts).removeprefix(".")


def model_not_found(name: str, served: Iterable[str]) -> ApiError:
    """Return the ApiError 404 for a name that is not served, with the nearest served name and the list of them."""
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


def to_api_error(error: Exception, served_name: str) -> ApiError:
    """Return the error in OpenAI's format; `served_name` is the model that was asked."""
    match error:
        case ApiError():
            return error
        case ClientDisconnected():
            return ApiError(499, "The client disconnected.", code="client_disconnected")
        case TimeoutError():
            return server_error(504, "The answer took too long.", "timeout")
        case LedgerAway():
            return ledger_away()
        case LedgerUnavailable():
            # An answer that cannot be recorded is not given out; it may be paid already.
            return _not_again(server_error(503, "The answer could not be recorded.", "ledger_unavailable"))
        case RequestRefused():
            return ApiError(400, str(error.args[0]), code=error.code)
        case OSError() if as_full_disk(error):
            return _not_again(server_error(507, "The server's disk is full.", "storage_full"))
        case ModelError():
            return _of_model(error, f'"{served_name}"')
        case _:
            # It may have failed after the answer, which is paid.
            return _not_again(server_error(500, "Internal server error.", "internal_error"))


def _of_model(error: ModelError, name: str) -> ApiError:
    match error:
        case RateLimited():
            return ApiError(
                429,
                f"The model behind {name} is rate limited; try again later.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=RETRY_AFTER_S,
            )
        case CircuitOpenError():
            wait_s = math.ceil(error.retry_after_s)
            return server_error(503, f"The model behind {name} is down.", "model_unavailable", wait_s)
        case AnswerLost():
            what = f"The model behind {name} took the request and gave no answer"
            return _not_again(server_error(502, f"{what}{_because(error)}.", "answer_lost"))
        case Unavailable():
            return server_error(503, f"The model behind {name} is down.", "model_unavailable", RETRY_AFTER_S)
        case Unauthorised():
            what = f"The model behind {name} refused the key of this server."
            return server_error(502, what, "upstream_unauthorised")
        case _:
            what = f"The model behind {name} gave no usable answer{_because(error)}."
            return server_error(502, what, "bad_answer")


def _not_again(error: ApiError) -> ApiError:
    """Keep OpenAI's clients from sending the request again, which would be paid again."""
    error.headers["x-should-retry"] = "false"
    return error


def _because(error: ModelError) -> str:
    return f": {error.reason}" if error.reason else ""


def server_error(status: int, message: str, code: str, retry_after_s: int | None = None) -> ApiError:
    """Return an error that is the server's own fault."""
    return ApiError(status, message, kind="server_error", code=code, retry_after_s=retry_after_s)


def ledger_away() -> ApiError:
    """Return the error for requests while the ledger takes no row: no model was asked, so they may be sent again."""
    what = "Answers cannot be recorded at the moment, so none is given; try again shortly."
    return server_error(503, what, "ledger_unavailable", RETRY_AFTER_S)


def server_stopping() -> ApiError:
    """Return the error for requests that the end of the drain cuts off."""
    return server_error(503, "The server is stopping; try again shortly.", "stopping", RETRY_AFTER_S)


def log_error(id: str, served_name: str, refusal: ApiError, error: Exception) -> None:
    """Log one line: at INFO for the client's mistakes, higher for the server's."""
    if refusal.status in (500, 507):
        _log.error("%s: failed", id, exc_info=error)
    elif isinstance(error, ModelError):
        said = " ".join(str(error).split())[:300]
        _log.warning("%s: %r, %s: %s", id, served_name, type(error).__name__, said)
    else:
        _log.info("%s: %r, %d %s", id, served_name, refusal.status, refusal.code)

"""Errors as a client sees them in OpenAI's format. Details of the server stay in its log."""

from __future__ import annotations

import logging
import math

from smallfirst.errors import AnswerLost, ModelError, RateLimited, RequestRefused, Unauthorised, Unavailable
from smallfirst.models.remote.client import CircuitOpenError
from smallfirst.serving.admission import RETRY_AFTER_S, ClientDisconnected
from smallfirst.serving.ledger.ledger import LedgerAway, LedgerUnavailable
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.response_head import HeadNotSent

_log = logging.getLogger("smallfirst.serving")


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
        case HeadNotSent():
            return _not_again(server_error(500, "The answer's head could not be sent.", "head_not_sent"))
        case RequestRefused():
            return ApiError(400, str(error.args[0]), code=error.code)
        case ModelError():
            return _of_model(error, f'"{served_name}"')
        case _:
            return server_error(500, "Internal server error.", "internal_error")


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
    if refusal.status == 500:
        _log.error("%s: failed", id, exc_info=error)
    elif isinstance(error, ModelError):
        said = " ".join(str(error).split())[:300]
        _log.warning("%s: %r, %s: %s", id, served_name, type(error).__name__, said)
    else:
        _log.info("%s: %r, %d %s", id, served_name, refusal.status, refusal.code)

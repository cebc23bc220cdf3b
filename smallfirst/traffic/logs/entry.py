"""What a reader finds in one record of a log, and the exchange that is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from smallfirst.errors import Problem
from smallfirst.pricing.tokens import whole
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import milliseconds, moment, number, request_body, response_body, route_of

NO_TIME = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
"""Of an exchange whose log has no times, until `read_logs` numbers them."""


class Entry(NamedTuple):
    """The parts of an exchange in the spellings of the log."""

    request: Any
    response: Any
    id: Any = ""
    """Of the record, not of the response: records with one id are one exchange."""
    at: Any = None
    end: Any = None
    first_token_at: Any = None
    latency_ms: Any = None
    route: Any = ""
    model: Any = ""
    answered_by: Any = ""
    prompt_tokens: Any = None
    cached_tokens: Any = None
    completion_tokens: Any = None
    tier: str = ""
    cost_usd: Any = None
    tenant: Any = ""
    error: Any = None
    """What went wrong, if the log says that something did."""
    status: Any = None
    more: dict[str, Any] = {}
    """Further settings of the request: tools, temperature, response_format."""


class LogReader(ABC):
    """One format of logs. A reader may keep records until their counterparts come."""

    title: str
    """What the format is called."""

    @abstractmethod
    def recognizes(self, values: dict[str, Any]) -> bool:
        """Return True if the record is of this format."""

    @abstractmethod
    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        """Yield the exchanges in a record; what is none by its kind, such as a span of a tool, yields nothing."""

    def finish(self) -> Iterable[Exchange | Problem]:
        """Yield what was kept."""
        return ()


def exchange_of(entry: Entry, record: LogRecord) -> Exchange | Problem:
    """Return the exchange, or why there is none."""
    request = request_body(entry.request)
    if request is None:
        return Problem(record.path, record.line, "no request with messages or a prompt")
    response = response_body(entry.response)
    status = whole(entry.status) or 200
    if response is None:
        error = entry.error or (f"status {status}" if status >= 400 else None)
        if not error:
            return Problem(record.path, record.line, "no answer")
        response = {"error": error if isinstance(error, dict) else {"message": str(error)[:500]}}
    if "error" in response and response["error"] and status == 200:
        status = 500
    start, end = moment(entry.at), moment(entry.end)
    model = _name(entry.model) or _name(request.get("model"))
    given = {key: value for key, value in entry.more.items() if value not in (None, [], {}) and key not in request}
    return Exchange(
        id=str(entry.id or "").encode("utf-8", "replace").decode(),
        at=start or moment(response.get("created", response.get("created_at"))) or NO_TIME,
        route=route_of(entry.route, request, response),
        request={**({"model": model} if model else {}), **request, **given},
        response=response,
        status=status,
        model=model,
        answered_by=_name(entry.answered_by) or _name(response.get("model")) or model,
        tenant=_name(entry.tenant),
        streamed=request.get("stream") is True,
        prompt_tokens=whole(entry.prompt_tokens),
        cached_tokens=whole(entry.cached_tokens),
        completion_tokens=whole(entry.completion_tokens),
        tier=entry.tier,
        cost_usd=number(entry.cost_usd),
        latency_ms=milliseconds(start, end) if (given_ms := number(entry.latency_ms)) is None else given_ms,
        first_token_ms=milliseconds(start, moment(entry.first_token_at)),
        source=f"{record.path}:{record.line}",
    )


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""

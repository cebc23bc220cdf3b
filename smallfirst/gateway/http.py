"""Requests and responses of the proxy, and its own errors in the shape that OpenAI's clients understand."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.response_head import raw_headers

RawHeaders = list[tuple[bytes, bytes]]
"""Names in lower case, in the order in which they came."""
ERROR_HEADER = b"x-smallfirst-error"
"""On every answer that is the proxy's own error and not the upstream's."""
OWN_PREFIX = b"x-smallfirst-"
"""Headers of requests that are for the proxy and not passed on."""

_UNREAD: Any = object()


@dataclass(slots=True)
class GatewayRequest:
    """A request as it arrived, its body whole."""

    method: str
    path: str
    """As it was sent, escapes included, without the query: `/v1/chat/completions`."""
    query: bytes
    headers: RawHeaders
    """With the client's own key: never store them."""
    body: bytes
    """Whole; empty if the body is passed on while it arrives (see `GatewaySettings.max_buffered_bytes`)."""
    tenant: str = "default"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unique; that of its Exchange as well."""
    at: float = field(default_factory=time.time)
    """When it arrived, in seconds since the epoch."""
    watched: bool = False
    """Set it to True in `TakenOverTasks.answer` to get the upstream's answer in `TakenOverTasks.passed`."""
    credential: tuple[str, str] | None = None
    """Set by `Credentials.accepts`, which the upstream's answer then renews: a hash, never a key."""
    _json: Any = _UNREAD

    def json(self) -> dict[str, Any] | None:
        """Return the body as JSON, parsed once: share it, do not change it. None if it is not an object."""
        if self._json is _UNREAD:
            try:
                value = json.loads(self.body) if self.body else None
            except (ValueError, RecursionError):
                value = None
            self._json = value if isinstance(value, dict) else None
        found: dict[str, Any] | None = self._json
        return found

    def header(self, name: bytes) -> bytes:
        """Return a header's value by its name in lower case, or an empty string."""
        return next((value for key, value in self.headers if key == name), b"")


class UpstreamAnswer(NamedTuple):
    """The whole answer of an upstream."""

    status: int
    headers: RawHeaders
    body: bytes
    """As it came, compressed if `content-encoding` says so; `assembly.read_response` reads it."""
    upstream: str
    """Name in the settings."""
    latency_ms: float
    """From the request to the last byte."""


class Captured(NamedTuple):
    """A question to an upstream and its answer, as the capture is to keep them."""

    request: bytes
    """A JSON object."""
    answer: UpstreamAnswer


class GatewayResponse(NamedTuple):
    """An answer of the proxy's own, or of an upstream that was asked for it."""

    status: int
    headers: RawHeaders
    body: bytes
    captured: Captured | None = None
    """What to keep as an exchange; None: nothing. A small model's own answers must not be: nobody learns from them."""


def json_response(value: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> GatewayResponse:
    """Return `value` as JSON."""
    return GatewayResponse(status, [(b"content-type", b"application/json"), *headers], json.dumps(value).encode())


def refusal(error: ApiError) -> GatewayResponse:
    """Return an error of the proxy as its answer; the code stands in the header `x-smallfirst-error` as well."""
    more = {ERROR_HEADER.decode(): error.code or "refused", **error.headers}
    return json_response(error.body, error.status, *raw_headers(more))

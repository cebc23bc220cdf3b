"""One request of an application and the answer that it got, in one form for every source."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from smallfirst.records import Record


class Exchange(Record):
    """A request to a large model's API and its answer, captured by the proxy or read from a log."""

    id: str
    """Unique in its store."""
    at: datetime
    """When the request arrived, with a time zone."""
    timed: bool = True
    """False: its log has no times, and `at` is no more than the order of its lines."""
    route: str = "/v1/chat/completions"
    """Path that was asked, without the query."""
    request: dict[str, Any]
    """The request's body as the application sent it, redacted."""
    response: dict[str, Any]
    """The response's body in the form without streaming, redacted; of a stream, assembled from its events."""
    status: int = 200
    """HTTP status."""
    model: str = ""
    answered_by: str = ""
    """Model that the response names; it changes when a provider moves a name to another version."""
    upstream: str = ""
    """Upstream that answered, by its name in the proxy's settings; empty for a log."""
    tenant: str = ""
    """Who asked, as the settings name them; empty where nobody is told apart."""
    streamed: bool = False
    """True if the application asked for a stream."""
    prompt_tokens: int | None = None
    """As the response bills them."""
    cached_tokens: int | None = None
    """Prompt tokens that were billed at the price of cached ones."""
    completion_tokens: int | None = None
    """As the response bills them, reasoning included."""
    tier: str = ""
    """The provider's tier of service, such as `batch`, where the log says more than the response."""
    cost_usd: float | None = None
    """What the answer cost; None where no price is known."""
    estimated: bool = False
    """True if tokens and cost are estimated from the texts: a stream has no usage unless `stream_options` asks for it.
    """
    latency_ms: float | None = None
    """From the request to the last byte."""
    first_token_ms: float | None = None
    """From the request to the first event of a stream."""
    source: str = ""
    """File and line that it was read from; empty if captured."""

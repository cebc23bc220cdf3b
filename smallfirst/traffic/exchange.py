"""One request of an application and the answer that it got, in one form for every source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from smallfirst.base.errors import PriceUnknown
from smallfirst.base.records import Record
from smallfirst.models.pricing import Charge, PriceBook, Reported, TokenUsage, read_usage, stated, tokens_of
from smallfirst.models.protocol import BYTES_PER_TOKEN
from smallfirst.traffic.wire import read_answer, read_prompt


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
    tenant: str = ""
    """Who asked, as the settings name them; empty where nobody is told apart."""
    trace: str = ""
    """The agent's run that it is a step of, as the log names it; empty where it names none."""
    step: str = ""
    """The log's name of the step: the node of a graph, or the agent."""
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
    source: str = ""
    """File and line that it was read from; empty if captured."""


def estimate_tokens(route: str, request: Mapping[str, Any], response: Mapping[str, Any]) -> TokenUsage | None:
    """Return tokens estimated from the texts, BYTES_PER_TOKEN each; None where there is more than text, or none."""
    prompt, answer = read_prompt(route, dict(request)), read_answer(route, dict(response))
    if prompt is None or answer is None or prompt.has_media:
        return None
    asked = "".join((prompt.tools, prompt.response_format, *(turn.text for turn in prompt.turns)))
    said = "".join((answer.text, *(call.arguments for call in answer.tool_calls)))
    return tokens_of(*(math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) for text in (asked, said)))


def billed(
    exchange: Exchange, prices: PriceBook, *, api_url: str | None = None, headers: Mapping[str, str] | None = None
) -> Exchange:
    """Return the exchange with what its log leaves out: the tokens, or else an estimate, and the cost by `prices`.

    `headers` are the response's, with lower-case names.
    """
    reported = read_usage(exchange.response, headers).credible
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    logged = {name: n for name in names if (n := getattr(exchange, name)) is not None}
    tokens = reported.tokens
    if logged:
        tokens = TokenUsage.model_validate({**(tokens.model_dump() if tokens else {}), **logged})
    estimate = None if tokens else estimate_tokens(exchange.route, exchange.request, exchange.response)
    found = tokens or estimate
    changes: dict[str, Any] = {name: getattr(found, name) for name in names} if found else {}
    if exchange.cost_usd is None:
        known = reported._replace(tokens=found, tier=exchange.tier or reported.tier)
        at = exchange.at if exchange.timed else None
        charge = charge_of((exchange.answered_by, exchange.model), known, prices, at=at, api_url=api_url)
        changes["cost_usd"] = charge.usd if charge else None
    return exchange.model_copy(update={**changes, "estimated": estimate is not None})


def charge_of(
    models: Iterable[str],
    reported: Reported,
    prices: PriceBook,
    *,
    at: datetime | None = None,
    api_url: str | None = None,
) -> Charge | None:
    """Return the line of an answer's bill: the cost that it states, or the price of the first name that has one."""
    names = [name for name in dict.fromkeys(models) if name]
    tokens, tier, usd, source = reported
    if usd is not None and names:
        return stated(names[0], usd, tokens=tokens or TokenUsage(), tier=tier, source=source)
    for model in names if tokens else ():
        try:
            return prices.charge(model, tokens or TokenUsage(), at=at, tier=tier, api_url=api_url)
        except PriceUnknown:
            continue
    return None

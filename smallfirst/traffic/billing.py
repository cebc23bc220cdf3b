"""Price the answers of recorded traffic, from what they say of their bill or an estimate of their tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from smallfirst.errors import PriceUnknown
from smallfirst.models.usage import BYTES_PER_TOKEN
from smallfirst.pricing.charge import Charge, stated
from smallfirst.pricing.prices import PriceBook
from smallfirst.pricing.tokens import Reported, TokenUsage, read_usage, tokens_of
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import read_answer, read_prompt


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
    reported = read_usage(exchange.response, headers)
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

"""Read what an answer is billed for, and price it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from smallfirst.errors import PriceUnknown
from smallfirst.models.usage import BYTES_PER_TOKEN
from smallfirst.pricing.prices import PriceBook
from smallfirst.pricing.tokens import whole
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import read_answer, read_prompt


class Usage(NamedTuple):
    """Billed tokens; None where the response does not say."""

    prompt_tokens: int | None = None
    """Cached ones included."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None


def read_usage(response: dict[str, Any]) -> Usage:
    """Return what a response of any route bills; Anthropic's reads and writes of the cache are prompt tokens too."""
    usage = response.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = whole(details.get("cached_tokens")) if isinstance(details, dict) else None
    prompt = whole(usage.get("prompt_tokens"))
    completion = whole(usage.get("completion_tokens", usage.get("output_tokens")))
    if prompt is None and (prompt := whole(usage.get("input_tokens"))) is not None:
        apart = [whole(usage.get(f"cache_{name}_input_tokens")) for name in ("read", "creation")]
        cached = cached if apart[0] is None else apart[0]
        prompt += sum(n or 0 for n in apart)
    return Usage(prompt, cached, completion)


def estimate_usage(route: str, request: dict[str, Any], response: dict[str, Any]) -> Usage:
    """Return tokens estimated from the texts, BYTES_PER_TOKEN each; nothing where there is more than text, or none."""
    prompt, answer = read_prompt(route, request), read_answer(route, response)
    if prompt is None or answer is None or prompt.has_media:
        return Usage()
    asked = "".join((prompt.tools, prompt.response_format, *(turn.text for turn in prompt.turns)))
    said = "".join((answer.text, *(call.arguments for call in answer.tool_calls)))
    return Usage(_tokens(asked), None, _tokens(said))


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def billed(exchange: Exchange, prices: PriceBook, *, api_url: str | None = None) -> Exchange:
    """Return the exchange with what its bill leaves out: the cost by `prices`, and the tokens by an estimate."""
    usage, estimated = Usage(exchange.prompt_tokens, exchange.cached_tokens, exchange.completion_tokens), False
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        usage = estimate_usage(exchange.route, exchange.request, exchange.response)
        estimated = usage != Usage()
    changes: dict[str, Any] = {**usage._asdict(), "estimated": estimated}
    if exchange.cost_usd is None:
        changes["cost_usd"] = cost_usd(prices, (exchange.answered_by, exchange.model), usage, api_url=api_url)
    return exchange.model_copy(update=changes)


def cost_usd(prices: PriceBook, models: tuple[str, ...], usage: Usage, *, api_url: str | None = None) -> float | None:
    """Return the price of an answer in USD under the first of the names that has one; None if none has."""
    prompt, cached, completion = (n or 0 for n in usage)
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    for model in filter(None, dict.fromkeys(models)):
        if model in prices.tokens:
            return prices.token_cost_usd(model, prompt, completion, cached_tokens=min(cached, prompt))
        if rates := _catalogue_rates(model, api_url):
            return (prompt - min(cached, prompt)) * rates[0] + min(cached, prompt) * rates[1] + completion * rates[2]
    return None


@lru_cache(maxsize=1024)
def _catalogue_rates(model: str, api_url: str | None) -> tuple[float, float, float] | None:
    """Return USD a prompt token, a cached one and a completion token in short prompts; None if nobody sells it.

    A look into the catalogue takes 0.2 ms, which is long for every line of a log.
    """
    n, price = 10_000, PriceBook().token_cost_usd
    try:
        asked = (price(model, n, 0, api_url=api_url), price(model, n, 0, cached_tokens=n, api_url=api_url))
        return asked[0] / n, asked[1] / n, price(model, 0, n, api_url=api_url) / n
    except PriceUnknown:
        return None

"""The tokens of a request by the kinds that have prices of their own, and its cost, read from any provider's answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smallfirst.base.records import Record

Count = Annotated[int, Field(ge=0)]
COST_HEADERS = ("x-litellm-response-cost", "x-smallfirst-cost-usd")
"""Headers in which a gateway states what an answer cost, in USD."""
_USD_PER_TICK = 1e-10
_USUAL_TIERS = ("", "auto", "default", "standard")


class TokenUsage(Record):
    """Billed tokens of one request."""

    prompt_tokens: Count = 0
    """All tokens read, cached ones and those written to a cache included, as OpenAI counts them."""
    cached_tokens: Count = 0
    """Of `prompt_tokens`, those read from the provider's cache."""
    cache_write_tokens: Count = 0
    """Of `prompt_tokens`, those written to the provider's cache."""
    cache_write_1h_tokens: Count = 0
    """Of `cache_write_tokens`, those kept for an hour instead of minutes, which costs more at Anthropic."""
    image_tokens: Count = 0
    """Of `prompt_tokens`, those of images, where the provider counts them apart."""
    completion_tokens: Count = 0
    """All tokens written, reasoning included."""
    reasoning_tokens: Count = 0
    """Of `completion_tokens`, those of reasoning that the client does not see."""


class Reported(NamedTuple):
    """What a response says of its bill."""

    tokens: TokenUsage | None = None
    """None where the response does not say."""
    tier: str = ""
    """Tier of service in which it was answered; empty: the usual one."""
    usd: float | None = None
    """Its cost, where the response states it."""
    source: str = ""
    """The field or header that states it."""

    def then(self, later: Reported) -> Reported:
        """Return this with what a later part of the same response says."""
        kept = later if later.usd is not None else self
        return Reported(later.tokens or self.tokens, later.tier or self.tier, kept.usd, kept.source)


def tokens_of(read: int, written: int = 0) -> TokenUsage:
    """Return tokens of which no kinds are told apart."""
    return TokenUsage(prompt_tokens=read, completion_tokens=written)


def read_usage(response: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Reported:
    """Return what a response bills, in the shape of any provider; `headers` have lower-case names.

    OpenAI, DeepSeek, Mistral and xAI count cached tokens in the prompt, Anthropic and Bedrock beside it; xAI and Gemini
    count reasoning beside the answer. Costs are stated by OpenRouter, Perplexity, xAI, DeepInfra, LLM Gateway, LiteLLM
    and smallfirst.
    """
    usage = _object(response, "usage") or _object(response, "usageMetadata")
    tiers = ("fast" if usage.get("speed") == "fast" else None, usage.get("service_tier"), response.get("service_tier"))
    tier = next((tier.lower() for tier in tiers if isinstance(tier, str)), "")
    usd, source = _stated_cost(response, usage, headers or {})
    return Reported(_tokens(usage), "" if tier in _USUAL_TIERS else tier, usd, source)


def _tokens(usage: Mapping[str, Any]) -> TokenUsage | None:
    read = _object(usage, "prompt_tokens_details") or _object(usage, "input_tokens_details")
    wrote = _object(usage, "completion_tokens_details") or _object(usage, "output_tokens_details")
    prompt = _first(usage, "prompt_tokens", "promptTokenCount")
    completion = _first(usage, "completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokens")
    reasoning = _first({**usage, **wrote}, "reasoning_tokens", "thoughtsTokenCount") or 0
    names = ("cached_tokens", "cache_read_input_tokens", "cacheReadInputTokens", "prompt_cache_hit_tokens")
    cached = _first({**usage, **read}, *names, "cachedContentTokenCount", "num_cached_tokens") or 0
    names = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens", "cacheWriteInputTokens")
    written = _first({**usage, **read}, *names) or 0
    if prompt is None and (prompt := _first(usage, "input_tokens", "inputTokens")) is not None and not read:
        prompt += cached + written
    if prompt is None and completion is None:
        return None
    hour = _first(_object(usage, "cache_creation"), "ephemeral_1h_input_tokens") or 0
    total = _first(usage, "total_tokens", "totalTokenCount")
    if reasoning and total == (prompt or 0) + (completion or 0) + reasoning:
        completion = (completion or 0) + reasoning  # counted beside the answer
    prompt, completion = prompt or 0, completion or 0
    cached = min(cached, prompt)
    return TokenUsage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=(written := min(written, prompt - cached)),
        cache_write_1h_tokens=min(hour, written),
        image_tokens=min(_first(read, "image_tokens") or 0, prompt),
        completion_tokens=completion,
        reasoning_tokens=min(reasoning, completion),
    )


def _stated_cost(
    response: Mapping[str, Any], usage: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[float | None, str]:
    """Return what the answer cost in USD, and which field or header says so."""
    cost = usage.get("cost")
    own_keys = _object(usage, "cost_details").get("upstream_inference_cost") if usage.get("is_byok") is True else None
    found = {
        "smallfirst.cost_usd": _object(response, "smallfirst").get("cost_usd"),
        "usage.cost.total_cost": cost.get("total_cost") if isinstance(cost, Mapping) else None,
        # With keys of one's own OpenRouter bills its fee, and the provider the rest.
        "usage.cost": None if isinstance(cost, Mapping) else _sum(cost, own_keys),
        "usage.cost_in_usd_ticks": _sum(usage.get("cost_in_usd_ticks"), scale=_USD_PER_TICK),
        "usage.cost_usd_total": usage.get("cost_usd_total"),
        "usage.estimated_cost": usage.get("estimated_cost"),
        # A gateway without a price of the model writes 0 here, which is no cost.
        **{name: _usd(headers.get(name)) or None for name in COST_HEADERS},
    }
    return next(((usd, name) for name, value in found.items() if (usd := _usd(value)) is not None), (None, ""))


def _sum(*values: Any, scale: float = 1.0) -> float | None:
    known = [usd for value in values if (usd := _usd(value)) is not None]
    return math.fsum(known) * scale if known else None


def _usd(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if math.isfinite(amount) and amount >= 0 else None


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _first(values: Mapping[str, Any], *names: str) -> int | None:
    """Return the first whole number under the names; text is none, since a response is JSON."""
    return next((n for name in names if (n := whole(values.get(name), of_text=False)) is not None), None)


def whole(value: Any, *, of_text: bool = True) -> int | None:
    """Return a whole number that is not negative, also one that a table holds as text or float; else None."""
    if isinstance(value, bool) or value is None or value == "" or (isinstance(value, str) and not of_text):
        return None
    try:
        number = float(value)
        return int(number) if number >= 0 and (of_text or number.is_integer()) else None
    except (TypeError, ValueError, OverflowError):
        return None

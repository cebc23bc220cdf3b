"""Read what an answer is billed for, and price it."""

from __future__ import annotations

from typing import Any, NamedTuple

from smallfirst.errors import PriceUnknown
from smallfirst.pricing import PriceBook


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


def cost_usd(prices: PriceBook, models: tuple[str, ...], usage: Usage, *, api_url: str | None = None) -> float | None:
    """Return the price of an answer in USD under the first of the names that has one; None if none has.

    Cached tokens are priced like others: a bill may be lower.
    """
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    for model in filter(None, dict.fromkeys(models)):
        try:
            return prices.token_cost_usd(model, usage.prompt_tokens or 0, usage.completion_tokens or 0, api_url=api_url)
        except PriceUnknown:
            continue
    return None


def whole(value: Any) -> int | None:
    """Return a whole number that is not negative, also one that a table holds as text or float; else None."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number >= 0 else None

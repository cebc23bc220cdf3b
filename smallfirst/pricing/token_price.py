"""The price of a hosted model's tokens from a day on."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field

from smallfirst.pricing.money import Usd
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TokenPrice(Record):
    """List price of a hosted model, in USD."""

    input_usd_per_mtok: Usd
    """USD per million prompt tokens."""
    output_usd_per_mtok: Usd
    """USD per million completion tokens."""
    cached_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller has cached; left out: they cost what others do."""
    cache_write_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller writes to its cache; left out: they cost what others do."""
    cache_write_1h_usd_per_mtok: Usd | None = None
    """The same where they are kept for an hour instead of minutes."""
    image_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens of images; left out: they cost what others do."""
    reasoning_usd_per_mtok: Usd | None = None
    """USD per million reasoning tokens; left out: they cost what other completion tokens do."""
    usd_per_request: Usd = 0.0
    """USD per request, whatever its tokens."""
    tiers: dict[str, Factor] = {}
    """By tier of service (`batch`, `flex`, `priority`) the factor on all prices of tokens."""
    valid_from: datetime.date | None = None
    """First day of this price, in UTC; left out: since ever."""
    source: str = ""
    """Where the price was read, such as an address; left out: the file in which it stands."""

    def rates(self, tier: str = "") -> dict[str, float]:
        """Return USD per million tokens by kind, and per `request` if there is such a price. Raise KeyError."""
        factor, fresh, output = self.tiers[tier] if tier else 1.0, self.input_usd_per_mtok, self.output_usd_per_mtok
        write = _either(self.cache_write_usd_per_mtok, fresh)
        found = {
            "input": fresh,
            "cached": _either(self.cached_usd_per_mtok, fresh),
            "cache_write": write,
            "cache_write_1h": _either(self.cache_write_1h_usd_per_mtok, write),
            "image": _either(self.image_usd_per_mtok, fresh),
            "output": output,
            "reasoning": _either(self.reasoning_usd_per_mtok, output),
        }
        return {kind: usd * factor for kind, usd in found.items()} | {"request": self.usd_per_request}


def tokens_by_kind(tokens: TokenUsage) -> dict[str, int]:
    """Return the tokens by the kinds of `TokenPrice.rates`, none of them twice."""
    read, written = tokens.prompt_tokens, tokens.completion_tokens
    kept = min(tokens.cache_write_1h_tokens, tokens.cache_write_tokens)
    image = max(0, min(tokens.image_tokens, read - tokens.cached_tokens - tokens.cache_write_tokens))
    return {
        "input": max(0, read - tokens.cached_tokens - tokens.cache_write_tokens - image),
        "cached": tokens.cached_tokens,
        "cache_write": tokens.cache_write_tokens - kept,
        "cache_write_1h": kept,
        "image": image,
        "output": max(0, written - tokens.reasoning_tokens),
        "reasoning": tokens.reasoning_tokens,
    }


def _either(usd: float | None, other: float) -> float:
    return other if usd is None else usd

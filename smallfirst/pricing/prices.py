"""Prices of hosted tokens and of machine time, by model. An unknown price is an error, never $0.

A PriceBook looks in the prices of task.yaml, then in the catalogue inside the installed genai-prices package, which is
as old as that version, and raises PriceUnknown if neither has the model. `source` names the origin of a price.
"""

from __future__ import annotations

import json

from smallfirst.errors import PriceUnknown
from smallfirst.pricing.charge import Charge
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.money import Usd
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record


class TokenPrice(Record):
    """List price of a hosted model."""

    input_usd_per_mtok: Usd
    """USD per million prompt tokens."""
    output_usd_per_mtok: Usd
    """USD per million completion tokens."""
    cached_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller has cached; left out: they cost what others do."""
    source: str = "task.yaml"
    """Where the price was read."""


class PriceBook(Record):
    """The prices of a project."""

    tokens: dict[str, TokenPrice] = {}
    """Prices by model name; they take precedence over the catalogue."""
    machine: MachinePrice = MachinePrice()
    """Price of local work."""
    usd_per_label: Usd | None = None
    """What a person's label costs; left out: labels are priced like answers of the large model."""

    def token_cost_usd(
        self,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        cached_tokens: int = 0,
        api_url: str | None = None,
    ) -> float:
        """Return the cost of one hosted call in USD, of which `cached_tokens` of the prompt were billed as cached.

        `api_url` identifies the seller. Raise PriceUnknown.
        """
        own = self.tokens.get(model)
        if own is None:
            return _from_catalogue(model, prompt_tokens, completion_tokens, api_url, cached_tokens)[0]
        cached = own.input_usd_per_mtok if own.cached_usd_per_mtok is None else own.cached_usd_per_mtok
        spent = (prompt_tokens - cached_tokens) * own.input_usd_per_mtok + cached_tokens * cached
        return (spent + completion_tokens * own.output_usd_per_mtok) / 1_000_000

    def charge(self, model: str, tokens: TokenUsage, *, api_url: str | None = None) -> Charge:
        """Return the line of a bill for one hosted call. Raise PriceUnknown."""
        read, written, cached = tokens.prompt_tokens, tokens.completion_tokens, tokens.cached_tokens
        usd = self.token_cost_usd(model, read, written, cached_tokens=cached, api_url=api_url)
        source = self.source(model, api_url=api_url)
        return Charge(model=model, usd=usd, basis="tokens", tokens=tokens, source=source)

    def source(self, model: str, *, api_url: str | None = None) -> str:
        """Return where the token price of `model` comes from, in words. Raise PriceUnknown."""
        own = self.tokens.get(model)
        return own.source if own is not None else _from_catalogue(model, 1, 1, api_url)[1]


def _from_catalogue(
    model: str, prompt_tokens: int, completion_tokens: int, api_url: str | None, cached_tokens: int = 0
) -> tuple[float, str]:
    """Return cost in USD and its source from the installed genai-prices package."""
    try:
        import genai_prices
    except ImportError:
        raise _unknown(model, "the price catalogue genai-prices is not installed") from None
    usage = genai_prices.Usage(
        input_tokens=prompt_tokens, cache_read_tokens=cached_tokens, output_tokens=completion_tokens
    )
    catalogue = f"genai-prices {genai_prices.__version__}"
    # A known address names the seller for certain; else the model's maker is taken as the seller.
    for address in dict.fromkeys((api_url, None)):
        try:
            price = genai_prices.calc_price(usage, model, provider_api_url=address)
        except LookupError:
            continue
        return float(price.total_price), f"{catalogue}: {price.provider.id}/{price.model.id}"
    raise _unknown(model, f"{catalogue} does not know it either")


def _unknown(model: str, why: str) -> PriceUnknown:
    lines = [
        "add its price to task.yaml, in USD per million tokens:",
        "  prices:",
        "    tokens:",
        f"      {json.dumps(model, ensure_ascii=False)}:",
        "        input_usd_per_mtok: …",
        "        output_usd_per_mtok: …",
    ]
    return PriceUnknown(f'no price for "{model}": it is not under `prices`, and {why}', hint="\n".join(lines))

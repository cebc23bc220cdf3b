"""The catalogue's own arithmetic and ours agree, by seller, day, tier and length of the prompt."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime

import pytest

from smallfirst.errors import PriceUnknown
from smallfirst.pricing.prices import PriceBook
from smallfirst.pricing.token_price import NotInCatalogue, list_price
from smallfirst.pricing.tokens import TokenUsage

genai_prices = pytest.importorskip("genai_prices")
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def test_catalogue_prices_a_known_model() -> None:
    line = PriceBook().charge("gpt-4o-mini", TokenUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000), at=NOW)
    assert line.usd == pytest.approx(0.75)  # list price $0.15 and $0.60 per million
    assert line.rates == {"input": 0.15, "output": 0.6}
    assert line.source == f"genai-prices {genai_prices.__version__}: openai/gpt-4o-mini"
    assert line.price_date is not None
    assert date(2026, 1, 1) < line.price_date <= datetime.now(UTC).date()


def test_address_tells_the_seller() -> None:
    model = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
    source = PriceBook().source_of(model, api_url="https://api.together.xyz/v1")
    assert source.endswith(f": together/{model}")


@pytest.mark.parametrize("tier", ["", "batch", "flex", "priority"])
@pytest.mark.parametrize("n_prompt", [900, 250_000])
@pytest.mark.parametrize(
    "model", ["gpt-4o-mini", "gpt-5", "gpt-5.4", "claude-sonnet-4-5", "gemini-2.5-pro", "deepseek-chat"]
)
def test_cost_is_that_of_the_catalogues_own_calculation(model: str, n_prompt: int, tier: str) -> None:
    tokens = TokenUsage(
        prompt_tokens=n_prompt, cached_tokens=500, cache_write_tokens=100, completion_tokens=80, reasoning_tokens=30
    )
    usage = genai_prices.Usage(
        input_tokens=n_prompt,
        cache_read_tokens=500,
        cache_write_tokens=100,
        output_tokens=80,
        output_reasoning_tokens=30,
    )
    context = {"processing": "batch"} if tier == "batch" else {"service_tier": tier} if tier else None
    n_compared = 0
    for at in (datetime(2025, 12, 1, 18, tzinfo=UTC), NOW):
        theirs = genai_prices.calc_price(usage, model, genai_request_timestamp=at, price_context=context)
        with suppress(PriceUnknown):  # of a tier, where the catalogue would take the usual price instead
            ours = PriceBook().charge(model, tokens, at=at, tier=tier)
            assert ours.usd == pytest.approx(float(theirs.total_price), rel=1e-12)
            n_compared += 1
    assert n_compared == 2 or tier


def test_a_tier_that_the_catalogue_does_not_know_is_no_usual_price() -> None:
    with pytest.raises(PriceUnknown, match="has no price of deepseek/deepseek-v4-flash in the tier flex"):
        PriceBook().charge("deepseek-v4-flash", TokenUsage(prompt_tokens=1), at=NOW, tier="flex")


def test_a_price_that_changes_has_the_day_on_which_it_began() -> None:
    before, after = (
        list_price("gemini-3.6-flash", api_url=None, at=datetime(*day, tzinfo=UTC))
        for day in ((2026, 12, 31), (2027, 1, 1))
    )
    assert after.valid_from == date(2027, 1, 1)
    assert before.valid_from is not None
    assert before.valid_from < date(2027, 1, 1)


def test_what_nobody_sells_has_no_price() -> None:
    with pytest.raises(NotInCatalogue, match="does not know it either"):
        list_price("our-70b", api_url=None, at=NOW)

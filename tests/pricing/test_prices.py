"""Prices: the user's own first, then the catalogue, then an error."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.errors import PriceUnknown
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.prices import PriceBook, TokenPrice

OWN = PriceBook(tokens={"gpt-4o-mini": TokenPrice(input_usd_per_mtok=1, output_usd_per_mtok=3)})


def test_own_price_comes_before_the_catalogue() -> None:
    # 2,000 tokens at $1 and 100 at $3 per million
    assert OWN.token_cost_usd("gpt-4o-mini", 2000, 100) == pytest.approx(0.0023)
    assert OWN.source("gpt-4o-mini") == "task.yaml"


def test_catalogue_prices_a_known_model() -> None:
    genai_prices = pytest.importorskip("genai_prices")
    book = PriceBook()
    # list price $0.15 and $0.60 per million
    assert book.token_cost_usd("gpt-4o-mini", 1_000_000, 1_000_000) == pytest.approx(0.75)
    assert book.source("gpt-4o-mini") == (f"genai-prices {genai_prices.__version__}: openai/gpt-4o-mini")


def test_address_tells_the_seller() -> None:
    pytest.importorskip("genai_prices")
    model = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
    source = PriceBook().source(model, api_url="https://api.together.xyz/v1")
    assert source.endswith(f": together/{model}")


def test_unknown_price_is_an_error_that_shows_the_lines_to_write() -> None:
    genai_prices = pytest.importorskip("genai_prices")
    with pytest.raises(PriceUnknown) as caught:
        PriceBook().token_cost_usd("our-70b", 10, 10)
    assert str(caught.value) == (
        'no price for "our-70b": it is not under `prices`, and '
        f"genai-prices {genai_prices.__version__} does not know it either\n"
        "  next: add its price to task.yaml, in USD per million tokens:\n"
        "  prices:\n"
        "    tokens:\n"
        '      "our-70b":\n'
        "        input_usd_per_mtok: …\n"
        "        output_usd_per_mtok: …"
    )


def test_machine_is_paid_for_idle_time_too() -> None:
    # half an hour at $0.60 per hour, useful for half of the time: $0.30 of work costs $0.60
    price = MachinePrice(usd_per_hour=0.60, utilisation=0.5)
    assert price.cost_usd(1800) == pytest.approx(0.60)


@pytest.mark.parametrize("utilisation", [0.0, 1.1, float("nan")])
def test_impossible_utilisation_is_refused(utilisation: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        MachinePrice(utilisation=utilisation)


def test_negative_price_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        TokenPrice(input_usd_per_mtok=-1, output_usd_per_mtok=1)

"""The usage of every route reads the same, and a price is known or None."""

from __future__ import annotations

import pytest

from smallfirst.pricing.prices import PriceBook, TokenPrice
from smallfirst.pricing.tokens import whole
from smallfirst.traffic.billing import Usage, billed, cost_usd, read_usage
from smallfirst.traffic.exchange import Exchange

PRICES = PriceBook(tokens={"mine": TokenPrice(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)})


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}},
        {"input_tokens": 100, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 80}},
        {"input_tokens": 15, "output_tokens": 5, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 5},
    ],
)
def test_three_ways_to_bill_are_one(usage):
    assert read_usage({"usage": usage}) == Usage(100, 80, 5)


def test_cached_tokens_have_their_own_price():
    usage = Usage(10_000, 8_000, 100)
    # gpt-4o-mini in the catalogue: $0.15, $0.075 cached and $0.60 per million
    assert cost_usd(PriceBook(), ("gpt-4o-mini",), usage) == pytest.approx(0.0003 + 0.0006 + 0.00006)
    own = TokenPrice(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0, cached_usd_per_mtok=0.1)
    assert cost_usd(PriceBook(tokens={"mine": own}), ("mine",), usage) == pytest.approx(0.002 + 0.0008 + 0.001)


def test_what_is_not_said_is_unknown():
    assert read_usage({"usage": None}) == read_usage({}) == Usage()
    assert read_usage({"usage": {"prompt_tokens": 8, "total_tokens": 8}}) == Usage(8, None, None)


def test_the_first_name_with_a_price_gives_it():
    usage = Usage(1_000_000, 0, 100_000)
    assert cost_usd(PRICES, ("mine-2026-11", "mine"), usage) == pytest.approx(2.0)
    assert cost_usd(PRICES, ("nobody-sells-this",), usage) is None
    assert cost_usd(PRICES, ("mine",), Usage()) is None


def exchange(**more):
    request = {"messages": [{"role": "user", "content": "x" * 40}]}
    response = {"choices": [{"message": {"content": "abcde"}}]}
    return Exchange(id="1", at="2026-11-27T00:00:00Z", request=request, response=response, model="mine", **more)


def test_what_a_stream_does_not_say_is_estimated_and_said_to_be():
    found = billed(exchange(), PRICES)
    assert (found.prompt_tokens, found.completion_tokens, found.estimated) == (10, 2, True)
    assert found.cost_usd == pytest.approx(10e-6 + 20e-6)
    assert billed(exchange(cost_usd=0.5), PRICES).cost_usd == 0.5
    told = billed(exchange(prompt_tokens=7), PRICES)
    assert (told.prompt_tokens, told.estimated, told.cost_usd) == (7, False, pytest.approx(7e-6))


def test_an_image_is_not_estimated():
    content = [{"type": "image_url", "image_url": {"url": "data:"}}]
    found = billed(
        exchange().model_copy(update={"request": {"messages": [{"role": "user", "content": content}]}}), PRICES
    )
    assert (found.prompt_tokens, found.cost_usd, found.estimated) == (None, None, False)


def test_numbers_in_tables():
    assert [whole(v) for v in (3, "3", 3.0, "3.0")] == [3, 3, 3, 3]
    assert [whole(v) for v in (None, "", "many", -1, True, float("nan"), float("inf"))] == [None] * 7

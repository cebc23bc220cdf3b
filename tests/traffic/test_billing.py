"""The usage of every route reads the same, and a price is known or None."""

from __future__ import annotations

import pytest

from smallfirst.pricing import PriceBook, TokenPrice
from smallfirst.traffic.billing import Usage, cost_usd, read_usage, whole

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


def test_numbers_in_tables():
    assert [whole(v) for v in (3, "3", 3.0, "3.0")] == [3, 3, 3, 3]
    assert [whole(v) for v in (None, "", "many", -1, True, float("nan"), float("inf"))] == [None] * 7

"""Exchanges are priced as they state, by their tokens, or by an estimate that says so."""

import pytest

from smallfirst.models.pricing import PriceBook, Reported, TokenPrice, TokenUsage
from smallfirst.traffic.exchange import Exchange, billed, charge_of

PRICES = PriceBook(tokens={"mine": TokenPrice(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)})


def tokens(read: int, cached: int, written: int) -> Reported:
    return Reported(TokenUsage(prompt_tokens=read, cached_tokens=cached, completion_tokens=written))


def cost(prices: PriceBook, models: tuple[str, ...], reported: Reported) -> float | None:
    charge = charge_of(models, reported, prices)
    return charge.usd if charge else None


def test_the_first_name_with_a_price_gives_it():
    usage = tokens(1_000_000, 0, 100_000)
    assert cost(PRICES, ("mine-2026-11", "mine"), usage) == pytest.approx(2.0)
    assert cost(PRICES, ("nobody-sells-this",), usage) is None
    assert cost(PRICES, ("mine",), Reported()) is None


def exchange(**more):
    request = {"messages": [{"role": "user", "content": "x" * 40}]}
    response = {"choices": [{"message": {"content": "abcde"}}]}
    return Exchange(id="1", at="2026-11-27T00:00:00Z", request=request, response=response, model="mine", **more)


def test_what_a_stream_does_not_say_is_estimated_and_said_to_be():
    found = billed(exchange(), PRICES)
    assert (found.prompt_tokens, found.completion_tokens, found.estimated) == (10, 2, True)
    assert found.cost_usd == pytest.approx(10e-6 + 20e-6)
    assert billed(exchange(cost_usd=0.5), PRICES).cost_usd == 0.5
    for lie in ({"prompt_tokens": 10**30, "completion_tokens": 1}, {"cost": 1e12}):
        lied = exchange().model_copy(update={"response": {**exchange().response, "usage": lie}})
        assert billed(lied, PRICES) == found.model_copy(update={"response": lied.response})
    told = billed(exchange(prompt_tokens=7), PRICES)
    assert (told.prompt_tokens, told.estimated, told.cost_usd) == (7, False, pytest.approx(7e-6))
    content = [{"type": "image_url", "image_url": {"url": "data:"}}]
    image = exchange().model_copy(update={"request": {"messages": [{"role": "user", "content": content}]}})
    found = billed(image, PRICES)  # is not estimated
    assert (found.prompt_tokens, found.cost_usd, found.estimated) == (None, None, False)


def test_a_stated_cost_comes_before_a_price_and_after_that_of_the_log():
    body = {"usage": {"prompt_tokens": 10, "completion_tokens": 1, "cost": 0.002}}
    one = exchange().model_copy(update={"response": body})
    assert billed(one, PRICES).cost_usd == 0.002
    assert billed(one.model_copy(update={"cost_usd": 0.5}), PRICES).cost_usd == 0.5
    other = billed(exchange(), PRICES, headers={"x-litellm-response-cost": "0.25"})
    assert (other.cost_usd, other.prompt_tokens, other.estimated) == (0.25, 10, True)


def test_a_tier_has_its_own_price_or_none():
    price = TokenPrice(input_usd_per_mtok=4.0, output_usd_per_mtok=10.0, tiers={"batch": 0.5})
    prices = PriceBook(tokens={"mine": price})
    batch = exchange(tier="batch", prompt_tokens=1, completion_tokens=0)
    assert billed(batch, prices).cost_usd == pytest.approx(2e-6)
    unknown = exchange(tier="flex", prompt_tokens=1)
    assert billed(unknown, prices).cost_usd is None

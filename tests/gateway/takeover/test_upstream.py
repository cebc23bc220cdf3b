"""A passed answer costs what it states, then its tokens at the proxy's prices, then what recorded answers did."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from smallfirst.gateway.takeover.upstream import Asked, Upstream
from smallfirst.models.protocol import Completion
from smallfirst.pricing.prices import PriceBook
from smallfirst.pricing.token_price import TokenPrice
from tests.gateway.takeover.conftest import TEACHER, source

USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 900}}
PRICE = TokenPrice(
    input_usd_per_mtok=2,
    cached_usd_per_mtok=0.2,
    output_usd_per_mtok=10,
    valid_from=date(2020, 1, 1),
    tiers={"flex": 0.5},
)
ANSWER = {"model": TEACHER, "choices": [{"message": {"role": "assistant", "content": "Queue: billing"}}]}


def read(prices: PriceBook | None = None, **more: Any) -> Completion:
    async def again() -> tuple[int, dict[str, Any] | None]:
        raise NotImplementedError

    body = {"model": TEACHER, "messages": [{"role": "user", "content": "x" * 40}]}
    asked = Asked("1", "/v1/chat/completions", "chat", body, "x", again)
    upstream = Upstream(source(), prices or PriceBook(tokens={TEACHER: PRICE}))
    upstream.usual_usd = 0.0001
    found = upstream.read(asked, ANSWER | more)
    assert found is not None
    return found


def test_its_own_tokens_have_the_proxys_price() -> None:
    found = read(usage=USAGE)
    (line,) = found.charges
    assert found.cost_usd == pytest.approx((100 * 2 + 900 * 0.2 + 10 * 10) * 1e-6, rel=1e-12)
    assert (found.prompt_tokens, found.cached_tokens, line.price_date, found.estimated) == (
        1000,
        900,
        date(2020, 1, 1),
        False,
    )
    assert read(usage=USAGE, service_tier="flex").cost_usd == pytest.approx(found.cost_usd / 2, rel=1e-12)


def test_a_stated_cost_comes_first_and_a_stream_without_usage_is_estimated() -> None:
    assert read(usage=USAGE | {"cost": 0.004}).cost_usd == 0.004
    found = read()
    assert found.estimated
    assert found.cost_usd == pytest.approx((10 * 2 + 4 * 10) * 1e-6, rel=1e-12)  # 40 and 14 characters, four a token


def test_without_a_price_the_mean_of_recorded_answers_stands_for_it() -> None:
    (line,) = read(PriceBook(), usage=USAGE).charges
    assert (line.usd, line.source) == (0.0001, "the mean cost of recorded answers")

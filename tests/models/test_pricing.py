"""Tokens of every provider's usage, prices by kind, day, tier and seller, and the lines of a bill.

The catalogue's own arithmetic and ours agree.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pydantic
import pytest

from smallfirst.base.errors import ConfigError, PriceUnknown
from smallfirst.base.records import parse_record
from smallfirst.models.pricing import (
    Charge,
    MachinePrice,
    PriceBook,
    Reported,
    TokenPrice,
    TokenUsage,
    charges_json,
    known_usd,
    read_usage,
    stated,
    tokens_of,
    total_usd,
)

genai_prices = pytest.importorskip("genai_prices")
OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 15,
    "total_tokens": 115,
    "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 10},
}
RESPONSES = {
    "input_tokens": 100,
    "output_tokens": 15,
    "input_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5},
    "output_tokens_details": {"reasoning_tokens": 10},
}
# Anthropic and Bedrock count fresh tokens beside cached ones.
ANTHROPIC = {"input_tokens": 15, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 5, "output_tokens": 15}
BEDROCK = {"inputTokens": 15, "cacheReadInputTokens": 80, "cacheWriteInputTokens": 5, "outputTokens": 15}
DEEPSEEK = {"prompt_tokens": 100, "prompt_cache_hit_tokens": 80, "completion_tokens": 15}
# xAI and Gemini count reasoning beside the answer.
XAI = OPENAI | {"completion_tokens": 5, "total_tokens": 115}
GEMINI = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 80,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 10,
    "totalTokenCount": 115,
}
WHOLE = {"prompt_tokens": 100, "cached_tokens": 80, "completion_tokens": 15}
WRITTEN, KINDS = WHOLE | {"cache_write_tokens": 5}, {"reasoning_tokens": 10}


@pytest.mark.parametrize(("body", "expected"), [
    ({"usage": OPENAI}, WRITTEN | KINDS), ({"usage": RESPONSES}, WRITTEN | KINDS),
    ({"usage": ANTHROPIC}, WRITTEN), ({"usage": BEDROCK}, WRITTEN), ({"usage": DEEPSEEK}, WHOLE),
    ({"usage": XAI}, WRITTEN | KINDS), ({"usageMetadata": GEMINI}, WHOLE | {"reasoning_tokens": 10}),
])  # fmt: skip
def test_the_tokens_of_each_provider_are_the_same(body: dict[str, Any], expected: dict[str, int]) -> None:
    assert read_usage(body).tokens == TokenUsage(**expected)


def test_parts_never_exceed_the_whole() -> None:
    details = {"cached_tokens": 9, "cache_write_tokens": 9}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": details, "reasoning_tokens": 7}
    assert read_usage({"usage": usage}).tokens == TokenUsage(
        prompt_tokens=5, cached_tokens=5, completion_tokens=1, reasoning_tokens=1
    )


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "3"}, {"prompt_tokens": -3}, {"prompt_tokens": 3.5}, []])
def test_what_is_not_said_or_no_number_is_unknown(usage: Any) -> None:
    assert read_usage({"usage": usage}) == Reported()


@pytest.mark.parametrize(
    ("body", "headers", "usd", "source"),
    [
        ({"usage": {"cost": 0.0012}}, {}, 0.0012, "usage.cost"),
        # With keys of one's own OpenRouter bills a fee, and the provider the rest.
        (
            {"usage": {"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}},
            {},
            0.0021,
            "usage.cost",
        ),
        ({"usage": {"cost": 0.002, "cost_details": {"upstream_inference_cost": 0.002}}}, {}, 0.002, "usage.cost"),
        ({"usage": {"cost": {"request_cost": 0.005, "total_cost": 0.0061}}}, {}, 0.0061, "usage.cost.total_cost"),
        ({"usage": {"cost_in_usd_ticks": 37_756_000}}, {}, 0.0037756, "usage.cost_in_usd_ticks"),
        ({"usage": {"cost_usd_total": 0.000125}}, {}, 0.000125, "usage.cost_usd_total"),
        ({"usage": {"estimated_cost": 1e-6}}, {}, 1e-6, "usage.estimated_cost"),
        ({"smallfirst": {"cost_usd": 2e-7}}, {}, 2e-7, "smallfirst.cost_usd"),
        ({}, {"x-litellm-response-cost": "0.00042"}, 0.00042, "x-litellm-response-cost"),
        ({"usage": {"cost": 0}}, {}, 0.0, "usage.cost"),
        # LiteLLM writes 0 for a model of which it knows no price.
        ({}, {"x-litellm-response-cost": "0.0"}, None, ""),
        ({"usage": {"cost": -1}}, {"x-litellm-response-cost": "nan"}, None, ""),
        ({"usage": {"cost": "much"}}, {"x-litellm-response-cost": "None"}, None, ""),
    ],
)
def test_a_stated_cost_is_taken_with_the_place_that_states_it(
    body: dict[str, Any], headers: dict[str, str], usd: float | None, source: str
) -> None:
    found = read_usage(body, headers)
    assert (found.usd, found.source) == (usd if usd is None else pytest.approx(usd, rel=1e-12), source)


def test_the_tier_is_named_unless_it_is_the_usual_one() -> None:
    assert [read_usage({"service_tier": t}).tier for t in ("default", "auto", "flex", "Priority", None)] == [
        "",
        "",
        "flex",
        "priority",
        "",
    ]
    assert read_usage({"usage": {"service_tier": "batch", "input_tokens": 1}}).tier == "batch"


NOW = datetime(2026, 11, 27, tzinfo=UTC)
OWN = PriceBook(tokens={"gpt-4o-mini": TokenPrice(input_usd_per_mtok=1, output_usd_per_mtok=3)})
ALL_KINDS = TokenUsage(
    prompt_tokens=1_000,
    cached_tokens=400,
    cache_write_tokens=300,
    cache_write_1h_tokens=100,
    completion_tokens=60,
    reasoning_tokens=20,
)


def book(**prices: Any) -> PriceBook:
    return parse_record(PriceBook, {"tokens": prices.pop("tokens", {}), **prices}, where="task.yaml")


def test_own_price_comes_before_the_catalogue() -> None:
    # 2,000 tokens at $1 and 100 at $3 per million
    assert OWN.charge("gpt-4o-mini", tokens_of(2000, 100)).usd == pytest.approx(0.0023)
    assert OWN.charge("gpt-4o-mini", TokenUsage()).source == "task.yaml"


def test_every_kind_of_token_has_its_price_and_none_is_paid_twice() -> None:
    price = {
        "input_usd_per_mtok": 10, "cached_usd_per_mtok": 1, "cache_write_usd_per_mtok": 12.5,
        "cache_write_1h_usd_per_mtok": 20, "output_usd_per_mtok": 30, "reasoning_usd_per_mtok": 40,
        "usd_per_request": 0.002, "tiers": {"batch": 0.5},
    }  # fmt: skip
    line = book(tokens={"big": price}).charge("big", ALL_KINDS)
    # fresh 1000 - 400 - 300 = 300 at 10, 400 at 1, 200 at 12.5, 100 at 20, 40 at 30, 20 at 40, a request
    by_hand = (300 * 10 + 400 * 1 + 200 * 12.5 + 100 * 20 + 40 * 30 + 20 * 40) / 1e6
    assert line.usd == pytest.approx(by_hand + 0.002, rel=1e-12)
    assert line.rates == {
        "input": 10,
        "cached": 1,
        "cache_write": 12.5,
        "cache_write_1h": 20,
        "output": 30,
        "reasoning": 40,
        "request": 0.002,
    }
    batch = book(tokens={"big": price}).charge("big", ALL_KINDS, tier="batch")
    assert (batch.usd, batch.tier) == (pytest.approx(by_hand / 2 + 0.002, rel=1e-12), "batch")


def test_kinds_without_a_price_cost_what_others_do() -> None:
    line = book(tokens={"big": {"input_usd_per_mtok": 10, "output_usd_per_mtok": 30}}).charge("big", ALL_KINDS)
    assert line.usd == pytest.approx((1000 * 10 + 60 * 30) / 1e6, rel=1e-12)
    assert "request" not in line.rates


def test_a_tier_without_a_price_is_an_error_that_names_the_line() -> None:
    with pytest.raises(PriceUnknown, match=r"under `prices` it has no tier flex\n(.*\n)+ +tiers: \{flex: …\}"):
        OWN.charge("gpt-4o-mini", TokenUsage(prompt_tokens=1), tier="flex")


def test_unknown_price_is_an_error_that_shows_the_lines_to_write() -> None:
    with pytest.raises(PriceUnknown) as caught:
        PriceBook(source="gateway.yaml").charge('our-"70b"', tokens_of(1, 1))
    assert str(caught.value) == (
        'no price for "our-\\"70b\\"": it is not under `prices`,'
        f" and genai-prices {genai_prices.__version__} does not know it either\n"
        "  next: add its price to gateway.yaml, in USD per million tokens:\n"
        "  prices:\n"
        "    tokens:\n"
        '      "our-\\"70b\\"":\n'
        "        input_usd_per_mtok: …\n"
        "        output_usd_per_mtok: …"
    )


def test_a_machine_is_paid_for_idle_time_too_and_its_line_names_it() -> None:
    # half an hour at $0.60 per hour, useful for half of the time: $0.30 of work costs $0.60
    assert MachinePrice(usd_per_hour=0.60, utilisation=0.5).cost_usd(1800) == pytest.approx(0.60)
    line = MachinePrice(usd_per_hour=3.6, utilisation=1.0, name="gpu").charge("big", 2.0)
    assert (line.usd, line.machine, line.source) == (pytest.approx(0.002), "gpu", "prices.machines.gpu")
    assert (line.basis, line.busy_s, line.rates) == ("machine time", 2.0, {"hour": 3.6, "utilisation": 1.0})
    with pytest.raises(ConfigError, match=r'no machine "gpus" under prices\.machines — did you mean "gpu"'):
        book(machines={"gpu": {"usd_per_hour": 2}}).machine_named("gpus")
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(pydantic.ValidationError, match="utilisation"):
            MachinePrice(utilisation=wrong)


def test_catalogue_prices_a_known_model() -> None:
    line = PriceBook().charge("gpt-4o-mini", TokenUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000), at=NOW)
    assert line.usd == pytest.approx(0.75)  # list price $0.15 and $0.60 per million
    assert line.rates == {"input": 0.15, "output": 0.6}
    assert line.source == f"genai-prices {genai_prices.__version__}: openai/gpt-4o-mini"


@pytest.mark.parametrize("tier", ["", "batch", "flex", "priority"])
@pytest.mark.parametrize("n_prompt", [900, 200_000, 250_000])  # a longer prompt than 200,000 costs more a token
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


HOSTED = Charge(
    model="big",
    usd=0.00205,
    basis="tokens",
    tokens=TokenUsage(prompt_tokens=1000, cached_tokens=800, completion_tokens=5),
    tier="flex",
    source="task.yaml",
    rates={"input": 2.0, "output": 10.0},
)


def test_an_unknown_cost_is_not_a_cost_of_nothing() -> None:
    lost = stated("big", None)
    assert (total_usd([HOSTED, lost]), known_usd([HOSTED, lost])) == (0.00205, 0.00205)
    assert (total_usd([lost]), known_usd([lost]), known_usd([])) == (0.0, None, 0.0)


def test_the_ledger_keeps_what_differs_from_the_defaults() -> None:
    text = charges_json([HOSTED])
    assert text is not None
    assert [Charge.model_validate(one) for one in json.loads(text)] == [HOSTED]
    assert '"purpose"' not in text
    assert charges_json([]) is None


def test_a_line_in_words_names_tokens_tier_price_and_source() -> None:
    assert HOSTED.in_words == (
        "$0.0021 for answer by big: 1,000 tokens read (800 cached), 5 written, flex tier,"
        " at USD 2 input, 10 output, task.yaml"
    )
    assert stated("big", None).in_words == "unknown cost for answer by big: stated by the model"

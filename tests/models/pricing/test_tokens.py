"""Every provider's usage reads the same, and a stated cost is found where it stands."""

from __future__ import annotations

from typing import Any

import pytest

from smallfirst.models.pricing.tokens import Reported, TokenUsage, read_usage, whole

OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 15,
    "total_tokens": 115,
    "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5, "image_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 10},
}
RESPONSES = {
    "input_tokens": 100,
    "output_tokens": 15,
    "input_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5, "image_tokens": 4},
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
WRITTEN, KINDS = WHOLE | {"cache_write_tokens": 5}, {"image_tokens": 4, "reasoning_tokens": 10}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"usage": OPENAI}, WRITTEN | KINDS),
        ({"usage": RESPONSES}, WRITTEN | KINDS),
        ({"usage": ANTHROPIC}, WRITTEN),
        ({"usage": BEDROCK}, WRITTEN),
        ({"usage": DEEPSEEK}, WHOLE),
        ({"usage": XAI}, WRITTEN | KINDS),
        ({"usageMetadata": GEMINI}, WHOLE | {"reasoning_tokens": 10}),
    ],
)
def test_the_tokens_of_each_provider_are_the_same(body: dict[str, Any], expected: dict[str, int]) -> None:
    assert read_usage(body).tokens == TokenUsage(**expected)


def test_parts_never_exceed_the_whole() -> None:
    details = {"cached_tokens": 9, "cache_write_tokens": 9, "image_tokens": 9}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": details, "reasoning_tokens": 7}
    assert read_usage({"usage": usage}).tokens == TokenUsage(
        prompt_tokens=5, cached_tokens=5, image_tokens=5, completion_tokens=1, reasoning_tokens=1
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
        ({"smallfirst": {"cost_usd": 2e-7}}, {"x-smallfirst-cost-usd": "0.000000200"}, 2e-7, "smallfirst.cost_usd"),
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


def test_a_later_part_of_a_stream_completes_an_earlier_one() -> None:
    head, usage = Reported(usd=0.5, source="x-litellm-response-cost"), TokenUsage(prompt_tokens=3)
    assert head.then(Reported(usage, "flex")) == Reported(usage, "flex", 0.5, "x-litellm-response-cost")
    assert head.then(Reported(usd=0.25, source="usage.cost")).usd == 0.25


def test_numbers_in_tables() -> None:
    assert [whole(v) for v in (3, "3", 3.0, "3.0")] == [3, 3, 3, 3]
    assert [whole(v) for v in (None, "", "many", -1, True, float("nan"), float("inf"))] == [None] * 7

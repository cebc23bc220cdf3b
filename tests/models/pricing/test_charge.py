"""Lines of a bill: sums, purposes, JSON and words."""

from __future__ import annotations

import json
from datetime import date

import pytest

from smallfirst.models.pricing.charge import Charge, charges_json, itemized, known_usd, stated, total_usd, with_purpose
from smallfirst.models.pricing.prices import MachinePrice
from smallfirst.models.pricing.tokens import TokenUsage

HOSTED = Charge(
    model="big",
    usd=0.00205,
    basis="tokens",
    tokens=TokenUsage(prompt_tokens=1000, cached_tokens=800, completion_tokens=5),
    tier="flex",
    source="task.yaml",
    price_date=date(2026, 11, 1),
    rates={"input": 2.0, "output": 10.0},
)


def test_an_unknown_cost_is_not_a_cost_of_nothing() -> None:
    lost = stated("big", None)
    assert (total_usd([HOSTED, lost]), known_usd([HOSTED, lost])) == (0.00205, 0.00205)
    assert (total_usd([lost]), known_usd([lost]), known_usd([])) == (0.0, None, 0.0)


def test_a_cost_without_lines_is_one_line_that_says_so() -> None:
    assert itemized("big", 0.5) == (Charge(model="big", usd=0.5, basis="billed", source="stated by the model"),)
    assert itemized("big", 0.0) == ()
    assert itemized("big", 0.5, (HOSTED,)) == (HOSTED,)


def test_only_lines_of_an_answer_get_another_purpose() -> None:
    audit = HOSTED.model_copy(update={"purpose": "audit"})
    assert [line.purpose for line in with_purpose([HOSTED, audit], "draft")] == ["draft", "audit"]


def test_the_ledger_keeps_what_differs_from_the_defaults() -> None:
    text = charges_json([HOSTED])
    assert text is not None
    assert [Charge.model_validate(one) for one in json.loads(text)] == [HOSTED]
    assert '"purpose"' not in text
    assert charges_json([]) is None


def test_busy_time_pays_for_idle_time_as_well() -> None:
    line = MachinePrice(usd_per_hour=0.36, utilisation=0.5).charge("small", 2.0, TokenUsage(prompt_tokens=7))
    assert (line.usd, line.basis, line.busy_s) == (pytest.approx(0.0004), "machine time", 2.0)
    assert line.rates == {"hour": 0.36, "utilisation": 0.5}
    assert line.in_words == (
        "$0.00040 for answer by small: 2 s of this machine, 7 tokens read, 0 written"
        " at $0.36 an hour, 50% of it used (prices.machine)"
    )


def test_a_line_in_words_names_tokens_tier_price_and_source() -> None:
    assert HOSTED.in_words == (
        "$0.0021 for answer by big: 1,000 tokens read (800 cached), 5 written, flex tier"
        " at USD per million tokens: input 2, output 10 (task.yaml of 2026-11-01)"
    )
    fee = Charge(model="big", usd=0.005, basis="tokens", rates={"input": 1.0, "request": 0.005})
    assert fee.in_words.endswith(" at USD per million tokens: input 1; $0.005 a request")
    assert stated("big", None).in_words == "unknown cost for answer by big: stated (stated by the model)"

"""The promise: what may be asked for, and how it reads."""

from __future__ import annotations

import pytest

from smallfirst.errors import ConfigError
from smallfirst.records import parse_record
from smallfirst.routing.certificate.guarantee import Guarantee


def test_the_plain_promise_is_about_wrong_answers_alone() -> None:
    assert Guarantee().limits == {"wrong": 0.05}
    assert Guarantee(at_most_wrong=0.075, confidence=0.975).in_words == "at most 7.5 % of kept answers wrong (97.5 %)"


def test_every_limit_is_said_in_its_own_unit() -> None:
    everything = Guarantee(at_most_below_large=0.01, at_most_usd_per_1k=2, p95_under_ms=300, at_most_escalated=0.2)
    assert everything.in_words == (
        "at most 5 % of kept answers wrong, at most 1 point less accurate than the large model, at most $2 per 1,000 "
        "requests, 95 % of requests under 300 ms, at most 20 % of requests sent to the large model (95 %)"
    )
    assert "2.5 points" in Guarantee(at_most_below_large=0.025).in_words
    assert Guarantee(per_class=True).in_words == "at most 5 % of kept answers wrong of each promised label (95 %)"


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"at_most_wrong": None}, "a promise needs a limit"),
        ({"at_most_wrong": None, "per_class": True}, "a promise needs a limit"),
        ({"at_most_usd_per_1k": 2, "per_class": True}, "can have no other limit beside it"),
        ({"at_most_escalated": 1.5}, "at_most_escalated: Input should be less than 1"),
        ({"at_most_usd": 2}, 'did you mean "at_most_usd_per_1k"'),
    ],
)
def test_a_promise_that_cannot_be_is_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse_record(Guarantee, values, where="task.yaml")

"""Verdicts: overrides, the table for the terminal, and verdicts of older versions."""

import pytest
from fixtures.gate import evaluation

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.verdict import Verdict, nearest_to_passing, override

GATE = Gate(accuracy_at_least=0.8, p95_ms_at_most=1)


def verdict(candidate: str = "small", right: int = 90, gate: Gate = GATE) -> Verdict:
    return gate.check(
        evaluation([True] * right + [False] * (100 - right), candidate=candidate, probes_ms=(9.0,) * 100), large=None
    )


@pytest.mark.parametrize(
    ("right", "nearest"), [((70, 88, 79), "encoder"), ((70, 60, 79), "small"), ((85, 79, 99), "small")]
)
def test_the_nearest_misses_fewest_checks_and_then_by_least(right: tuple[int, ...], nearest: str) -> None:
    names = ("words", "encoder", "small")
    verdicts = [verdict(name, n) for name, n in zip(names, right, strict=True)]  # all miss the latency alike
    assert nearest_to_passing(verdicts).candidate == nearest


def test_an_override_is_signed_and_keeps_the_failed_checks() -> None:
    [signed] = override([verdict()], "small", by=" Ada ", because="pilot with ten users")
    assert (signed.passed, signed.signed_by, signed.because) == (True, "Ada", "pilot with ten users")
    assert signed.signed_at is not None
    assert signed.checks == verdict().checks
    assert parse_record(Verdict, signed.model_dump(), where="stored") == signed


def test_nobody_overrides_twice_or_without_need() -> None:
    signed = override([verdict()], "small", by="Ada", because="pilot")
    with pytest.raises(ConfigError, match="small was already overridden by Ada"):
        override(signed, "small", by="Bob", because="me too")
    with pytest.raises(ConfigError, match="small already passes its gate"):
        override([verdict(gate=Gate(accuracy_at_least=0.5))], "small", by="Ada", because="sure")


@pytest.mark.parametrize("changes", [{"passed": True}, {"passed": True, "checks": ()}])
def test_a_verdict_cannot_claim_what_its_checks_deny(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="passed must be true exactly if every check passed"):
        parse_record(Verdict, verdict().model_dump() | changes, where="forged")


def test_one_verdict_of_a_run_is_overridden_and_the_others_stay() -> None:
    run = [verdict("words"), verdict("small")]
    words, small = override(run, "small", by="Ada", because="pilot")
    assert words == run[0]
    assert (small.candidate, small.signed_by, small.because) == ("small", "Ada", "pilot")
    with pytest.raises(ConfigError, match='no verdict on "smal" to override — did you mean "small"'):
        override(run, "smal", by="Ada", because="pilot")
    with pytest.raises(ConfigError, match=r"smallfirst gate task\.yaml"):
        override([], "small", by="Ada", because="pilot")

"""Verdicts: who comes nearest to passing, and the table for the terminal."""

from __future__ import annotations

import pytest
from fixtures.gate import evaluation

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.verdict import (
    Verdict,
    format_verdict,
    nearest_to_passing,
)

GATE = Gate(accuracy_at_least=0.8, p95_ms_at_most=1)


def verdict(candidate: str = "small", right: int = 90, gate: Gate = GATE) -> Verdict:
    return gate.check(
        evaluation([True] * right + [False] * (100 - right), candidate=candidate, probes_ms=(9.0,) * 100),
        large=None,
    )


@pytest.mark.parametrize(
    ("right", "nearest"),
    [((70, 88, 79), "encoder"), ((70, 60, 79), "small"), ((85, 79, 99), "small")],
)
def test_the_nearest_misses_fewest_checks_and_then_by_least(right: tuple[int, ...], nearest: str) -> None:
    names = ("words", "encoder", "small")
    verdicts = [verdict(name, n) for name, n in zip(names, right, strict=True)]  # all miss the latency alike
    assert nearest_to_passing(verdicts).candidate == nearest


@pytest.mark.parametrize("changes", [{"passed": True}, {"passed": True, "checks": ()}])
def test_a_verdict_cannot_claim_what_its_checks_deny(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="passed must be true exactly if every check passed"):
        parse_record(Verdict, verdict().model_dump() | changes, where="forged")


def test_the_table_aligns_the_checks() -> None:
    table = (
        "  pass  accuracy at least 0.800   0.900 [0.826, 0.945] n=100\n"
        "  FAIL  p95 latency at most 1 ms  9.0 [9.0, 9.0] ms n=100\n"
        "        a smaller model or a shorter prompt would help"
    )
    assert format_verdict(verdict()) == f"small: FAIL\n{table}"

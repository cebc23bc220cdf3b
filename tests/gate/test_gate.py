"""The gate's arithmetic, its advice, and who may sign."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.errors import ConfigError
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.gate.gate import (
    CheckResult,
    Gate,
    Verdict,
    check,
    format_verdict,
    override,
    override_candidate,
    smallest_passing,
)
from smallfirst.records import parse_record
from smallfirst.stats.intervals import Estimate, wilson

NOON = datetime(2030, 1, 2, 12, tzinfo=timezone(timedelta(hours=2)))


def evaluation(
    right: int,
    n: int,
    *,
    candidate: str = "small",
    wrong_first: bool = False,
    f1: Estimate | None = None,
    offset: int = 0,
) -> Evaluation:
    """`right` of `n` rows right; the wrong ones come last, or first. Keys count from `offset`."""
    flags = [True] * right + [False] * (n - right)
    rows = tuple(
        EvaluatedRow(
            key=f"row-{offset + i}",
            text="?",
            gold="a" if i % 2 else "b",
            answer=("a" if i % 2 else "b") if ok else ("b" if i % 2 else "a"),
            correct=ok,
            confidence=None,
            stage=candidate,
            certified=False,
            latency_ms=5.0,
            cost_usd=0.00001,
        )
        for i, ok in enumerate(reversed(flags) if wrong_first else flags)
    )
    share = right / n if n else 0.0
    return Evaluation(
        candidate=candidate,
        model=candidate,
        task="tickets",
        split="test",
        dataset_fingerprint="d",
        rows=rows,
        accuracy=Estimate(value=share, low=0.0, high=1.0, n=n),  # the gate counts the rows itself
        measures={"macro_f1": f1 or Estimate(value=share, low=share, high=share, n=n)},
        cost_usd_per_1k=0.01 if n else 0.0,
        p50_ms=5.0 if n else 0.0,
        p95_ms=9.0 if n else 0.0,
        requests_per_s=None,
    )


def only_line(gate: Gate, candidate: Evaluation, **more: object) -> CheckResult:
    verdict = check(gate, candidate, **{"large": None, **more})  # type: ignore[arg-type]
    assert verdict.passed == verdict.lines[0].passed
    assert len(verdict.lines) == 1
    return verdict.lines[0]


def test_accuracy_passes_when_the_lower_end_of_the_interval_reaches_the_bar() -> None:
    # Wilson for 90 of 100 by hand: z² = 3.8415, centre = (0.9 + 0.0192)/1.0384 = 0.8852,
    # half = 1.96/1.0384 · √(0.09/100 + 3.8415/40000) = 0.0596, so [0.826, 0.945].
    line = only_line(Gate(accuracy_at_least=0.825), evaluation(90, 100))
    assert (line.bar, line.measured, line.passed) == ("accuracy at least 0.825", "0.900 [0.826, 0.945] n=100", True)
    assert (line.advice, line.found) == ("", wilson(90, 100))
    assert not only_line(Gate(accuracy_at_least=0.83), evaluation(90, 100)).passed


def test_few_rows_fail_with_the_number_of_rows_that_would_show_it() -> None:
    line = only_line(Gate(accuracy_at_least=0.85), evaluation(44, 48))
    assert line.measured == "0.917 [0.804, 0.967] n=48"
    # Wilson at 11/12 right: 107 of 117 starts at 0.8496, 108 of 118 at 0.8508: 70 rows more.
    assert line.advice == "48 examples cannot show this; label about 70 more"


def test_a_value_below_the_bar_is_not_sent_to_label_more_rows() -> None:
    line = only_line(Gate(accuracy_at_least=0.95), evaluation(44, 48))
    assert line.advice == "the measured value misses the bar: more rows will not help, a better model would"


def test_a_value_on_the_bar_can_be_shown_by_no_number_of_rows() -> None:
    line = only_line(Gate(accuracy_at_least=0.9), evaluation(90, 100))
    assert line.advice == "100 examples cannot show this, nor can any number: too close to the bar"


def test_looking_at_more_candidates_widens_the_interval_and_says_so() -> None:
    # 0.05 / 5 = 0.01, z = 2.576: centre (0.9 + 0.0332)/1.0663 = 0.8751, half 0.0789.
    gate, rows = Gate(accuracy_at_least=0.80), evaluation(90, 100)
    assert only_line(gate, rows).passed
    line = only_line(gate, rows, comparisons_made=5)
    assert not line.passed
    assert line.measured == "0.900 [0.796, 0.954] n=100 (99 % interval: 5 candidates looked at)"


def test_macro_f1_takes_the_interval_of_the_evaluation() -> None:
    f1 = Estimate(value=0.90, low=0.86, high=0.93, n=100)
    assert only_line(Gate(macro_f1_at_least=0.86), evaluation(90, 100, f1=f1)).passed
    line = only_line(Gate(macro_f1_at_least=0.88), evaluation(90, 100, f1=f1))
    assert line.measured == "0.900 [0.860, 0.930] n=100"
    # The distance to the low end must shrink from 0.04 to 0.02: four times the rows.
    assert line.advice == "100 examples cannot show this; label about 300 more"


def test_a_stored_interval_is_widened_when_the_level_is_not_95_percent() -> None:
    # z = 2.2414 instead of 1.9600: 0.04 becomes 0.0457.
    f1 = Estimate(value=0.90, low=0.86, high=0.93, n=100)
    line = only_line(Gate(macro_f1_at_least=0.855), evaluation(90, 100, f1=f1), comparisons_made=2)
    assert not line.passed
    assert line.measured == "0.900 [0.854, 0.934] n=100 (97.5 % interval: 2 candidates looked at)"


def test_without_a_large_model_the_comparison_fails_and_asks_for_it() -> None:
    line = only_line(Gate(not_worse_than_large_by=0.02), evaluation(100, 100), large=None)
    assert line == CheckResult(
        bar="at most 0.020 less accurate than the large model",
        measured="the large model was not measured",
        passed=False,
        advice="measure the large model on the same rows, or on a sample of them",
    )


def test_the_large_model_is_not_worse_than_itself() -> None:
    large = evaluation(10, 20, candidate="large")
    line = only_line(Gate(not_worse_than_large_by=0.0), large, large=large)
    assert (line.passed, line.measured) == (True, "is the large model itself n=20")


def test_latency_and_cost_are_compared_as_they_are() -> None:
    rows = evaluation(9, 10)
    assert only_line(Gate(p95_ms_at_most=9.0), rows).passed
    assert only_line(Gate(cost_usd_per_1k_at_most=0.01), rows).passed
    slow = only_line(Gate(p95_ms_at_most=8.9), rows)
    assert (slow.bar, slow.measured) == ("p95 latency at most 8.9 ms", "9.0 ms n=10")
    dear = only_line(Gate(cost_usd_per_1k_at_most=0.009), rows)
    assert (dear.bar, dear.measured) == ("cost at most $0.009 per 1,000", "$0.0100 per 1,000 n=10")
    assert not slow.passed
    assert not dear.passed
    assert slow.advice == dear.advice == "a smaller model or a shorter prompt would help"


@pytest.mark.parametrize(
    "gate",
    [
        Gate(accuracy_at_least=0.0001),
        Gate(macro_f1_at_least=0.0),
        Gate(not_worse_than_large_by=1.0),
        Gate(score_not_worse_than_large_by=1.0),
        Gate(cheaper_than_large_by=0.0),
        Gate(p95_ms_at_most=1000),
        Gate(cost_usd_per_1k_at_most=1000),
    ],
)
def test_an_empty_evaluation_passes_no_bar(gate: Gate) -> None:
    assert not check(gate, evaluation(0, 0), large=evaluation(1, 1, candidate="large")).passed


def test_one_missed_bar_of_several_fails_the_verdict() -> None:
    gate = Gate(accuracy_at_least=0.5, p95_ms_at_most=1.0)
    verdict = check(gate, evaluation(90, 100), large=None)
    assert [line.passed for line in verdict.lines] == [True, False]
    assert not verdict.passed


def test_an_injected_leak_fails_the_gate_and_says_which_rows_to_take_out() -> None:
    texts = [f"request number {i} about topic {i * 7}" for i in range(40)]
    train, test = _dataset("train.jsonl", texts[:30]), _dataset("test.jsonl", texts[30:])
    all_right = evaluation(10, 10)
    rows = [row.model_copy(update={"key": e.key}) for row, e in zip(all_right.rows, test.examples, strict=True)]
    candidate = all_right.model_copy(update={"rows": tuple(rows), "dataset_fingerprint": test.content_fingerprint})
    gate = Gate(leaks_at_most=0.0)
    assert only_line(gate, candidate, leaks=find_leaks(train, test)).passed

    leaky = _dataset("train.jsonl", [*texts[:30], texts[34].upper() + "!"])
    line = only_line(gate, candidate, leaks=find_leaks(leaky, test))
    assert not line.passed
    assert line.measured == (
        "1 of 10 = 0.1000 (1 folded); accuracy 1.000 [0.722, 1.000] n=10, without them 1.000 [0.701, 1.000] n=9"
    )
    assert line.advice == (
        "1 test row repeats a training row: test.jsonl:5 is train.jsonl:31; "
        "take those out of the training rows, then  smallfirst run task.yaml"
    )


def test_all_bars_stand_in_one_verdict_in_a_fixed_order() -> None:
    gate = Gate(
        leaks_at_most=0,
        retention_at_least=0.9,
        cheaper_than_large_by=0.5,
        cost_usd_per_1k_at_most=1,
        p95_ms_at_most=100,
        p50_ms_at_most=50,
        score_not_worse_than_large_by=0.1,
        not_worse_than_large_by=0.1,
        parts_at_least={"a": 0.5},
        each_part_at_least=0.5,
        measures_at_most={"invented": 0.1},
        measures_at_least={"token_f1": 0.5},
        macro_f1_at_least=0.5,
        accuracy_at_least=0.5,
    )
    verdict = check(gate, evaluation(90, 100), large=None)
    assert [(line.passed, line.bar) for line in verdict.lines] == [
        (True, "accuracy at least 0.500"),
        (True, "macro-F1 at least 0.500"),
        (False, "token_f1 at least 0.500"),
        (False, "invented at most 0.1"),
        (False, "recall of each part at least 0.500"),
        (False, 'recall of "a" at least 0.500'),
        (False, "at most 0.100 less accurate than the large model"),
        (False, "score at most 0.100 below the large model's"),
        (True, "p50 latency at most 50 ms"),
        (True, "p95 latency at most 100 ms"),
        (True, "cost at most $1 per 1,000"),
        (False, "at least 0.500 cheaper than the large model"),
        (False, "general ability kept at least 0.900"),
        (False, "at most 0 of test rows also in the training rows"),
    ]
    assert all(line.advice for line in verdict.missed)


def test_how_many_rows_a_part_needs_is_no_bar_of_its_own() -> None:
    assert not Gate(part_rows=50).has_checks
    assert Gate(leaks_at_most=0.0).has_checks
    assert Gate(parts_at_least={"a": 0.0}).has_checks


@pytest.mark.parametrize("made", [0, -1])
def test_fewer_than_one_comparison_is_refused(made: int) -> None:
    with pytest.raises(ConfigError, match=f"comparisons_made must be at least 1, got {made}"):
        check(Gate(accuracy_at_least=0.5), evaluation(9, 10), large=None, comparisons_made=made)


@pytest.mark.parametrize(
    ("name", "bar"),
    [
        ("accuracy_at_least", float("nan")),
        ("measures_at_most", {"missing": float("nan")}),
        ("p95_ms_at_most", 0),
        ("part_rows", 0),
        ("leaks_at_most", -0.1),
    ],
)
def test_a_bar_out_of_range_is_refused(name: str, bar: object) -> None:
    with pytest.raises(ConfigError, match=name):
        parse_record(Gate, {name: bar}, where="task.yaml")


def test_a_gate_without_bars_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check(Gate(), evaluation(9, 10), large=None)
    assert str(caught.value) == (
        "the gate declares no bar, so anything would pass\n"
        "  next: declare at least one in task.yaml, for example  gate: {accuracy_at_least: 0.9}"
    )


def test_a_bar_in_percent_is_refused() -> None:
    with pytest.raises(ConfigError, match="accuracy_at_least: Input should be less than or equal"):
        parse_record(Gate, {"accuracy_at_least": 91}, where="task.yaml")


def test_the_smallest_passing_candidate_is_the_first_of_the_ladder() -> None:
    gate = Gate(accuracy_at_least=0.8)
    ladder = [
        check(gate, evaluation(right, 100, candidate=name), large=None)
        for name, right in (("words", 70), ("encoder", 95), ("small", 99))
    ]
    assert smallest_passing(ladder) == "encoder"
    assert smallest_passing(ladder[:1]) is None


def test_an_override_is_signed_and_keeps_the_failing_lines() -> None:
    failed = check(Gate(accuracy_at_least=0.99), evaluation(90, 100), large=None)
    signed = override(failed, by=" Ada ", because="pilot with ten users")
    assert (signed.passed, signed.signed_by, signed.because) == (
        True,
        "Ada",
        "pilot with ten users",
    )
    assert signed.lines == failed.lines
    assert parse_record(Verdict, signed.model_dump(), where="stored") == signed


@pytest.mark.parametrize(("by", "because"), [("", "why"), ("Ada", "  ")])
def test_an_override_without_a_name_or_a_reason_is_refused(by: str, because: str) -> None:
    failed = check(Gate(accuracy_at_least=0.99), evaluation(90, 100), large=None)
    with pytest.raises(ConfigError, match="an override needs a name and a reason"):
        override(failed, by=by, because=because)


def test_a_passing_verdict_needs_no_signature() -> None:
    passing = check(Gate(accuracy_at_least=0.5), evaluation(90, 100), large=None)
    with pytest.raises(ConfigError, match="small already passes its gate"):
        override(passing, by="Ada", because="sure")


def test_a_verdict_cannot_claim_what_its_lines_deny() -> None:
    failed = check(Gate(accuracy_at_least=0.99), evaluation(90, 100), large=None)
    with pytest.raises(ConfigError, match="passed must say whether"):
        parse_record(Verdict, failed.model_dump() | {"passed": True}, where="forged")
    with pytest.raises(ConfigError, match="passed must say whether"):
        parse_record(Verdict, failed.model_dump() | {"passed": True, "lines": ()}, where="forged")


def test_explain_aligns_the_lines_and_shows_who_signed() -> None:
    gate = Gate(accuracy_at_least=0.8, p95_ms_at_most=1)
    verdict = check(gate, evaluation(90, 100), large=None)
    table = (
        "  pass  accuracy at least 0.800   0.900 [0.826, 0.945] n=100\n"
        "  FAIL  p95 latency at most 1 ms  9.0 ms n=100\n"
        "        a smaller model or a shorter prompt would help"
    )
    assert format_verdict(verdict) == "small: FAIL\n" + table
    signed = override(verdict, by="Ada", because="night batch", at=NOON)
    assert format_verdict(signed) == (
        "small: passed by signature, 1 of 2 bars missed\n"
        + table
        + "\n  signed by Ada at 2030-01-02T10:00:00+00:00: night batch"
    )


def test_one_verdict_of_a_run_is_signed_and_the_others_stay() -> None:
    gate = Gate(accuracy_at_least=0.99)
    run = [check(gate, evaluation(90, 100, candidate=name), large=None) for name in ("words", "small")]
    words, small = override_candidate(run, "small", by="Ada", because="pilot", at=NOON)
    assert words == run[0]
    assert small == override(run[1], by="Ada", because="pilot", at=NOON)
    assert smallest_passing([words, small]) == "small"
    with pytest.raises(ConfigError, match='no verdict on "smal" to sign — did you mean "small"'):
        override_candidate(run, "smal", by="Ada", because="pilot")
    with pytest.raises(ConfigError, match=r"smallfirst gate task\.yaml"):
        override_candidate([], "small", by="Ada", because="pilot")


def test_nobody_signs_twice_or_without_a_timezone() -> None:
    failed = check(Gate(accuracy_at_least=0.99), evaluation(90, 100), large=None)
    signed = override(failed, by="Ada", because="pilot", at=NOON)
    with pytest.raises(ConfigError, match="small is already signed for by Ada"):
        override(signed, by="Bob", because="me too")
    with pytest.raises(ConfigError, match="needs a timezone"):
        override(failed, by="Ada", because="pilot", at=datetime(2030, 1, 2))
    assert override(failed, by="Ada", because="pilot").signed_at is not None


def _dataset(path: str, texts: list[str]) -> Dataset:
    return Dataset(
        name=path,
        examples=tuple(
            Example(messages=(Message(role="user", content=t),), answer="a", shape="label", path=path, line=i)
            for i, t in enumerate(texts, start=1)
        ),
    )

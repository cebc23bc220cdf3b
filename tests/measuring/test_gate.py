"""The gate: each threshold by the worse end of its interval, by hand; levels, advice, copies, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from fixtures.gate import evaluation
from scipy.stats import norm

from smallfirst.base.errors import ConfigError
from smallfirst.base.stats.intervals import Estimate, mean_interval, wilson
from smallfirst.data.copies import Leak, LeakReport
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, RoutedThresholds, run_checks
from smallfirst.measuring.verdict import CheckResult
from smallfirst.tasks.task import PartCounts

ONE = ConfidenceLevel(1)
FEW = "so few rows cannot tell: more are needed"
MARGINS = ("not_worse_than_large_by", "score_not_worse_than_large_by")


def of(right: int, n: int, **fields: Any) -> Evaluation:
    """An evaluation with `right` of `n` rows right, the wrong ones last."""
    return evaluation([True] * right + [False] * (n - right), **fields)


def check(
    candidate: Evaluation, level: ConfidenceLevel = ONE, large: Evaluation | None = None, **thresholds: Any
) -> CheckResult:
    gate = Gate(**thresholds)
    (result,) = run_checks(gate, CheckInputs(candidate, level, large, gate.part_rows))
    return result


def stored(value: float, low: float, high: float, n: int, name: str = "token_f1") -> Evaluation:
    return of(n, n, measures={name: Estimate(value=value, low=low, high=high, n=n)})


# The verdict


def test_accuracy_passes_when_the_lower_end_of_the_interval_reaches_the_threshold() -> None:
    # Wilson for 90 of 100 by hand: z² = 3.8415, centre = (0.9 + 0.0192)/1.0384 = 0.8852,
    # half = 1.96/1.0384 · √(0.09/100 + 3.8415/40000) = 0.0596, so [0.826, 0.945]; the rows count, not what is stored.
    forged = of(90, 100, accuracy=Estimate(value=1.0, low=1.0, high=1.0, n=100))
    assert check(forged, accuracy_at_least=0.825) == CheckResult(
        name="accuracy_at_least",
        threshold=0.825,
        requirement="accuracy at least 0.825",
        measured="0.900 [0.826, 0.945] n=100",
        passed=True,
        estimate=wilson(90, 100),
    )
    assert not check(forged, accuracy_at_least=0.83).passed


@pytest.mark.parametrize(
    ("right", "n", "threshold", "chance", "likely"),
    [
        # At 11/12 right 70 rows more would do in one of two cases: three of four take more.
        (44, 48, 0.85, 0.75, True),
        # The value itself is the threshold: the truth is as likely below it as above.
        (90, 100, 0.9, 0.34, True),
        # 0.9 is missed by one standard error: no reason to call it hopeless.
        (87, 100, 0.9, 0.09, True),
        (44, 48, 0.99, 0.0, False),
    ],
)
def test_a_failed_check_says_how_likely_more_rows_are_to_show_it(
    right: int, n: int, threshold: float, chance: float, likely: bool
) -> None:
    result = check(of(right, n), accuracy_at_least=threshold)
    assert result.chance == pytest.approx(chance, abs=0.02)
    assert (result.more_rows is not None) == likely
    assert result.advice == FEW if likely else result.advice.startswith("more test rows are unlikely to show it (0 %)")


def test_rows_that_decide_nothing_foretell_how_many_more_are_needed() -> None:
    alone, both = (
        Gate(accuracy_at_least=0.8).check(of(27, 30), large=None, comparisons_made=1 / 0.6, beside=beside).checks[0]
        for beside in (None, of(24, 24))
    )
    assert (alone.measured, alone.passed) == (both.measured, both.passed)
    assert (alone.more_rows, both.more_rows) == (370, 49)


def test_all_checks_stand_in_one_verdict_in_a_fixed_order_each_with_advice() -> None:
    gate = Gate(
        cost_usd_per_1k_at_most=1, p95_ms_at_most=100, score_not_worse_than_large_by=0.1,
        not_worse_than_large_by=0.1, parts_at_least={"a": 0.5}, each_part_at_least=0.5,
        measures_at_most={"invented": 0.1}, measures_at_least={"macro_f1": 0.5, "token_f1": 0.5},
        accuracy_at_least=0.5,
    )  # fmt: skip
    verdict = gate.check(of(90, 100), large=None)
    assert [(result.passed, result.requirement) for result in verdict.checks] == [
        (True, "accuracy at least 0.500"),
        (True, "macro_f1 at least 0.500"),
        (False, "token_f1 at least 0.500"),
        (False, "invented at most 0.1"),
        (True, "recall of each part at least 0.500"),
        (False, 'recall of "a" at least 0.500'),
        (False, "at most 0.100 less accurate than the large model"),
        (False, "score at most 0.100 below the large model's"),
        (True, "p95 latency at most 100 ms"),
        (True, "cost at most $1 per 1,000"),
    ]
    assert not verdict.passed
    assert all(result.advice for result in verdict.failed_checks)


def test_a_gate_without_a_threshold_or_a_comparison_is_refused() -> None:
    with pytest.raises(ConfigError, match="the gate declares no threshold, so anything would pass"):
        Gate(part_rows=50).check(of(9, 10), large=None)
    with pytest.raises(ConfigError, match="comparisons_made must be at least 1, got 0"):
        Gate(accuracy_at_least=0.5).check(of(9, 10), large=None, comparisons_made=0)


# Levels and advice


def test_the_level_is_shared_among_candidates_and_parts_and_that_is_said() -> None:
    level = ConfidenceLevel(5, parts=10)
    assert level.confidence == pytest.approx(0.999)
    assert level.z == pytest.approx(3.2905, abs=1e-4)  # the normal table: 0.9995 at 3.2905
    assert level.note == " (99.9 % interval: plans and 10 parts share the level)"
    # 0.05 / 5 = 0.01, z = 2.576: centre (0.9 + 0.0332)/1.0663 = 0.8751, half 0.0789.
    result = check(of(90, 100), ConfidenceLevel(5), accuracy_at_least=0.80)
    assert (result.passed, check(of(90, 100), accuracy_at_least=0.80).passed) == (False, True)
    assert result.measured == "0.900 [0.796, 0.954] n=100 (99 % interval: plans share the level)"


def test_a_stored_interval_is_widened_by_the_ratio_of_the_quantiles() -> None:
    ratio = norm.ppf(1 - 0.025 / 5) / norm.ppf(0.975)
    wide = ConfidenceLevel(5).widen(Estimate(value=0.8, low=0.7, high=0.95, n=50))
    assert (wide.low, wide.high) == pytest.approx((0.8 - 0.1 * ratio, 0.8 + 0.15 * ratio))
    # It goes below zero only for what was there before.
    assert ConfidenceLevel(20).widen(Estimate(value=0.05, low=0.01, high=0.2, n=20)).low == 0.0
    assert ConfidenceLevel(20).widen(Estimate(value=0.1, low=-0.2, high=0.4, n=20)).low < -0.2


# Metrics of the task, labels and fields


@pytest.mark.parametrize(
    ("candidate", "thresholds", "passed", "measured"),
    [
        (stored(0.9, 0.86, 0.93, 100), {"measures_at_least": {"token_f1": 0.86}}, True, "0.900 [0.860, 0.930] n=100"),
        (stored(0.9, 0.86, 0.93, 100), {"measures_at_least": {"token_f1": 0.87}}, False, "0.900 [0.860, 0.930] n=100"),
        # 20 / (20 + 3.8415) = 0.839: few perfect rows show no more than so many can.
        (stored(1.0, 1.0, 1.0, 20), {"measures_at_least": {"token_f1": 0.9}}, False, "1.000 [0.839, 1.000] n=20"),
        (stored(0.02, 0.01, 0.04, 400), {"measures_at_most": {"token_f1": 0.04}}, True, "0.020 [0.010, 0.040] n=400"),
        (stored(0.02, 0.01, 0.04, 400), {"measures_at_most": {"token_f1": 0.03}}, False, "0.020 [0.010, 0.040] n=400"),
        (stored(0.0, 0.0, 0.0, 20), {"measures_at_most": {"token_f1": 0.1}}, False, "0.000 [0.000, 0.161] n=20"),
        (stored(2.0, 1.5, 2.6, 50), {"measures_at_most": {"token_f1": 2.6}}, True, "2.000 [1.500, 2.600] n=50"),
        (stored(2.0, 1.5, 2.6, 50), {"measures_at_most": {"token_f1": 2.5}}, False, "2.000 [1.500, 2.600] n=50"),
    ],
)
def test_a_metric_is_held_by_its_worse_end(
    candidate: Evaluation, thresholds: dict[str, Any], passed: bool, measured: str
) -> None:
    result = check(candidate, **thresholds)
    assert (result.passed, result.measured) == (passed, measured)
    assert result.advice == ("" if passed else FEW)


@pytest.mark.parametrize(
    ("field", "text"), [("measures_at_least", "at least 0.500"), ("measures_at_most", "at most 0.5")]
)
def test_an_unknown_metric_fails_and_names_the_nearest_one(field: str, text: str) -> None:
    result = check(of(50, 50), **{field: {"macro_f2": 0.5}})
    assert (result.passed, result.requirement) == (False, f"macro_f2 {text}")
    assert result.measured == 'small has no metric "macro_f2" — did you mean "macro_f1"?'
    assert result.advice == 'metrics of task "parity": macro_f1'


@pytest.mark.parametrize("low", [math.nan, 0.9])
def test_a_metric_that_is_not_a_number_fails(low: float) -> None:
    for thresholds in ({"measures_at_least": {"token_f1": 0.0}}, {"measures_at_most": {"token_f1": 9}}):
        result = check(stored(math.nan, low, low, 50), **thresholds)
        assert (result.passed, result.advice.partition(":")[0]) == (False, "the value is not a number")


def parts(*counts: tuple[str, int, int], n: int = 1) -> Evaluation:
    """An evaluation with these parts: name, right, gold."""
    found = tuple(PartCounts(name=name, n_gold=gold, n_said=gold, n_right=right) for name, right, gold in counts)
    return of(n, n, parts=found)


def test_the_weakest_part_decides_at_a_level_for_all_of_them() -> None:
    candidate = parts(("pin", 95, 100), ("card", 90, 100), ("fee", 200, 200))
    # Three parts: 1 - 0.05/3, z = 2.394; 90 of 100: centre (0.9 + 0.02866)/1.05731 = 0.87832,
    # half = 2.394/1.05731 · √(0.0009 + 5.7312/40000) = 0.07313.
    low = 0.87832 - 0.07313
    assert check(candidate, each_part_at_least=low - 0.0005).passed
    result = check(candidate, each_part_at_least=low + 0.0005)
    assert (result.passed, result.advice) == (False, 'not shown by the rows there are: "card" (n=100)')
    level = "(98.33 % interval: 3 parts share the level)"
    assert result.measured == f'worst of 3 is "card": 0.900 [0.805, 0.951] n=100 {level}'


@pytest.mark.parametrize(
    ("candidate", "passed", "advice"),
    [
        (
            parts(("pin", 60, 100), ("card", 28, 30), ("fee", 500, 500)),
            False,
            'below the threshold: "pin" 0.600; not shown by the rows there are: "card" (n=30)',
        ),
        (parts(("pin", 98, 100), ("odd", 0, 4)), True, 'not checked, with fewer than 20 rows: "odd" (n=4)'),
        (parts(("odd", 4, 4)), False, 'not checked, with fewer than 20 rows: "odd" (n=4)'),
        (parts(n=50), False, "a task without labels or fields has none: remove the threshold from the gate"),
        (
            parts(*((f"p{i}", 0, 30) for i in range(8))),
            False,
            'below the threshold: "p0" 0.000, "p1" 0.000, "p2" 0.000, "p3" 0.000, "p4" 0.000, and 3 more',
        ),
    ],
)
def test_weak_parts_short_ones_and_rare_ones_are_told_apart(candidate: Evaluation, passed: bool, advice: str) -> None:
    result = check(candidate, each_part_at_least=0.8)
    assert (result.passed, result.advice, result.more_rows) == (passed, advice, None)


def test_one_named_part_needs_no_correction() -> None:
    candidate, low = parts(("pin", 90, 100), ("card", 25, 20), ("none", 0, 0)), wilson(90, 100).low
    assert check(candidate, parts_at_least={"pin": low}).passed
    assert check(candidate, parts_at_least={"pin": low + 0.001}).measured == "0.900 [0.826, 0.945] n=100"
    # A label right under another gold answer can be right more often than it was there: that counts as all.
    assert check(candidate, parts_at_least={"card": 0.5}).estimate == wilson(20, 20)
    assert check(candidate, parts_at_least={"none": 0.0}).advice == "no row was measured"
    unknown = check(of(50, 50), parts_at_least={"evem": 0.5})
    assert (unknown.passed, unknown.advice) == (False, 'its parts: "even", "odd"')
    assert unknown.measured == 'task "parity" has no part "evem" — did you mean "even"?'


# Against the large model


def test_the_rows_that_both_answered_are_compared() -> None:
    small, large = evaluation([False] * 2 + [True] * 98), of(98, 100, candidate="large")
    result, tight = (check(small, large=large, not_worse_than_large_by=margin) for margin in (0.06, 0.05))
    assert result.requirement == "at most 0.060 less accurate than the large model"
    assert (result.passed, result.measured) == (True, "0.000 [-0.053, 0.053] n=100 of 100 rows paired")
    assert (tight.passed, tight.advice, (tight.more_rows or 0) > 9) == (False, FEW, True)
    sample = of(40, 40, candidate="large", keys=[f"row{i}" for i in range(60, 100)])
    found = check(of(100, 100), large=sample, not_worse_than_large_by=0.09)
    assert (found.passed, found.measured) == (True, "0.000 [-0.088, 0.088] n=40 of 100 rows paired")
    twice = ["a", "a", *(f"row{i}" for i in range(98))]
    small, large = (of(100, 100, keys=twice, candidate=name) for name in ("small", "large"))
    assert check(small, large=large, not_worse_than_large_by=0.5).measured.endswith("n=99 of 100 rows paired")


@pytest.mark.parametrize("name", MARGINS)
def test_rows_that_only_one_of_them_answered_show_nothing(name: str) -> None:
    far = of(40, 40, candidate="large", keys=[f"other{i}" for i in range(40)])
    for large, said in ((far, "n=0 of 100 rows paired"), (None, "the large model was not measured")):
        result = check(of(100, 100), large=large, **{name: 1.0})
        assert (result.passed, result.measured) == (False, said)
        assert result.advice == "measure the large model on the same rows, or on a sample of them"


def test_scores_are_compared_by_their_mean() -> None:
    small, large = of(200, 200, scores=[0.8] * 100 + [0.6] * 100), of(200, 200, scores=[0.7] * 200)
    result = check(small, large=large, score_not_worse_than_large_by=0.02)
    # Rows differ by ±0.1: the half-width would be 0.017, but 200 rows show no better than 3.8415 / 203.8415 = 0.0188.
    assert (result.passed, result.measured) == (True, "0.000 [-0.019, 0.017] n=200 of 200 rows paired")
    assert not check(small, large=large, score_not_worse_than_large_by=0.018).passed
    few = check(of(10, 10), large=of(10, 10), score_not_worse_than_large_by=0.1)  # equal scores are no certainty
    # -3.8415 / 13.8415 = -0.278; to shrink it to 0.1 by the root of n: 10 · 2.7753² = 77.03, so 68 more at one in two.
    assert (few.passed, (few.more_rows or 0) > 68) == (False, True)
    for score in (math.nan, 1.5, -0.1):
        wild = check(of(10, 10, scores=[score] + [1.0] * 9), large=of(10, 10), score_not_worse_than_large_by=1.0)
        assert (wild.passed, wild.measured) == (False, "a score is not in [0, 1]")


# Latency and cost


def test_latency_is_compared_by_the_upper_order_statistic() -> None:
    candidate = of(10, 10, probes_ms=tuple(float(i) for i in range(1, 101)))
    # P(at most 98 of 100 are below the p95) = 0.963 and at most 99: 0.994; so the 100th value is the upper end.
    result = check(candidate, p95_ms_at_most=100)
    assert (result.passed, result.measured) == (True, "95.0 [90.0, 100.0] ms n=100")
    assert check(candidate, p95_ms_at_most=99.5).advice == FEW
    assert check(candidate, p95_ms_at_most=60).advice == "a smaller model or a shorter prompt would help"
    short = check(of(10, 10, probes_ms=(5.0,) * 71), p95_ms_at_most=100)
    assert (short.passed, short.advice) == (False, "71 requests show no upper end; ask at least 72")
    assert check(of(10, 10, probes_ms=(5.0,) * 72), p95_ms_at_most=100).passed


@pytest.mark.parametrize("n", [40, 300])
def test_a_p95_ten_percent_over_its_maximum_seldom_passes(n: int) -> None:
    draw, passed, draws = np.random.default_rng(3), 0, 300
    for _ in range(draws):  # lognormal, p95 = 110 ms; the plain p95 of 40 requests is below 100 in 0.43 of the draws
        latencies = np.exp(np.log(110) + 0.5 * (draw.standard_normal(n) - 1.6449))
        passed += check(of(1, 1, probes_ms=tuple(latencies.tolist())), p95_ms_at_most=100).passed
    assert passed / draws <= 0.025


def with_costs(one: Evaluation, usd: Any) -> Evaluation:
    rows = tuple(row.model_copy(update={"cost_usd": float(cost)}) for row, cost in zip(one.rows, usd, strict=True))
    return one.model_copy(update={"rows": rows})


def test_the_mean_cost_is_compared_by_its_upper_end() -> None:
    result = check(of(10, 10), cost_usd_per_1k_at_most=0.01)
    assert (result.passed, result.measured) == (True, "$0.0100 [0.0100, 0.0100] per 1,000 n=10")
    assert not check(of(10, 10), cost_usd_per_1k_at_most=0.009).passed
    costs = np.random.default_rng(0).exponential(1.0, 100)
    uneven, high = with_costs(of(100, 100), costs / 1000), mean_interval(costs).high
    assert not check(uneven, cost_usd_per_1k_at_most=high - 0.001).passed
    assert check(uneven, cost_usd_per_1k_at_most=high + 0.001).passed


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_was_not_measured_is_under_no_maximum() -> None:
    assert not check(of(0, 0), p95_ms_at_most=1000.0).passed
    assert not check(of(0, 0), cost_usd_per_1k_at_most=1000.0).passed
    for value in (math.nan, math.inf):
        assert not check(of(1, 1, probes_ms=(value,) * 100), p95_ms_at_most=1000.0).passed
        assert not check(of(9, 9, cost_usd_per_1k=value), cost_usd_per_1k_at_most=1000.0).passed


# Rows that repeat a training row


def clean_rows(n: int, n_copies: int, *, right: int | None = None, left_out: bool = True) -> list[CheckResult]:
    """The results on copies for a candidate whose first rows repeat a training row, in three ways."""
    whole = of(n if right is None else right, n)
    copies = tuple(
        Leak(key=f"row{i}", test=f"test.jsonl:{i + 1}", train=f"train.jsonl:{i + 71}") for i in range(n_copies)
    )
    leaks = LeakReport(n_test=n, test_fingerprint=whole.dataset_fingerprint, leaks=copies)
    clean = whole.model_copy(update={"rows": whole.rows[n_copies:]}) if left_out else None
    _, *results = Gate(accuracy_at_least=0.7).check(whole, large=None, leaks=leaks, clean=clean).checks
    return results


def test_copies_are_left_out_and_counted() -> None:
    (result,) = clean_rows(100, 20, right=80)
    assert (result.name, result.requirement) == ("clean_rows", "at least 50 test rows that repeat no training row")
    assert result.measured == (  # Wilson for 20 of 20, and 60 of 80
        "80 of 100, 20 left out; accuracy on copies 1.000 [0.839, 1.000] n=20, on the others 0.750 [0.645, 0.832] n=80"
    )
    assert clean_rows(100, 0) == []
    whole = of(80, 100)  # 40 of the 60 that repeat nothing are right: the threshold is about these
    leaks = LeakReport(
        n_test=100, test_fingerprint="f", leaks=tuple(Leak(key=f"row{i}", test="a", train="b") for i in range(40))
    )
    clean = whole.model_copy(update={"rows": whole.rows[40:]})
    found = [Gate(accuracy_at_least=least).check(whole, large=None, leaks=leaks, clean=clean) for least in (0.5, 0.7)]
    assert [one.passed for one in found] == [True, False]


@pytest.mark.parametrize(("n", "n_copies", "left_out", "passed"), [
    (100, 50, True, True), (100, 51, True, False), (60, 30, True, True), (60, 31, True, False),
    (100, 3, False, False),
])  # fmt: skip
def test_too_few_rows_without_a_copy_or_copies_left_in_fail(
    n: int, n_copies: int, left_out: bool, passed: bool
) -> None:
    (result,) = clean_rows(n, n_copies, left_out=left_out)
    assert result.passed == passed
    assert ("remove those from the training rows" in result.advice) != passed
    assert passed or "test.jsonl:1 is train.jsonl:71" in result.advice


# A plan as a whole


def routed(n_small: int, n_large: int, *, wrong: int = 0, draft: float = 0.01) -> Evaluation:
    """The first rows stay small and cost `draft` USD per 1,000; the others pay for the draft and 1 USD per 1,000."""
    n = n_small + n_large
    plain = with_costs(
        evaluation([i >= wrong for i in range(n)], candidate="routed"),
        [(draft + (i >= n_small)) / 1000 for i in range(n)],
    )
    stages = ("small" if i < n_small else "large" for i in range(n))
    rows = tuple(row.model_copy(update={"stage": stage}) for row, stage in zip(plain.rows, stages, strict=True))
    return plain.model_copy(update={"rows": rows})


def plan(of_plan: Evaluation, large: Evaluation | None, **bars: float | None) -> list[CheckResult]:
    return list(run_checks(RoutedThresholds(**bars), CheckInputs(of_plan, ONE, large)))  # type: ignore[arg-type]


def test_the_share_that_stays_small_must_be_shown() -> None:
    # Wilson's lower end of 80 of 100 is 0.711.
    [shown], [missed] = (plan(routed(80, 20), None, share_small_at_least=least) for least in (0.7, 0.72))
    assert (shown.passed, missed.passed, missed.more_rows is not None) == (True, False, True)


def test_by_default_the_plan_must_not_cost_more_than_the_large_model() -> None:
    large, free = (of(100, 100, candidate="large", cost_usd_per_1k=usd) for usd in (1.0, 0.0))
    (cost,) = plan(routed(80, 20), large)
    assert (cost.name, cost.passed, cost.threshold) == ("cost_at_most", True, 1.0)
    (cost,) = plan(routed(1, 99, draft=0.5), large)  # drafts that are hardly ever used
    assert not cost.passed
    assert plan(routed(1, 99, draft=0.5), None) == plan(routed(1, 99), free) == []  # nothing to compare with


@pytest.mark.parametrize(("ours", "passed"), [(0.01, True), (0.0101, False), (math.nan, False)])
def test_the_bill_is_a_share_of_the_large_models_on_the_same_rows(ours: float, passed: bool) -> None:
    (cost,) = plan(of(10, 10, cost_usd_per_1k=ours), of(8, 8, cost_usd_per_1k=0.1), cost_at_most=0.1)
    assert cost.passed is passed
    assert not passed or cost.measured == "0.100 [0.100, 0.100] n=8"
    (unpaired,) = plan(of(10, 10), of(3, 3, keys=["x", "y", "z"], cost_usd_per_1k=1.0), cost_at_most=9.0)
    assert not unpaired.passed


def test_accuracy_over_all_requests_is_checked_alone_and_against_the_large_model() -> None:
    large, of_plan = of(100, 100, candidate="large", cost_usd_per_1k=0.0), routed(80, 20, wrong=10)
    bars = {"cost_at_most": None, "accuracy_at_least": 0.8, "not_worse_than_large_by": 0.05, "p95_ms_at_most": 1e-9}
    found = [(one.name, one.passed) for one in plan(of_plan, large, **bars)]
    assert found == [("accuracy_at_least", True), ("not_worse_than_large_by", False), ("p95_ms_at_most", False)]

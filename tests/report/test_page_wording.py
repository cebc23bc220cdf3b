"""What the page says in words: advice, ladder, latency, learning curve, cut texts. Figures by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.quality.leaks import Leak, LeakReport
from smallfirst.report.candidates import candidate_table
from smallfirst.report.charts.latency import latency_rows
from smallfirst.report.charts.learning_curve import gain_of_doubling, learning_sentence
from smallfirst.report.data import ReportData
from smallfirst.report.economics import path_costs
from smallfirst.report.excerpts import Excerpts, question_and_context
from smallfirst.report.findings import LeakEffect, LearningPoint
from smallfirst.report.formats import signed, usd
from smallfirst.report.text.advice import leak_sentence, recommendations, warnings
from smallfirst.report.text.outlook import outlook
from smallfirst.stats.intervals import Estimate, mcnemar, wilson

Make = Callable[..., ReportData]
Build = Callable[..., Any]


def advised(data: ReportData) -> tuple[str, ...]:
    return recommendations(data, path_costs(data.evaluations, training_usd=3.9))


def test_what_passes_and_is_cheaper_should_go_live(make_report: Make) -> None:
    # 10,000 requests at $2.00 against $0.050 per 1,000.
    assert advised(make_report())[0] == (
        "Put “fine-tuned small model” live. At 10,000 requests a month it saves about $19.50 a month."
    )


def test_if_nothing_passes_the_nearest_path_is_named_with_its_advice(make_report: Make, make_verdict: Build) -> None:
    failing = tuple(make_verdict(name, passed=False) for name in ("small", "large"))
    assert advised(make_report(verdicts=failing, smallest_passing=None))[0] == (
        "Keep sending every request to the large model. The nearest smaller path, “fine-tuned small model”, misses "
        "“accuracy at least 0.700”: label 40 more rows."
    )


def test_of_several_missed_bars_the_one_that_more_labels_can_show_is_named(
    make_report: Make, make_verdict: Build
) -> None:
    failing = make_verdict("small", passed=False)
    (labels,) = failing.checks
    hopeless = labels.model_copy(update={"requirement": "recall of fee at least 0.9", "advice": "a better model would"})
    failing = failing.model_copy(update={"checks": (hopeless, labels)})
    said = advised(make_report(verdicts=(failing,), smallest_passing=None))[0]
    assert said.endswith("misses “accuracy at least 0.700”: label 40 more rows.")


def test_of_paths_that_miss_as_many_bars_the_best_is_the_nearest(
    make_report: Make, make_verdict: Build, make_evaluation: Build
) -> None:
    failing = tuple(make_verdict(name, passed=False) for name in ("words", "small"))
    pair = (
        make_evaluation("words", "cccffccc", cost_usd_per_1k=1.0),
        make_evaluation("small", "ccccfffc", cost_usd_per_1k=2.0),
    )
    said = advised(make_report(evaluations=pair, verdicts=failing, smallest_passing=None, comparisons=()))[0]
    assert "The nearest smaller path, “fine-tuned small model”," in said


def test_a_path_without_a_large_one_beside_it_promises_no_saving(make_report: Make) -> None:
    small = make_report().evaluations[0]
    assert "What it would save is unknown" in advised(make_report(evaluations=(small,)))[0]


def test_leaks_are_warned_of_from_half_a_percent_on(make_report: Make) -> None:
    few = make_report(leaks=LeakEffect(n_leaked=4, n_test=1000))
    many = make_report(leaks=LeakEffect(n_leaked=5, n_test=1000))
    assert (warnings(few), len(warnings(many))) == ((), 1)
    assert any("measure again" in said for said in advised(many))


def test_the_effect_of_leaks_is_counted_on_the_rows_that_are_left(make_report: Make) -> None:
    small = make_report().evaluations[0]
    leak = Leak(key="row0", test="test.jsonl:1", train="train.jsonl:9")
    found = LeakEffect.on(small, LeakReport(n_test=8, test_fingerprint="f", exact=(leak,)))
    # 7 of 8 right; without row 0, which was right, 6 of 7.
    assert (found.n_leaked, found.accuracy_with, found.accuracy_without) == (1, wilson(7, 8), wilson(6, 7))
    said = leak_sentence(make_report(leaks=found)).replace("\xa0", " ")
    assert said.startswith("1 of 8 test rows (12.5 %) are also in the training rows.")
    assert "on 87.5 % (52.9 to 97.8) with them and on 85.7 %" in said


def test_the_ladder_corrects_p_values_for_all_its_pairs(make_report: Make, make_evaluation: Build) -> None:
    data = make_report()
    words = make_evaluation("words", "ffffcccc", cost_usd_per_1k=0.001)  # wrong on every row
    found = candidate_table(make_report(evaluations=(words, *data.evaluations)))
    assert found.against == "large"
    pair = found.pair("words")
    assert pair is not None
    # Large alone is right on 7 rows: p = 2 / 2^7; smallest of three, so three times that.
    assert pair.comparison.p_value == pytest.approx(2 / 2**7) == mcnemar(0, 7)
    assert pair.p_holm == pytest.approx(6 / 2**7)
    assert found.pair("large") is None
    assert pair.score is None


def test_graded_answers_are_compared_by_their_scores_too(samples: dict[str, ReportData]) -> None:
    found = candidate_table(samples["chat"]).pair("small")
    assert found is not None
    assert found.score is not None
    small, large = samples["chat"].evaluation("small"), samples["chat"].evaluation("large")
    assert small is not None
    assert large is not None
    gaps = [a.score - b.score for a, b in zip(small.rows, large.rows, strict=True)]
    assert found.score.value == pytest.approx(np.mean(gaps))


def test_latency_says_where_it_comes_from(make_report: Make) -> None:
    probes = tuple(float(x) for x in range(1, 101))
    small, large, routed = latency_rows(make_report(probes_ms={"small": probes}))
    assert small.how == "100 requests asked one at a time"
    assert small.p99_ms == pytest.approx(99.01)
    assert (large.how, large.p99_ms, large.requests_per_s) == ("8 requests as reported by the path", None, None)
    assert (routed.how, routed.samples_ms) == ("a few requests asked one at a time", ())
    assert (small.p50_ms, small.p95_ms) == (12.0, 30.0)


def point(rows: int, share: float) -> LearningPoint:
    return LearningPoint(rows, "small", Estimate(value=share, low=share - 0.02, high=share + 0.02, n=500))


def test_doubling_the_rows_goes_on_along_the_last_step() -> None:
    assert gain_of_doubling([point(500, 0.7), point(1000, 0.8), point(2000, 0.85)]) == pytest.approx(0.05)
    # Four times the rows gave 0.08, so twice give 0.04.
    assert gain_of_doubling([point(500, 0.8), point(2000, 0.88)]) == pytest.approx(0.04)
    assert gain_of_doubling([point(500, 0.9), point(1000, 0.99)]) == pytest.approx(0.01)  # never beyond 1
    assert gain_of_doubling([point(500, 0.7)]) is None


def test_a_flat_curve_is_called_flat() -> None:
    flat = learning_sentence((point(1000, 0.850), point(2000, 0.851)), "small")
    assert "close to flat" in flat
    rising = learning_sentence((point(1000, 0.80), point(2000, 0.85)), "small")
    assert "changed by +5.0 points" in rising
    assert "twice the rows are worth about +5.0 points (a guess" in rising
    assert learning_sentence((point(1000, 0.8),), "small") == ""


def test_the_outlook_says_how_far_the_bar_could_be_moved(make_report: Make, make_verdict: Build) -> None:
    data = make_report()
    said = outlook(data, path_costs(data.evaluations, training_usd=3.9))
    assert "Up to an accuracy bar of 0.529 (now 0.700) the fine-tuned small model would still meet it." in said
    failing = make_report(verdicts=(make_verdict("small", passed=False),), smallest_passing=None)
    said = outlook(failing, path_costs(failing.evaluations, training_usd=3.9))
    assert any(
        s.startswith("Fine-tuned small model would be enough if it met “accuracy at least 0.700”.") for s in said
    )
    assert any("at 0.529 or lower (now 0.700)" in s for s in said)


@given(st.text(max_size=3000), st.integers(20, 300))
def test_a_cut_text_begins_like_the_whole(text: str, limit: int) -> None:
    cut = Excerpts()(text, limit)
    assert text.startswith(cut.head.removesuffix(" …"))
    assert len(cut.head) <= limit + 20
    assert cut.whole in ("", text)
    assert cut.whole or cut.head == text


def test_whole_texts_end_with_the_budget() -> None:
    excerpt = Excerpts(budget_bytes=1000)
    assert excerpt("a " * 300).whole == "a " * 300
    assert excerpt("b " * 300).whole == ""
    assert excerpt("c").head == "c"


def test_what_is_escaped_counts_as_it_is_written() -> None:
    # Each < takes four bytes as &lt;
    assert Excerpts(budget_bytes=1999)("<" * 500).whole == ""
    assert Excerpts(budget_bytes=2000)("<" * 500).whole == "<" * 500


def test_the_question_is_what_stands_after_the_last_blank_line() -> None:
    assert question_and_context("One.\n\nTwo.\n\nWho?") == ("Who?", "One.\n\nTwo.")
    assert question_and_context("Who?\n") == ("Who?", "")


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0, "$0.00"), (0.0028, "$0.0028"), (0.05, "$0.050"), (0.996, "$1.00"), (12.345, "$12.35"), (1234.5, "$1,234")],
)
def test_an_amount_keeps_the_digits_somebody_can_use(amount: float, said: str) -> None:
    assert usd(amount) == said


def test_points_carry_their_sign() -> None:
    assert (signed(0.034), signed(-0.05), signed(0.0)) == ("+3.4", "−5.0", "+0.0")


def test_a_report_needs_no_more_than_one_evaluation(make_report: Make) -> None:
    lone = make_report().evaluations[0]
    data = ReportData(title="t", task="t", evaluations=(lone,), made_at=datetime(2026, 1, 1))
    assert (warnings(data), candidate_table(data).pairs, candidate_table(data).against) == ((), (), None)

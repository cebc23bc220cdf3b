"""What would change the verdict. Figures by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smallfirst.evaluation.learning_curve import LearningPoint
from smallfirst.report.data import ReportData
from smallfirst.report.economics import path_costs
from smallfirst.report.text.outlook import outlook
from smallfirst.stats.intervals import wilson

Make = Callable[..., ReportData]
Build = Callable[..., Any]


def said(data: ReportData) -> str:
    return " | ".join(outlook(data, path_costs(data.evaluations, training_usd=3.9))).replace("\xa0", " ")


def test_the_accuracy_threshold_could_be_moved_so_far(make_report: Make, make_verdict: Build) -> None:
    passing = said(make_report())
    assert "Up to an accuracy threshold of 0.529 (now 0.700) “fine-tuned small model” would still pass." in passing
    failing = said(make_report(verdicts=(make_verdict("small", passed=False),), smallest_passing=None))
    assert "“Fine-tuned small model” would be enough if it met “accuracy at least 0.700”. Label 40 more" in failing
    assert "at 0.529 or lower (now 0.700)" in failing


def test_prices_and_traffic_that_would_change_it(make_report: Make, make_evaluation: Build) -> None:
    # The small path costs $0.05 against $2: a fall by 97.5 % ends the saving; $3.90 / $1.95 per 1,000.
    found = said(make_report(certificate=None))
    assert "The saving is gone if the large model's price falls by 97.5 % (to $0.050 per 1,000 requests)." in found
    assert "Below 2,000 requests in all, training is not paid back." in found
    # 100 a second for 730 hours at 30 %.
    assert "One machine, busy 30 % of the time, answers about 78,840,000 requests a month, 7,884.0 times" in found
    assert "it takes more than one." in said(make_report(requests_per_month=10**9))
    dear = make_evaluation("small", "cccfffff", cost_usd_per_1k=3.0)
    assert "it would have to become cheaper to run" in said(
        make_report(evaluations=(dear, make_report().evaluations[1]))
    )


def test_more_rows_are_forecast_or_the_reason_against_it_is_given(make_report: Make) -> None:
    def with_curve(*shares: float) -> str:
        rows = (250, 1000, 2000, 4000)
        points = (
            LearningPoint(n_rows=n, candidate="small", accuracy=wilson(round(2000 * share), 2000))
            for n, share in zip(rows, shares, strict=False)
        )
        return said(make_report(learning_curve=tuple(points)))

    rising = with_curve(0.55, 0.7, 0.76, 0.80)
    assert "From 2,000 to 4,000 training rows “fine-tuned small model” changed by +4.0 points, to 80.0 %" in rising
    assert "Forecast: 8,000 rows would give about 0.8" in rising
    assert "No forecast for twice the rows: 3 numbers of rows are needed and 2 were measured." in with_curve(0.55, 0.7)
    assert "training rows “fine-tuned" not in with_curve(0.55)


def test_a_missing_or_refused_guarantee_is_told(make_report: Make, make_certificate: Build) -> None:
    assert "No certificate was made" in said(make_report(certificate=None))
    assert "Too few labels." in said(make_report(certificate=make_certificate(issued=False, why="Too few labels.")))

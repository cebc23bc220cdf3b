"""Small reports: eight test rows of two labels, with figures that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from smallfirst.evaluation.evaluation import EvaluatedRow, Evaluation
from smallfirst.gate import GateLine, Verdict
from smallfirst.report.page import PromiseHeld, ReportData, TrainingSummary
from smallfirst.routing.certificate import Certificate, ThresholdPoint
from smallfirst.stats import Estimate, wilson

GOLD = ("card", "card", "card", "card", "fee", "fee", "fee", "fee")


def evaluation(
    candidate: str, answers: str, *, cost_usd_per_1k: float, confidences: tuple[float, ...] = ()
) -> Evaluation:
    """An evaluation whose answers are given as letters: c = card, f = fee, - = none."""
    said = {"c": "card", "f": "fee", "-": None}
    rows = tuple(
        EvaluatedRow(
            key=f"row{i}",
            text=f"question {i}",
            gold=gold,
            answer=said[letter],
            correct=said[letter] == gold,
            confidence=confidences[i] if confidences else None,
            stage=candidate,
            certified=False,
            latency_ms=10.0,
            cost_usd=cost_usd_per_1k / 1000,
        )
        for i, (gold, letter) in enumerate(zip(GOLD, answers, strict=True))
    )
    right = sum(row.correct for row in rows)
    return Evaluation(
        candidate=candidate,
        model=f"{candidate}-model",
        task="tickets",
        split="test",
        dataset_fingerprint="aaaabbbbccccdddd",
        rows=rows,
        accuracy=wilson(right, len(rows)),
        macro_f1=Estimate(value=0.8125, low=0.4375, high=0.9375, n=8),
        cost_usd_per_1k=cost_usd_per_1k,
        p50_ms=12.0,
        p95_ms=30.0,
        requests_per_s=None if candidate == "large" else 100.0,
    )


def routed_from(small: Evaluation, large: Evaluation, *, threshold: float) -> Evaluation:
    """The routed path by hand: sure rows stay small, the rest costs draft and large answer."""
    rows = tuple(
        s.model_copy(update={"stage": "small", "certified": True})
        if (s.confidence or 0.0) >= threshold
        else b.model_copy(update={"stage": "large", "cost_usd": s.cost_usd + b.cost_usd})
        for s, b in zip(small.rows, large.rows, strict=True)
    )
    right = sum(row.correct for row in rows)
    return small.model_copy(
        update={
            "candidate": "routed",
            "model": "small first",
            "rows": rows,
            "accuracy": wilson(right, len(rows)),
            "cost_usd_per_1k": sum(row.cost_usd for row in rows) / len(rows) * 1000,
        }
    )


def verdict(candidate: str, *, passed: bool) -> Verdict:
    """A verdict of one line."""
    line = GateLine(
        bar="accuracy at least 0.700",
        measured="0.875 [0.529, 0.978] n=8",
        passed=passed,
        advice="" if passed else "label 40 more rows",
    )
    return Verdict(candidate=candidate, lines=(line,), passed=passed, evaluation_fingerprint="eeee")


def certificate(**changes: object) -> Certificate:
    """An issued certificate with a curve of three points."""
    curve = tuple(
        ThresholdPoint(
            threshold=threshold,
            n_kept=kept,
            errors_kept=errors,
            error_bound=bound,
            routed_accuracy=accuracy,
            routed_cost_usd_per_1k=cost,
        )
        for threshold, kept, errors, bound, accuracy, cost in (
            (0.95, 40, 0, 0.072, 0.96, 1.25),
            (0.80, 70, 1, 0.066, 0.97, 0.65),
            (0.50, 100, 9, 0.152, 0.91, 0.05),
        )
    )
    values: dict[str, Any] = {
        "issued": True,
        "why": "At 95 % confidence at most 10 % of kept answers are wrong.",
        "promised_error": 0.1,
        "confidence": 0.95,
        "threshold": 0.80,
        "n_labels": 100,
        "n_kept": 70,
        "errors_kept": 1,
        "error_bound": 0.066,
        "coverage": wilson(70, 100),
        "below": "escalate",
        "below_why": "Below it the large model is right more often.",
        "below_difference": None,
        "temperature": 1.1,
        "curve": curve,
        "model_fingerprint": "1111222233334444",
        "dataset_fingerprint": "5555666677778888",
    }
    return Certificate(**{**values, **changes})


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    """A function that returns an evaluation of eight rows."""
    return evaluation


@pytest.fixture
def make_verdict() -> Callable[..., Verdict]:
    """A function that returns a verdict of one line."""
    return verdict


@pytest.fixture
def make_certificate() -> Callable[..., Certificate]:
    """A function that returns a certificate, with any field changed."""
    return certificate


@pytest.fixture
def make_report() -> Callable[..., ReportData]:
    """A function that returns a report, with any field changed."""
    confidences = (0.99, 0.97, 0.9, 0.6, 0.98, 0.95, 0.85, 0.7)
    small = evaluation("small", "cccfffff", cost_usd_per_1k=0.05, confidences=confidences)
    large = evaluation("large", "ccccfffc", cost_usd_per_1k=2.0)
    routed = routed_from(small, large, threshold=0.8)

    def make(**changes: object) -> ReportData:
        values: dict[str, Any] = {
            "title": "Support tickets",
            "task": "tickets",
            "evaluations": (small, large, routed),
            "verdicts": (verdict("small", passed=True),),
            "smallest_passing": "small",
            "certificate": certificate(),
            "training": TrainingSummary(
                base="SmolLM2-135M-Instruct",
                method="full",
                epochs=2,
                seconds=600,
                tokens_per_s=500,
                train_rows=900,
                cost_usd=3.9,
                loss_curve=((1, 2.0), (2, 1.0), (3, 0.5)),
                validation_curve=((1.0, 0.8), (2.0, 0.875)),
            ),
            "requests_per_month": 10_000,
            "list_prices": (("hosted-mini", 0.25, 2.0),),
            "large_prompt_tokens": 400.0,
            "large_completion_tokens": 5.0,
            "promise_held": PromiseHeld.on(routed),
            "made_at": datetime(2026, 11, 25, 9, 30),
            "versions": {"smallfirst": "0.1.0"},
        }
        return ReportData(**{**values, **changes})

    return make

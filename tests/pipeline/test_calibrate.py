"""What the Router's own look at a request costs is in what is certified."""

from __future__ import annotations

import pytest

from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.pipeline.calibrate import _paying_for
from smallfirst.routing.types import OodScore
from smallfirst.stats.intervals import wilson


def measured() -> Evaluation:
    row = EvaluatedRow(
        key="a",
        text="t",
        gold="g",
        answer="g",
        correct=True,
        confidence=0.5,
        stage="small",
        certified=False,
        latency_ms=10.0,
        cost_usd=0.01,
    )
    return Evaluation(
        candidate="small",
        model="m",
        task="t",
        split="calibration",
        dataset_fingerprint="d",
        rows=(row, row.model_copy(update={"key": "b", "cost_usd": 0.03})),
        accuracy=wilson(2, 2),
        cost_usd_per_1k=20.0,
        p50_ms=10.0,
        p95_ms=10.0,
        requests_per_s=None,
    )


def test_every_request_pays_for_being_looked_at() -> None:
    found = _paying_for((OodScore(0.1, 0.002, 4.0), OodScore(0.2, 0.004, 8.0)), measured())
    assert [row.cost_usd for row in found.rows] == pytest.approx([0.013, 0.033])
    assert [row.latency_ms for row in found.rows] == [16.0, 16.0]
    assert found.cost_usd_per_1k == pytest.approx(23.0)


def test_without_a_domain_check_nothing_is_paid() -> None:
    first = measured()
    assert _paying_for((), first) is first

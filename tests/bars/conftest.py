"""Small evaluations whose every row is chosen: right or wrong, its score, its key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from smallfirst.evaluation.evaluation import EvaluatedRow, Evaluation
from smallfirst.stats import Estimate, wilson
from smallfirst.tasks.task import Part

ROWS = "rowsrowsrowsrows"
"""Fingerprint of the rows that every evaluation here is on."""


def evaluation(
    right: Sequence[bool],
    *,
    candidate: str = "small",
    scores: Sequence[float] | None = None,
    keys: Sequence[str] | None = None,
    **figures: Any,
) -> Evaluation:
    """One row for each of `right`; row i asks for label "even" or "odd". `figures` go over those of the record."""
    rows = tuple(
        EvaluatedRow(
            key=keys[i] if keys else f"row{i}",
            text=f"question {i}",
            gold=("even", "odd")[i % 2],
            answer=("even", "odd")[(i + (not ok)) % 2],
            score=scores[i] if scores else float(ok),
            correct=ok,
            confidence=None,
            stage=candidate,
            certified=False,
            latency_ms=5.0,
            cost_usd=0.00001,
        )
        for i, ok in enumerate(right)
    )
    found: dict[str, Any] = {
        "accuracy": wilson(sum(right), len(right)),
        "measures": {"macro_f1": Estimate(value=0.9, low=0.86, high=0.93, n=len(right))},
        "parts": tuple(
            Part(name=name, n_gold=len(right[i::2]), n_said=len(right[i::2]), n_right=sum(right[i::2]))
            for i, name in enumerate(("even", "odd"))
        ),
        "cost_usd_per_1k": 0.01,
        "p50_ms": 5.0,
        "p95_ms": 9.0,
    }
    return Evaluation(
        candidate=candidate,
        model=f"{candidate}-model",
        task="parity",
        split="test",
        dataset_fingerprint=ROWS,
        rows=rows,
        requests_per_s=None,
        **(found | figures),
    )


@pytest.fixture(scope="session")
def measured() -> Callable[..., Evaluation]:
    """The function `evaluation` above: rows right or wrong, then by name what else is to be said."""
    return evaluation

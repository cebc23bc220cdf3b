"""Certificates for traffic that differs: which weights rows get, and whether the promise holds there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.errors import ConfigError, DataError
from smallfirst.evaluation.results import Evaluation
from smallfirst.routing.certificate.certificate import certify
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.units.shift import TrafficShift, WeightedRows, weigh_rows

SUBJECTS = {"card": "my card was lost", "loan": "a loan for the house", "tax": "which tax form", "fee": "a fee I paid"}
"""The second half is wrong three times as often."""
GUARANTEE = Guarantee(max_error=0.2)


def texts_of(draw: np.random.Generator, shares: list[float], n: int) -> list[str]:
    return [f"{SUBJECTS[name]} {draw.integers(10_000)}" for name in draw.choice(list(SUBJECTS), n, p=shares)]


def drafts(draw: np.random.Generator, n: int) -> Evaluation:
    rows = []
    for i, text in enumerate(texts_of(draw, [0.4, 0.4, 0.1, 0.1], n)):
        right = draw.random() >= (0.3 if "tax" in text or "fee" in text else 0.02)
        rows.append(evaluated_row(f"r{i}", "a", "a" if right else "b", text=text, confidence=draw.random()))
    return evaluation_of(rows, split="calibration")


def test_rows_weigh_as_their_subject_comes_in_the_traffic() -> None:
    draw = np.random.default_rng(0)
    rows = drafts(draw, 400)
    traffic, like_rows = (texts_of(draw, shares, 600) for shares in ([0.1, 0.1, 0.4, 0.4], [0.4, 0.4, 0.1, 0.1]))
    found = weigh_rows(rows, traffic, like_rows, GUARANTEE)
    by_text = {row.text: found.weights[row.key] for row in rows.rows}
    rare, common = (np.mean([w for t, w in by_text.items() if word in t]) for word in ("card", "tax"))
    assert 8 <= common / rare <= 32  # four times as frequent against four times as rare
    assert found.shift.n_effective < 200
    assert found.shift.cut <= 0.01
    assert found.shift.refused == ""
    for others in (texts_of(draw, [0.4, 0.4, 0.1, 0.1], 600), like_rows[::-1]):
        assert weigh_rows(rows, like_rows, others, GUARANTEE).shift.n_counted > 350


def test_a_promise_is_kept_for_the_traffic_where_rows_alone_would_break_it() -> None:
    draw, broken = np.random.default_rng(3), {"rows": 0, "weighted": 0}
    traffic = texts_of(draw, [0.05, 0.05, 0.45, 0.45], 400)  # 27 % wrong there, 7.6 % on calibration rows
    reference = texts_of(draw, [0.4, 0.4, 0.1, 0.1], 400)
    for _ in range(12):
        rows = drafts(draw, 300)
        weighted = certify(
            rows, None, GUARANTEE, model_fingerprint="m", traffic=weigh_rows(rows, traffic, reference, GUARANTEE)
        )
        broken["rows"] += certify(rows, None, GUARANTEE, model_fingerprint="m").issued
        broken["weighted"] += weighted.issued
        assert weighted.shift is not None
    assert broken["rows"] == 12
    assert broken["weighted"] <= 12 * 0.05 + 3 * math.sqrt(12 * 0.05 * 0.95)


def test_weights_of_one_certify_as_many_rows_as_there_are() -> None:
    rows = drafts(np.random.default_rng(1), 300)
    shift = TrafficShift(n_traffic=100, n_rows=300, n_effective=300, n_counted=300, cap=1, cut=0)
    found = certify(
        rows, None, GUARANTEE, model_fingerprint="m", traffic=WeightedRows(shift, {row.key: 1.0 for row in rows.rows})
    )
    assert found.issued
    assert found.shift == shift
    assert found.n_accepted > 200
    assert "are worth 300 by effective sample size" in found.why
    assert found.limits_of_validity[0].startswith("it holds for traffic like the 100 unlabelled requests")


def test_traffic_unlike_every_calibration_row_is_refused() -> None:
    draw = np.random.default_rng(2)
    traffic = [f"quantum flux reading {draw.integers(10_000)}" for _ in range(200)]
    rows = drafts(draw, 200)
    found = weigh_rows(rows, traffic, texts_of(draw, [0.25] * 4, 200), GUARANTEE)
    assert "label some of" in found.shift.refused
    refused = certify(rows, None, GUARANTEE, model_fingerprint="m", traffic=found)
    assert (refused.issued, refused.why.endswith(found.shift.refused)) == (False, True)


def test_too_few_texts_and_other_limits_are_errors() -> None:
    rows = drafts(np.random.default_rng(0), 60)
    with pytest.raises(DataError, match="traffic: 3 texts"):
        weigh_rows(rows, ["a", "b", "c"], ["x"] * 60, GUARANTEE)
    with pytest.raises(ConfigError, match="limits errors alone"):
        weigh_rows(rows, ["a"] * 60, ["x"] * 60, Guarantee(max_usd_per_1k=1))

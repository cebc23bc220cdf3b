"""Certificates of fields: what is kept, at which threshold, and that dependent fields break no promise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import ConfigError
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.routing.certificate.certificate import Certificate, certify
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.certificate.summary import describe_fields
from smallfirst.routing.certificate.units import FieldTable, certify_fields, field_table, fit_curves


def drafted(n: int = 200, *, n_wrong_notes: int = 100, **more: Any) -> Evaluation:
    """Return answers of a sure and right `date`, and a `note` that is wrong in the last rows, where it is less sure."""
    rows = [
        evaluated_row(
            f"row-{i}",
            "{}",
            "{}",
            correct=i < n - n_wrong_notes,
            confidence=0.5,
            field_confidence={"date": 0.99 - i / 10_000, "note.text": 0.9 - i / 1_000, "note.by": 1.0},
            wrong_fields=() if i < n - n_wrong_notes else ("note",),
            **more,
        )
        for i in range(n)
    ]
    return evaluation_of(rows, split="calibration")


def test_each_field_is_kept_by_its_own_confidence_and_whole_answers_by_their_least_sure() -> None:
    found = certify_fields(drafted(), 0.1, level=0.05)
    assert found.names == ("date", "note")
    # All 200 dates, and the 100 right notes with a few wrong ones; field by field these are among more right ones.
    assert 300 <= found.each.n_kept <= 330
    assert 100 <= found.whole.n_rows_kept <= 120
    assert found.whole.n_kept == 2 * found.whole.n_rows_kept
    assert found.whole.n_rows_wrong == found.whole.n_wrong <= 0.2 * found.whole.n_rows_kept
    assert found.each.bound <= 0.1
    assert found.certified({"date": 0.95, "note.text": 0.1, "note.by": 1.0}) == ("date",)
    assert found.certified({"date": 0.95, "note.text": 0.89}) == ("date", "note")
    assert found.certified({"date": 0.95}) == ("date",)
    assert found.keeps({"date": 0.95, "note.text": 0.89})
    assert not found.keeps({"date": 0.95})
    assert f"{found.each.n_kept} of 400 fields are kept" in describe_fields(found, 0.1)


def test_rows_of_a_few_groups_certify_no_fields() -> None:
    found = certify_fields(drafted(group="one layout"), 0.1, level=0.05)
    assert found.n_units == 1
    assert (found.each.threshold, found.whole.threshold, found.issued) == (NEVER_ACCEPT, NEVER_ACCEPT, False)
    assert describe_fields(found, 0.1).startswith("fields are not certified: 200 rows in 1 groups show at no threshold")
    assert found.certified({"date": 1.0, "note": 1.0}) == ()


def test_confidences_are_made_comparable_on_selection_rows() -> None:
    curves = fit_curves(drafted().rows)
    assert set(curves) == {"note"}  # the date is always right: nothing to learn
    assert curves["note"].at(0.85) > 0.9 > 0.2 > curves["note"].at(0.72)
    assert certify_fields(drafted(), 0.1, level=0.05, selection=drafted()).curves == curves
    assert fit_curves(drafted(20).rows) == {}


def test_paths_lead_to_their_field_at_the_top_level() -> None:
    said = {"items[].price": 0.5, "items[].name": 0.5, "a.b": 0.9, '"x.y".z': 0.8}
    rows = [evaluated_row("r", "{}", "{}", field_confidence=said, wrong_fields=("items", "never said"))]
    table = field_table(rows)
    assert table.names == ("items", "a", "x.y", "never said")
    assert table.confidence.tolist() == [[0.25, 0.9, 0.8, 0.0]]
    assert table.wrong.tolist() == [[True, False, False, True]]


def test_answers_without_fields_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_wrong_fields: these answers have no fields"):
        certify_fields(evaluation_of([evaluated_row("r", "a", "a")]), 0.1, level=0.05)


def certified(guarantee: Guarantee, drafts: Evaluation) -> Certificate:
    return certify(drafts, None, guarantee, model_fingerprint="m")


def test_a_certificate_may_be_about_fields_alone() -> None:
    found = certified(Guarantee(max_error=None, max_wrong_fields=0.1), drafted())
    assert found.issued
    assert found.fields is not None
    assert (found.n_labels, found.n_accepted) == (200, found.fields.whole.n_rows_kept)
    assert found.why.startswith("at most 10 % of kept fields wrong (95 %): field by field")
    assert not found.covers("{}", 1.0)  # no limit is on whole answers
    assert found.keeps_fields({"date": 0.95, "note": 0.89})
    assert Certificate.model_validate_json(found.model_dump_json()) == found
    assert "fields" not in str(certified(Guarantee(), drafted()).model_dump(exclude_none=True).keys())


def test_limits_on_answers_and_fields_share_the_level() -> None:
    found = certified(Guarantee(max_error=0.6, max_wrong_fields=0.1), drafted())
    alone = certified(Guarantee(max_error=0.6, confidence=0.975), drafted())
    assert found.issued
    assert found.risks == alone.risks
    assert not found.keeps_fields({"date": 0.99, "note": 0.9})  # the limit on answers decides which of them stay
    assert found.fields == certify_fields(drafted(), 0.1, level=0.025)


def test_one_row_of_a_group_counts_and_that_is_said() -> None:
    rows = [
        row.model_copy(update={"group": f"group {i // 4}", "confidence": 1 - i / 1000})
        for i, row in enumerate(drafted(400, n_wrong_notes=0).rows)
    ]
    found = certified(Guarantee(), evaluation_of(rows))
    assert found.n_labels == 100
    assert found.limits_of_validity[0] == "400 calibration rows belong to 100 groups, of each of which one row counts"


def test_the_promise_holds_where_all_fields_of_a_row_are_wrong_together() -> None:
    draw, sets, broken = np.random.default_rng(1), 200, {"each": 0, "whole": 0}
    for _ in range(sets):
        wrong = np.repeat(draw.random((250, 1)) < 0.051, 4, axis=1)  # breaks 5 % by a hair, whatever the threshold
        table = FieldTable(draw.random((250, 4)), wrong, names=tuple("abcd"))
        lowest = np.broadcast_to(table.confidence.min(axis=1, keepdims=True), table.confidence.shape)
        each, whole = (one.search(0.05, level=0.025) for one in (table, replace(table, confidence=lowest)))
        broken["each"] += each.threshold <= 1
        broken["whole"] += whole.threshold <= 1
    for times in broken.values():
        assert times / sets <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / sets)


def test_without_a_curve_a_confidence_stays_as_it_is() -> None:
    curve = IsotonicCurve(x=(0.0, 1.0), y=(0.2, 0.4))
    row = evaluated_row("r", "{}", "{}", field_confidence={"a": 0.5, "b": 0.5}, wrong_fields=())
    assert field_table([row], {"a": curve}).confidence[0].tolist() == [curve.at(0.5), 0.5]

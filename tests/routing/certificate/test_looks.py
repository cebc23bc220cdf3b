"""Looks: which certificates count together, and what all of them guarantee."""

import ast
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from hypothesis import given, settings
from hypothesis import strategies as st

import smallfirst
from smallfirst.measuring.evaluate import EvaluatedRow
from smallfirst.routing.certificate.calibration_set import CalibrationSet, one_row_a_unit, trial_fingerprint
from smallfirst.routing.certificate.certificate import Certificate, Guarantee
from smallfirst.routing.certificate.certify import certify
from smallfirst.routing.certificate.looks import (
    FOLDED,
    Look,
    LookRequest,
    Looks,
    SharedLook,
    count_look,
    text_fingerprints,
)
from smallfirst.routing.certificate.threshold_search import search_threshold

PORTIONS = st.sampled_from(["large", "small"])
SPENT = [0.8, 0.2 / 2, 0.2 / 6, 0.2 / 12, 0.2 / 20]
"""Share of the error probability by look, where a large one comes first."""
FAMILIES = st.one_of(
    st.just(SharedLook()), st.builds(SharedLook, st.sampled_from(["a", "b"]), st.sampled_from([0.2, 0.6, 1]))
)


def look_of(path: Path, rows: set[str], trial: str, *asked: Any) -> Look:
    return count_look(LookRequest(path, *asked), rows, trial)


def test_rows_that_overlap_count_on_and_others_begin_at_one(tmp_path: Path) -> None:
    path = tmp_path / "task" / "looks.json"

    def look(trial: str, first: int, last: int) -> int:
        return look_of(path, {f"row-{i}" for i in range(first, last)}, trial).number

    path.parent.mkdir()
    assert look("a", 0, 100) == 1
    assert look("b", 0, 100) == 2  # another model or guarantee on the same rows
    assert look("a", 0, 100) == 1  # the same certificate again
    assert look("c", 100, 200) == 1  # no row of any earlier look
    assert look("d", 199, 300) == 2  # shares a row with c alone
    assert look("e", 0, 300) == 5  # joins both
    assert look("f", 299, 400) == 6  # shares a row with d, and through e with a and b


def rows_of(n: int = 40, **fields: Any) -> list[EvaluatedRow]:
    """Rows that are all right, with a value in each field."""
    usual = {"group": "", "tags": {"channel": "web"}, "field_confidence": {"total": 0.9}, "wrong_fields": ()}
    return [evaluated_row(f"k{i:03}", "a", "a", confidence=1 - i / 100, **(usual | fields)) for i in range(n)]


WISH = Guarantee(max_error=0.2, max_wrong_fields=0.2)


def calibration(rows: list[EvaluatedRow] | None = None, **changes: Any) -> CalibrationSet:
    """Rows with a value in every field, with changes."""
    own, large = evaluation_of(rows_of() if rows is None else rows), evaluation_of(rows_of(), candidate="large")
    chosen = evaluation_of(rows_of(30), split="selection")
    found = CalibrationSet.of([own], large, guarantee=WISH, foreign=[[0.1, 0.2]], selection=[chosen])
    return replace(found, **changes)


def certified(path: Path, rows: CalibrationSet, guarantee: Guarantee = WISH) -> Certificate:
    return certify(rows, guarantee, model_fingerprint="m", look=LookRequest(path))


def test_all_that_proves_something_tells_looks_apart() -> None:
    usual = calibration()
    changed: dict[str, Any] = {
        "confidence": usual.confidence + 1e-15, "right": ~usual.right, "asked": ~usual.asked,
        "large_right": ~usual.large_right, "judged_by": "large", "unit": np.array(["g"] * 40, dtype=object),
        "place": np.arange(40), "most_of_group": 2,
        "part": np.array(["a"] * 40, dtype=object), "fields": None, "foreign": usual.foreign + 0.1,
        "foreign_share": 0.1, "selection": None, "texts": frozenset({"other"}), "stages": ("words",),
        "cost_usd": usual.cost_usd + 1, "fingerprint": "other",
    }  # fmt: skip
    assert set(changed) == {one.name for one in fields(CalibrationSet)}
    trial = trial_fingerprint(usual, WISH)
    same = {
        name for name, value in changed.items() if trial_fingerprint(replace(usual, **{name: value}), WISH) == trial
    }
    assert same == {"cost_usd", "fingerprint"}  # a cost at most chooses among thresholds that are shown together
    assert trial_fingerprint(usual, Guarantee()) != trial
    assert trial_fingerprint(calibration(rows_of(tags={"channel": "app"})), WISH) == trial  # no group is asked for


def test_the_order_of_rows_is_no_new_look_and_changes_nothing(tmp_path: Path) -> None:
    draw, looks, found = np.random.default_rng(3), tmp_path / "looks.json", []
    rows = [
        evaluated_row(
            f"k{i:03}", "a", "b" if draw.random() < 0.03 else "a", confidence=round(draw.random(), 1), group=g
        )
        for i, g in enumerate(str(number) for number in draw.integers(0, 60, 120))
    ]
    for _ in range(4):
        rows, foreign = [rows[i] for i in draw.permutation(len(rows))], draw.permutation([0.1, 0.2, 0.7]).tolist()
        one, guarantee = evaluation_of(rows), Guarantee(max_error=0.2)
        data = CalibrationSet.of([one], one, guarantee=guarantee, foreign=[foreign], selection=[one])
        found.append(certified(looks, data, guarantee))
    assert (len({one.model_dump_json() for one in found}), found[0].issued, len(Looks.of(looks).looks)) == (1, True, 1)


def test_ten_regroupings_of_the_same_rows_break_the_guarantee_no_more_often_than_stated(tmp_path: Path) -> None:
    draws, n, wrong = 400, 300, {"first": 0, "counted": 0}
    groups = [np.random.default_rng(k).permutation(n) // 2 for k in range(10)]  # by regrouping: pairs of rows
    trials = [trial_fingerprint(calibration(unit=by), WISH) for by in groups]
    counted = [look_of(tmp_path / "looks.json", {"row"}, trial) for trial in trials]
    assert [one.number for one in counted] == list(range(1, 11))
    shares = {"first": [counted[0].share] * 10, "counted": [one.share for one in counted]}
    kept = [one_row_a_unit(by) for by in groups]
    for seed in range(draws):  # at every threshold a little more than 5 % is wrong
        draw = np.random.default_rng(seed)
        confidence, right = draw.random(n), draw.random(n) >= 0.0501
        for name, spent in shares.items():
            wrong[name] += any(
                issued(confidence[rows], right[rows], share) for rows, share in zip(kept, spent, strict=True)
            )
    assert wrong["counted"] / draws <= 0.05 < wrong["first"] / draws


def issued(confidence: np.ndarray, right: np.ndarray, share: float) -> bool:
    return search_threshold(confidence, right, Guarantee(confidence=1 - 0.05 * share)).n_accepted > 0


def test_five_looks_together_are_wrong_at_most_as_often_as_stated() -> None:
    draw, draws, wrong = np.random.default_rng(4), 300, {"whole": 0, "spent": 0}
    for _ in range(draws):  # at every threshold a little more than 5 % is wrong; rows are added after each refusal
        confidence, right = draw.random(1500), draw.random(1500) >= 0.0501
        for name in wrong:
            wrong[name] += any(
                issued(confidence[: 300 * look], right[: 300 * look], 1.0 if name == "whole" else SPENT[look - 1])
                for look in range(1, 6)
            )
    assert wrong["spent"] / draws <= 0.05 < wrong["whole"] / draws


def test_the_package_certifies_nothing_without_counting_it() -> None:
    calls = [
        node
        for path in Path(smallfirst.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "certify"
    ]
    assert calls
    assert all("look" in {one.arg for one in call.keywords} for call in calls)


def shares_of(path: Path, *portions: Any) -> list[float]:
    return [look_of(path, {"row"}, f"trial-{i}", portion).share for i, portion in enumerate(portions)]


def test_a_run_takes_the_large_portion_first_and_learning_takes_it_when_it_says_so(tmp_path: Path) -> None:
    assert shares_of(tmp_path / "run.json", *["large"] * 5) == pytest.approx(SPENT)
    learn = [0.2 / 2, 0.8, 0.2 / 6, 0.2 / 12]
    assert shares_of(tmp_path / "learn.json", "small", "large", "large", "small") == pytest.approx(learn)


def test_certificates_that_were_fixed_together_divide_one_look(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"

    def look(trial: str, name: str, part: float) -> Look:
        return look_of(path, {"row"}, trial, "large", SharedLook(name, part))

    assert [look("a", "run 1", 0.6).share, look("b", "run 1", 0.2).share] == pytest.approx([0.48, 0.16])
    assert look("another guarantee of b", "run 1", 0.2).share == pytest.approx(0.16)
    assert look("more than were fixed", "run 1", 0.2).share == pytest.approx(0.2 * 0.1)
    assert look("a", "run 1", 0.6).share == pytest.approx(0.48)
    assert look("of a later run", "run 2", 1.0).share == pytest.approx(0.2 / 6)


def test_where_rows_are_joined_that_have_spent_everything_apart_nothing_is_certified(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"
    for part in (slice(0, 20), slice(20, 40)):
        certified(path, calibration(rows_of()[part]))
    joined = certified(path, calibration())
    assert (joined.issued, joined.fields, Looks.of(path).looks[-1].share) == (False, None, 0.0)
    assert "have spent the whole error probability" in joined.report.why
    assert certified(tmp_path / "others.json", calibration()).issued


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), PORTIONS, FAMILIES), max_size=12))
def test_connected_looks_never_spend_more_than_the_whole_whatever_their_order(tries: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        path, made = Path(folder) / "looks.json", list[tuple[set[int], Look]]()
        for i, (first, n, portion, family) in enumerate(tries):
            rows = set(range(first, first + n))
            look = look_of(path, {str(row) for row in rows}, str(i), portion, family)
            connected, rest = [look], list(made)
            while near := [one for one in rest if one[0] & rows]:
                rest = [one for one in rest if one not in near]
                connected += [one for _, one in near]
                rows = rows.union(*(own for own, _ in near))
            made.append((set(range(first, first + n)), look))
            assert look.share == 0 or sum(one.share for one in connected) <= 1 + 1e-9
            assert sum(one.portion == "large" and one.spent > 0 for one in connected) <= 1 or look.share == 0


def test_a_row_of_which_only_the_fingerprint_is_known_counts_as_its_text() -> None:
    known = text_fingerprints(["Where is my card?"])
    assert text_fingerprints([FOLDED + one for one in known]) == known

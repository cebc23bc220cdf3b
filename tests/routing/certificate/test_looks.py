"""Looks: which certificates count together, and what all of them guarantee."""

from __future__ import annotations

import ast
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from hypothesis import given as given_tries
from hypothesis import settings
from hypothesis import strategies as st

import smallfirst
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.routing.certificate.certificate import BelowRule, certify
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.looks import (
    FOLDED,
    MEASURED,
    Look,
    Looks,
    SharedLook,
    count_look,
    next_look,
    text_fingerprints,
    trial_fingerprint,
)
from smallfirst.routing.certificate.threshold_search import search_threshold
from smallfirst.routing.certificate.units import one_row_a_unit
from smallfirst.tasks.task import PartCounts

PORTIONS = st.sampled_from(["large", "small"])
PROVES_NOTHING = {"looks", "n_once", "below"}
"""Parameters of `certify` without a part in what is proven: nothing is guaranteed below the threshold."""
SPENT = [0.8, 0.2 / 2, 0.2 / 6, 0.2 / 12, 0.2 / 20]
"""Share of the error probability by look, where a large one comes first."""
FAMILIES = st.one_of(
    st.just(SharedLook()), st.builds(SharedLook, st.sampled_from(["a", "b"]), st.sampled_from([0.2, 0.6, 1]))
)


def test_rows_that_overlap_count_on_and_others_begin_at_one(tmp_path: Path) -> None:
    path = tmp_path / "task" / "looks.json"

    def look(trial: str, first: int, last: int) -> int:
        return count_look(path, {f"row-{i}" for i in range(first, last)}, trial).number

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


def given(**changes: Any) -> dict[str, Any]:
    """The arguments of `certify`, every one of them, with changes."""
    usual: dict[str, Any] = {
        "drafts": evaluation_of(rows_of()),
        "large": evaluation_of(rows_of(), candidate="large"),
        "guarantee": Guarantee(max_error=0.2),
        "model_fingerprint": "m",
        "labels": "gold",
        "selection": evaluation_of(rows_of(30), split="selection"),
        "below": BelowRule(),
        "foreign": [[0.1, 0.2]],
        "portion": "large",
        "n_once": 0,
        "shared": SharedLook(),
    }
    return usual | changes


CHANGED: dict[str, Any] = {
    "drafts": [evaluation_of(rows_of(39))],
    "large": None,
    "guarantee": Guarantee(max_error=0.21),
    "model_fingerprint": "n",
    "labels": "large",
    "selection": None,
    "below": BelowRule(False, True, 0.01),
    "foreign": [[0.1, 0.3]],
    "portion": "small",
    "n_once": 3,
    "shared": SharedLook("run", 0.5),
}
ROW: dict[str, Any] = {
    "key": "other", "text": "other", "gold": "b", "also": ("b",), "answer": "b", "score": 0.5, "correct": False,
    "confidence": 0.6 + 1e-15, "stage": "large", "certified": True, "latency_ms": 2.0, "cost_usd": 1.0,
    "field_confidence": {"total": 0.8}, "wrong_fields": ("total",), "group": "g", "tags": {"channel": "app"},
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "candidate": "other", "model": "other", "task": "other", "split": "other", "dataset_fingerprint": "other",
    "accuracy": wilson(1, 2), "measures": {"f1": wilson(1, 2)},
    "parts": (PartCounts(name="a", n_gold=1, n_said=1, n_right=1),), "cost_usd_per_1k": 3.0, "p50_ms": 1.0,
    "p95_ms": 1.0, "requests_per_s": 2.0, "note": "other", "probes_ms": (3.0,),
}  # fmt: skip


def trial(**changes: Any) -> str:
    return trial_fingerprint(*(value for name, value in given(**changes).items() if name not in PROVES_NOTHING))


def proven(**changes: Any) -> dict[str, object]:
    told = {"issued", "threshold", "n_accepted", "n_labels", "classes", "risks", "fields"}
    return certify(**given(**changes)).model_dump(include=told)


def with_row(whole: Evaluation, **changes: Any) -> Evaluation:
    return whole.model_copy(update={"rows": (*whole.rows[:-1], whole.rows[-1].model_copy(update=changes))})


@pytest.mark.parametrize("name", sorted(signature(certify).parameters.keys() - {"looks"}))
def test_every_parameter_of_certify_tells_looks_apart_unless_it_proves_nothing(tmp_path: Path, name: str) -> None:
    looks, changed = tmp_path / "looks.json", given(**{name: CHANGED[name]})
    for inputs in (given(), changed, given()):
        certify(**inputs, looks=looks)
    assert len(Looks.of(looks).looks) == (1 if name in PROVES_NOTHING else 2)
    if name in PROVES_NOTHING:
        assert proven() == proven(**{name: CHANGED[name]})


@pytest.mark.parametrize("of", ["drafts", "large", "selection"])
@pytest.mark.parametrize("name", sorted(EvaluatedRow.model_fields.keys()))
def test_every_field_of_a_row_tells_looks_apart_but_what_is_measured_anew(of: str, name: str) -> None:
    assert (trial() == trial(**{of: with_row(given()[of], **{name: ROW[name]})})) is (name in MEASURED)


@pytest.mark.parametrize("name", sorted(Evaluation.model_fields.keys() - {"rows"}))
def test_what_describes_an_evaluation_is_no_part_of_the_proof(name: str) -> None:
    changed = given()["drafts"].model_copy(update={name: EVALUATION[name]})
    assert trial() == trial(drafts=changed)
    assert proven() == proven(drafts=changed)


def test_the_order_of_rows_is_no_new_look_and_changes_nothing(tmp_path: Path) -> None:
    draw, looks = np.random.default_rng(3), tmp_path / "looks.json"
    rows = [
        evaluated_row(
            f"k{i:03}", "a", "b" if draw.random() < 0.03 else "a", confidence=round(draw.random(), 1), group=g
        )
        for i, g in enumerate(str(number) for number in draw.integers(0, 60, 120))
    ]
    found = []
    for _ in range(4):
        rows, foreign = [rows[i] for i in draw.permutation(len(rows))], draw.permutation([0.1, 0.2, 0.7]).tolist()
        evaluation = evaluation_of(rows)
        inputs = given(drafts=evaluation, large=evaluation, selection=evaluation, foreign=[foreign])
        found.append(certify(**inputs, looks=looks))
    assert (len({one.model_dump_json() for one in found}), found[0].issued, len(Looks.of(looks).looks)) == (1, True, 1)


def test_ten_regroupings_of_the_same_rows_break_the_guarantee_no_more_often_than_stated(tmp_path: Path) -> None:
    draws, n, wrong = 400, 300, {"first": 0, "counted": 0}
    groups = [np.random.default_rng(k).permutation(n) // 2 for k in range(10)]  # by regrouping: pairs of rows
    regrouped = [
        [row.model_copy(update={"group": f"g{g}"}) for row, g in zip(rows_of(n), by, strict=True)] for by in groups
    ]
    inputs = [given(drafts=evaluation_of(rows), guarantee=Guarantee()) for rows in regrouped]
    counted = [count_look(tmp_path / "looks.json", {"row"}, trial_fingerprint(*one.values())) for one in inputs]
    assert [one.number for one in counted] == list(range(1, 11))
    shares = {"first": [counted[0].share] * 10, "counted": [one.share for one in counted]}
    kept = [one_row_a_unit(by.astype(str).astype(object), n) for by in groups]
    for seed in range(draws):  # at every threshold a little more than 5 % is wrong
        draw = np.random.default_rng(seed)
        confidence, right = draw.random(n), draw.random(n) >= 0.0501
        for name, spent in shares.items():
            wrong[name] += any(
                search_threshold(
                    confidence[rows].tolist(), right[rows].tolist(), Guarantee().at_share(share)
                ).n_accepted
                for rows, share in zip(kept, spent, strict=True)
            )
    assert wrong["counted"] / draws <= 0.05 < wrong["first"] / draws


def test_five_looks_together_are_wrong_at_most_as_often_as_stated() -> None:
    draw, draws, wrong = np.random.default_rng(4), 300, {"whole": 0, "spent": 0}
    for _ in range(draws):  # at every threshold a little more than 5 % is wrong; rows are added after each refusal
        confidence, right = draw.random(1500), draw.random(1500) >= 0.0501
        for name in wrong:
            wrong[name] += any(
                search_threshold(
                    confidence[: 300 * look].tolist(),
                    right[: 300 * look].tolist(),
                    Guarantee().at_share(1.0 if name == "whole" else SPENT[look - 1]),
                ).n_accepted
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
    assert all("looks" in {one.arg for one in call.keywords} for call in calls)


def test_the_number_of_the_next_look_is_known_beforehand_and_not_counted(tmp_path: Path) -> None:
    path, rows = tmp_path / "looks.json", {"row-1", "row-2"}
    assert next_look(path, rows).number == 1
    assert count_look(path, rows, "first").number == 1
    assert [next_look(path, rows).number for _ in range(2)] == [2, 2]
    assert next_look(path, {"row-3"}).number == 1


def shares_of(path: Path, *portions: Any) -> list[float]:
    return [count_look(path, {"row"}, f"trial-{i}", portion).share for i, portion in enumerate(portions)]


def test_a_run_takes_the_large_portion_first_and_learning_takes_it_when_it_says_so(tmp_path: Path) -> None:
    assert shares_of(tmp_path / "run.json", *["large"] * 5) == pytest.approx(SPENT)
    learn = [0.2 / 2, 0.8, 0.2 / 6, 0.2 / 12]
    assert shares_of(tmp_path / "learn.json", "small", "large", "large", "small") == pytest.approx(learn)


def test_certificates_that_were_fixed_together_divide_one_look(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"

    def look(trial: str, name: str, part: float) -> Look:
        return count_look(path, {"row"}, trial, "large", SharedLook(name, part))

    assert [look("a", "run 1", 0.6).share, look("b", "run 1", 0.2).share] == pytest.approx([0.48, 0.16])
    assert look("another guarantee of b", "run 1", 0.2).share == pytest.approx(0.16)
    assert look("more than were fixed", "run 1", 0.2).share == pytest.approx(0.2 * 0.1)
    assert look("a", "run 1", 0.6).share == pytest.approx(0.48)
    assert look("of a later run", "run 2", 1.0).share == pytest.approx(0.2 / 6)


def test_where_rows_are_joined_that_have_spent_everything_apart_nothing_is_certified(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"
    halves = [evaluation_of(rows_of()[part]) for part in (slice(0, 20), slice(20, 40))]
    for half in halves:
        certify(**given(drafts=half), looks=path)
    joined = certify(**given(), looks=path)
    assert (joined.issued, len(Looks.of(path).looks), Looks.of(path).looks[-1].share) == (False, 3, 0.0)
    assert "have spent the whole error probability" in joined.why
    fields = Guarantee(max_error=None, max_wrong_fields=0.2)
    refused = certify(**given(guarantee=fields), looks=path)
    assert (refused.issued, refused.fields, refused.guarantee) == (
        False,
        None,
        fields.model_copy(update={"unit": None}),
    )
    assert certify(**given()).issued


@settings(max_examples=200, deadline=None)
@given_tries(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), PORTIONS, FAMILIES), max_size=12))
def test_connected_looks_never_spend_more_than_the_whole_whatever_their_order(tries: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        path, made = Path(folder) / "looks.json", list[tuple[set[int], Look]]()
        for i, (first, n, portion, family) in enumerate(tries):
            rows = set(range(first, first + n))
            look = count_look(path, {str(row) for row in rows}, str(i), portion, family)
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

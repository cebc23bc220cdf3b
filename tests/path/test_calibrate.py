"""The rows that certify, who judges them, the start of the search, and what happens below the threshold."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import cascade
from fixtures.certificates import certificate as make_certificate
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.preflight import task_of

from smallfirst.base.errors import DataError
from smallfirst.base.progress import Progress
from smallfirst.models.manifest import TRAINED_ON, TrainedOn
from smallfirst.path.calibrate import (
    _label_sources,
    certify_candidate,
    guarantee_of,
    look_portion,
    selection_drafts,
    unconfirmed_escalation,
)
from smallfirst.path.foretold import foretell
from smallfirst.path.project.candidates import get_candidate, project_candidates
from smallfirst.path.project.project import Project, labelled_by
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.routing.certificate.certificate import Guarantee


def project(folder: Path, **guarantee: Any) -> Project:
    """A task of twenty rows a part."""
    parts = ("train", "validation", "test")
    rows = {part: [{"text": f"{part} {i}", "label": "ab"[i % 2]} for i in range(20)] for part in parts}
    return task_of(folder, rows, labels=["a", "b"], routing={"guarantee": guarantee} if guarantee else {})


def test_the_answers_to_selection_rows_choose_the_start_if_every_stage_has_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = evaluation_of([evaluated_row("row-1", "a", "a", confidence=0.4)], candidate="words", split="selection")
    run.save_evaluation(first)
    assert selection_drafts(run, {"words": "words", "small": "encoder"}, {}) is None
    run.save_evaluation(first.model_copy(update={"candidate": "encoder"}))
    found = selection_drafts(run, {"words": "words", "small": "encoder"}, {"small": {"row-1": 0.7}})
    assert found is not None
    assert [draft.rows[0].confidence for draft in found] == [0.4, 0.7]
    of_train = evaluation_of([*first.rows, evaluated_row("row-0", "a", "b")], candidate="words", split="choosing")
    run.save_evaluation(of_train)
    kept = [selection_drafts(run, {"small": "words"}, {}, like=like) for like in (None, {"row-1"})]
    assert [len(one[0].rows) for one in kept if one] == [2, 1]


def measured_on_test(run_folder: RunFolder, candidate: str, right: int, *, stages: int = 0) -> None:
    """Twenty test rows of which the first `right` are right; the Router sends the last `stages` of them on."""
    rows = [
        evaluated_row(str(i), "a", "a" if i < right else "b", stage="large" if i >= 20 - stages else candidate)
        for i in range(20)
    ]
    run_folder.save_evaluation(evaluation_of(rows, candidate=candidate))


@pytest.mark.parametrize(("routed", "stays"), [(15, True), (16, True), (17, False)])
def test_what_test_rows_do_not_confirm_is_not_sent_on(tmp_path: Path, routed: int, stays: bool) -> None:
    of, run_folder = project(tmp_path), RunFolder(tmp_path / "run")
    measured_on_test(run_folder, "words", 16)
    measured_on_test(run_folder, "routed", routed, stages=6)
    found = make_certificate(below="escalate", below_why="shown to be better")
    kept = unconfirmed_escalation(of, run_folder, found, "words")
    assert (kept is not None) is stays
    if kept is not None:
        assert kept.below == "keep"
        assert kept.report.below_why.startswith("shown to be better; but on 20 test rows it is right on ")
        assert unconfirmed_escalation(of, run_folder, kept, "words") is None  # nothing is left to send on


def test_a_limit_against_the_large_model_is_not_overruled_by_test_rows(tmp_path: Path) -> None:
    of, run_folder = project(tmp_path, max_accuracy_loss=0.05), RunFolder(tmp_path / "run")
    measured_on_test(run_folder, "words", 16)
    measured_on_test(run_folder, "routed", 10, stages=6)
    assert unconfirmed_escalation(of, run_folder, make_certificate(below="escalate"), "words") is None


def test_a_model_is_not_certified_by_rows_that_it_was_fitted_on(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    """A refit on calibration rows is another model: their answers prove nothing of it."""
    of, run_folder = project(tmp_path, max_error=0.2), RunFolder(tmp_path / "run")
    small = of.file.small.model_copy(update={"encoder": str(tiny_encoder_folder)})
    of = of._replace(file=of.file.model_copy(update={"small": small}))
    get_candidate("words").fit(of, run_folder)
    rows = [evaluated_row(e.key, e.answer, e.answer, confidence=0.9) for e in of.rows.calibration.examples]
    run_folder.save_evaluation(evaluation_of(rows, candidate="words", split="calibration"))
    seen = TrainedOn.of(of.rows.calibration.subset("seen", of.rows.calibration.examples[:3]))
    seen.save(run_folder.model_folder("words") / TRAINED_ON)
    with pytest.raises(DataError, match=f"3 of {len(rows)} rows to certify words with"):
        certify_candidate(of, run_folder, "words", alone=True)
    TrainedOn.of(of.rows.development).save(run_folder.model_folder("words") / TRAINED_ON)
    assert certify_candidate(of, run_folder, "words", alone=True).candidate == "words"


def test_a_look_that_is_not_likely_to_show_anything_keeps_the_large_portion() -> None:
    chosen_on = cascade(np.linspace(1, 0, 400), np.arange(400) % 20 != 7)
    guarantee = Guarantee(max_error=0.1)
    for n, portion in ((40, "small"), (800, "large")):
        assert look_portion(cascade([0.9] * n, [True] * n, selection=chosen_on), guarantee, 1.0) == portion
    assert look_portion(cascade([0.9] * 40, [True] * 40), guarantee, 1.0) == "large"


def test_a_promise_is_by_language_where_rows_hold_several_and_nothing_else_is_asked(tmp_path: Path) -> None:
    texts = {"en": "where is the card that I ordered", "de": "wo ist die Karte, die ich bestellt habe"}
    rows = {
        part: [{"text": f"{texts[one]} {part} {i}", "label": "ab"[i % 2]} for i in range(20) for one in texts]
        for part in ("train", "validation", "test")
    }

    def promised(**routing: Any) -> tuple[str, tuple[str, ...] | None]:
        found = guarantee_of(task_of(tmp_path, rows, labels=["a", "b"], routing=routing))
        return found.per_group, found.languages and tuple(sorted(found.languages))

    assert promised() == ("language", ("de", "en"))
    assert promised(guarantee={"languages": ["it"]}) == ("language", ("it",))
    assert promised(guarantee={"per_group": "language"}) == ("language", ("de", "en"))
    assert promised(guarantee={"languages": []}) == ("", ())
    assert promised(guarantee={"per_group": "label"}) == ("label", None)
    assert promised(second_look_after=9, labels="large") == ("", None)
    foretold = foretell(task_of(tmp_path, rows, labels=["a", "b"])).certificate
    assert foretold
    told = {
        name: (int(n), int(more)) for name, n, more in re.findall(r"(\w\w) (\d+) \((\d+) more\)", foretold.in_words)
    }
    assert sorted(told) == ["de", "en"]
    assert all(n + more == 77 for n, more in told.values())  # 0.95^77 = 0.019: 0.04 of this look, divided by two
    assert not foretold.reachable
    tried = project_candidates(task_of(tmp_path, rows, labels=["a", "b"]))
    assert "multilingual" in [one.name for one in tried]
    assert "multilingual" not in [one.name for one in project_candidates(project(tmp_path))]
    for languages, there in ((["en", "it"], True), (["en", "fi"], False), (["en", "de"], True)):
        stated = task_of(tmp_path, rows, labels=["a", "b"], routing={"guarantee": {"languages": languages}})
        assert ("multilingual" in [one.name for one in project_candidates(stated)]) == there
    assert guarantee_of(project(tmp_path)).per_group == ""  # "train 1" is in no language for sure


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_where_calibration_rows_repeat_a_text_the_promise_counts_each_text_once(tmp_path: Path) -> None:
    of = project(tmp_path, max_error=0.2)
    assert "counted once" not in guarantee_of(of).in_words
    append(tmp_path / "validation.jsonl", [{"text": f"validation {i}", "label": "a"} for i in range(20)])
    again = Project.read(of.file, Progress(quiet=True))
    assert guarantee_of(again).in_words == "at most 20 % of kept answers wrong, each text counted once (95 %)"


def test_a_model_s_labels_are_never_gold(tmp_path: Path) -> None:
    of = project(tmp_path)
    assert (labelled_by(of), _label_sources(of.rows.calibration)) == ("gold", "")
    by_model = {"teacher": "big-1", "labelled_on": "2026-11-26"}
    append(tmp_path / "validation.jsonl", [{"text": f"new {i}", "label": "a", **by_model} for i in range(20)])
    of = Project.read(of.file, Progress(quiet=True))
    n = sum(example.source == "big-1" for example in of.rows.calibration.examples)
    assert 0 < n < len(of.rows.calibration)
    assert labelled_by(of) == "large"
    assert f"({n} of {len(of.rows.calibration)} by big-1)" in _label_sources(of.rows.calibration)

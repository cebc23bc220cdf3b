"""Test rows certify with the calibration rows where every condition holds, and the promise holds although they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.rows import text_rows

from smallfirst.base.progress import Progress
from smallfirst.path.plans.joined_rows import FIXED, FixedBeforeTest, JoinedRows, find_joined, fix_before_test
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FINALISTS, Finalists, RunFolder
from smallfirst.path.project.task_file import LargeConfig, read_task_file
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.looks import SharedLook, count_look
from smallfirst.routing.certificate.threshold_search import search_threshold

BY_MODEL = {"teacher": "big-1", "labelled_on": "2026-11-30"}
WORDS = ("apple", "brick", "cloud", "drum", "eagle", "flute", "grape", "horse", "ink", "jar", "kite", "lamp")


def texts(part: str, n: int) -> list[str]:
    """Texts without near-copies of each other."""
    draw = np.random.default_rng(len(part))
    return [f"{part} {i} {' '.join(draw.permutation(WORDS)[:6])}" for i in range(n)]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def labelled(part: str, n: int, **more: str) -> list[dict[str, str]]:
    return [
        {"text": text, "label": "ab"[i % 2], "case": f"{part} {i}", **more} for i, text in enumerate(texts(part, n))
    ]


def project(folder: Path, *, split: bool = True, data: dict[str, Any] | None = None, **routing: Any) -> Project:
    """Rows that the run splits itself, or files of each part."""
    folder.mkdir(exist_ok=True)
    write(folder / "train.jsonl", labelled("train", 120))
    named: dict[str, Any] = {"train": "train.jsonl"}
    if not split:
        for part, n in (("validation", 60), ("test", 40)):
            if not (folder / f"{part}.jsonl").exists():
                write(folder / f"{part}.jsonl", labelled(part, n))
            named[part] = f"{part}.jsonl"
    file = {"name": "desk", "labels": ["a", "b"], "data": named | (data or {}), "routing": routing}
    (folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return Project.read(read_task_file(folder / "task.yaml"), Progress(quiet=True))


def run_of(of: Project, folder: Path, name: str = "run-1", finalists: tuple[str, ...] = ("words",)) -> RunFolder:
    """A run that fixed its finalists, then measured `words` on test rows."""
    run_folder = RunFolder(folder / "tasks" / name)
    run_folder.path.mkdir(parents=True)
    shares = {one: 0.6 if one == finalists[0] else 0.1 for one in finalists}
    Finalists(names=finalists, shares=shares).save(run_folder.path / FINALISTS)
    fix_before_test(of, run_folder)
    measure(of, run_folder)
    return run_folder


def measure(of: Project, run_folder: RunFolder) -> None:
    rows = [evaluated_row(e.key, e.answer, e.answer, text=e.text, group=e.group) for e in of.rows.test.examples]
    run_folder.save_evaluation(evaluation_of(rows, candidate="words"))


def joined(of: Project, folder: Path, **more: Any) -> JoinedRows:
    return find_joined(of, run_of(of, folder, **more), "words")


def test_rows_that_the_run_split_itself_certify_together(tmp_path: Path) -> None:
    of = project(tmp_path)
    found = joined(of, tmp_path)
    assert (found.why_not, found.n_test) == ("", len(of.rows.test))
    assert found.rows.examples == (*of.rows.calibration.examples, *of.rows.test.examples)
    assert "test rows, which the gate reads too" in found.in_words


def test_the_level_is_divided_among_all_that_were_fixed_before_never_those_that_passed(tmp_path: Path) -> None:
    of = project(tmp_path)
    run_folder = run_of(of, tmp_path, finalists=("words", "encoder", "tuned"))
    assert find_joined(of, run_folder, "words").look.part == pytest.approx(0.75)
    Finalists(names=("words",), shares={"words": 0.6}).save(run_folder.path / FINALISTS)  # chosen anew afterwards
    fix_before_test(of, run_folder)
    assert find_joined(of, run_folder, "words").look.part == pytest.approx(0.75)
    assert find_joined(of, run_folder, "static").why_not == "this candidate was not fixed before a test row was read"


def test_nothing_is_fixed_after_a_test_row_was_read(tmp_path: Path) -> None:
    of, run_folder = project(tmp_path), RunFolder(tmp_path / "tasks" / "run")
    measure(of, run_folder)
    fix_before_test(of, run_folder)
    assert "not fixed before" in find_joined(of, run_folder, "words").why_not


def test_without_finalists_all_fitted_candidates_share_alike(tmp_path: Path) -> None:
    of, run_folder = project(tmp_path), RunFolder(tmp_path / "tasks" / "run")
    for name in ("words", "encoder"):
        run_folder.model_folder(name).mkdir(parents=True)
    fix_before_test(of, run_folder)
    parts = FixedBeforeTest.load(run_folder.path / FIXED).parts
    assert sum(parts.values()) == pytest.approx(1)
    assert len(set(parts.values())) == 1


def test_finalists_that_calibration_rows_ranked_share_alike_with_all_others(tmp_path: Path) -> None:
    """A large model's error on calibration rows ranks plans, and these rows certify too."""
    of, run_folder = project(tmp_path, guarantee={"max_error": 0.1}), RunFolder(tmp_path / "tasks" / "run")
    of = of._replace(file=of.file.model_copy(update={"large": LargeConfig.model_validate({"recorded": "large.jsonl"})}))
    for name in ("words", "encoder"):
        run_folder.model_folder(name).mkdir(parents=True)
    Finalists(names=("encoder", "words"), shares={"encoder": 0.6, "words": 0.2}).save(run_folder.path / FINALISTS)
    run_folder.save_evaluation(evaluation_of([evaluated_row("1", "a", "a")], candidate="large", split="calibration"))
    fix_before_test(of, run_folder)
    assert len(set(FixedBeforeTest.load(run_folder.path / FIXED).parts.values())) == 1


@pytest.mark.parametrize("changed", [{"guarantee": {"max_error": 0.1}}, {"domain": "off"}])
def test_another_promise_than_the_fixed_one_is_certified_without_them(tmp_path: Path, changed: dict[str, Any]) -> None:
    run_folder = run_of(project(tmp_path), tmp_path)
    assert "changed after a test row" in find_joined(project(tmp_path, **changed), run_folder, "words").why_not
    assert find_joined(project(tmp_path, person=True), run_folder, "words").why_not == ""


def test_test_rows_that_an_earlier_run_has_read_certify_nothing_but_the_same_run_repeats_itself(tmp_path: Path) -> None:
    of = project(tmp_path)
    first = run_of(of, tmp_path)
    again = find_joined(of, first, "words")
    assert joined(of, tmp_path, name="run-2").why_not == "an earlier run has read them"
    assert find_joined(of, first, "words") == again


def test_of_test_rows_that_are_new_to_a_later_run_these_certify(tmp_path: Path) -> None:
    of = project(tmp_path)
    run_of(of, tmp_path, name="run-1")
    more = of.rows.model_copy(
        update={"test": text_rows("t", *texts("late", 3), *(e.text for e in of.rows.test.examples))}
    )
    later = of._replace(rows=more)
    found = find_joined(later, run_of(later, tmp_path, name="run-2"), "words")
    assert found.why_not == ""
    assert found.n_test == 3


def test_files_that_the_user_gave_certify_together_only_where_they_are_declared_alike(tmp_path: Path) -> None:
    assert "data.exchangeable: true" in joined(project(tmp_path / "a", split=False), tmp_path / "a").why_not
    of = project(tmp_path / "b", split=False, data={"exchangeable": True})
    assert (joined(of, tmp_path / "b").why_not, len(of.rows.test)) == ("", 40)


def test_the_same_judge_labels_both(tmp_path: Path) -> None:
    declared = {"exchangeable": True}
    for part, n, by in (("validation", 60, BY_MODEL), ("test", 40, {})):
        (tmp_path / "one").mkdir(exist_ok=True)
        write(tmp_path / "one" / f"{part}.jsonl", labelled(part, n, **by))
    assert "another source" in joined(project(tmp_path / "one", split=False, data=declared), tmp_path / "one").why_not
    both = tmp_path / "both"
    both.mkdir()
    for part, n in (("validation", 60), ("test", 40)):
        write(both / f"{part}.jsonl", labelled(part, n, **BY_MODEL))
    assert joined(project(both, split=False, data=declared), both).why_not == ""
    said = project(tmp_path / "said", split=False, data=declared, labels="large")  # nothing says who labelled the test
    assert "another source" in joined(said, tmp_path / "said").why_not
    write(both / "gold.jsonl", labelled("validation", 1))
    with_gold = project(both, split=False, data=declared | {"gold": "gold.jsonl"}, labels="large")
    assert joined(with_gold, both, name="run-2").why_not == "people's answers in data.gold certify alone"


def test_copies_and_members_of_a_group_count_once_over_both(tmp_path: Path) -> None:
    grouped = {"exchangeable": True, "columns": {"group": "case"}}
    tmp_path.joinpath("desk").mkdir()
    own = labelled("test", 40)
    own[0]["text"] = texts("train", 120)[3]
    own[1]["text"] = texts("validation", 60)[5]
    own[2]["case"] = own[3]["case"] = "one case"
    own[4]["case"] = "validation 7"
    write(tmp_path / "desk" / "test.jsonl", own)
    of = project(tmp_path / "desk", split=False, data=grouped)
    found = joined(of, tmp_path / "desk")
    assert (found.why_not, found.n_test) == ("", 40 - 2 - 1 - 1)


def test_a_row_that_some_stage_was_not_asked_does_not_certify(tmp_path: Path) -> None:
    of = project(tmp_path, ahead=["words"])
    run_folder = run_of(of, tmp_path, finalists=("encoder",))
    half = run_folder.evaluation("words", "test")
    assert half is not None
    run_folder.save_evaluation(half.model_copy(update={"candidate": "encoder", "rows": half.rows[:5]}))
    assert find_joined(of, run_folder, "encoder").n_test == 5


def test_what_a_gate_lets_live_on_the_same_rows_is_promised_falsely_no_more_often_than_stated(tmp_path: Path) -> None:
    draws, bad = 600, {"divided": 0, "whole": 0}
    parts = {f"run {i}": 1 / 3 for i in range(3)}
    share = count_look(tmp_path / "looks.json", {"row"}, "a", "large", SharedLook("run", 1 / 3)).share
    for seed in range(draws):  # three candidates; of what they keep a little more than 10 % is wrong everywhere
        draw, live = np.random.default_rng(seed), dict.fromkeys(bad, False)
        for _ in parts:
            confidence, right = draw.random(300), draw.random(300) >= 0.1001
            passes = right[200:].mean() >= 0.9  # a gate on the last 100 rows, which are test rows
            for name, part in (("divided", share), ("whole", 0.8)):
                guarantee = Guarantee(max_error=0.1).at_share(part)
                found = search_threshold(confidence.tolist(), right.tolist(), guarantee)
                live[name] |= passes and found.n_accepted > 0
        for name in bad:
            bad[name] += live[name]
    assert bad["divided"] / draws <= 0.04 < bad["whole"] / draws

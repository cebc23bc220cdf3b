"""What candidates are chosen by: out-of-fold answers where there are any, else answers to selection rows."""

from __future__ import annotations

from pathlib import Path

from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.measuring.evaluate import compare
from smallfirst.path.plans.worth import choosing_evaluations, no_finalists
from smallfirst.path.project.run_folder import FINALISTS, Finalists, RunFolder


def test_out_of_fold_answers_choose_where_a_candidate_has_them(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path)
    rows = [evaluated_row(str(i), "a", "a" if i % 4 else "b", correct=i % 4 > 0, confidence=0.5) for i in range(40)]
    for name, split, n in (("small", "selection", 8), ("words", "choosing", 40), ("words", "selection", 8)):
        run_folder.save_evaluation(evaluation_of(rows[-n:], candidate=name, split=split))
    words, small = choosing_evaluations(run_folder)
    assert (words.candidate, words.split, len(words.rows)) == ("words", "choosing", 40)
    assert (small.candidate, small.split, len(small.rows)) == ("small", "selection", 8)  # not fitted several times
    assert compare(words, small).difference.n == 8  # on the rows that both have answered


def test_who_is_no_finalist_is_told_with_its_accuracy_and_its_rows(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path)
    rows = [evaluated_row(str(i), "a", "a" if i % 4 else "b", correct=i % 4 > 0) for i in range(40)]
    for name, split in (("words", "choosing"), ("encoder", "choosing"), ("small", "selection")):
        run_folder.save_evaluation(evaluation_of(rows, candidate=name, split=split))
    assert no_finalists(run_folder) == {}  # nothing was decided yet
    Finalists(names=("encoder",), shares={"encoder": 0.8}).save(tmp_path / FINALISTS)
    told = no_finalists(run_folder)
    assert list(told) == ["words", "small"]
    assert told["words"].startswith("no finalist by its accuracy 0.750 [")
    assert "on 40 rows out of fold; test rows were not asked" in told["words"]
    assert "on 40 rows to select with" in told["small"]

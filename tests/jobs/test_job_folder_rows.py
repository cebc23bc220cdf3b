"""The rows of a job are read once and told by their own lines ever after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.jobs import create_job

from smallfirst.errors import DataError
from smallfirst.jobs.job_folder import JobRows, JobSpec, read_rows


def test_rows_once_read_are_kept_with_their_places(jobs_home: Path, spec: JobSpec) -> None:
    job = create_job(spec.model_copy(update={"name": "kept", "eval_rows": spec.train_rows}))
    first = JobRows.load(job)
    Path(spec.train_rows).write_text('{"prompt": "other", "response": "rows"}')
    again = JobRows.load(job)
    assert (again.train, again.evaluation) == (first.train, first.evaluation)
    assert len(again.train) == 64
    assert (again.train.examples[2].path, again.train.examples[2].line) == (spec.train_rows, 3)


def test_rows_given_at_submission_are_not_read_again(jobs_home: Path, spec: JobSpec) -> None:
    rows = JobRows.read(spec)
    job = create_job(spec.model_copy(update={"name": "given", "train_rows": "nowhere.jsonl"}))
    rows.save(job.folder)
    assert JobRows.load(job).train == rows.train
    assert JobRows.load(job).evaluation is None


def test_a_folder_of_text_is_for_the_text_recipe_only(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("second")
    (tmp_path / "texts" / "a.txt").write_text("first")
    assert [e.answer for e in read_rows(str(tmp_path / "texts"), "text").examples] == ["first", "second"]
    with pytest.raises(DataError, match="2 of 2 rows do not fit") as caught:
        read_rows(str(tmp_path / "texts"), "chat")
    assert [Path(problem.path).name for problem in caught.value.problems] == ["a.txt", "b.txt"]


def test_rows_of_another_recipe_are_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "where is my card", "label": "card"}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1  a row of text \+ label; this recipe takes chat messages"):
        read_rows(str(rows), "chat")
    with pytest.raises(DataError, match=r"rows\.jsonl:1  a row of text \+ label; this recipe takes text alone"):
        read_rows(str(rows), "text")

"""A job's state, from its events and its lock alone."""

from pathlib import Path

import pytest
from fixtures.jobs import create_job, job_spec

from smallfirst.base.errors import DataError
from smallfirst.interfaces.jobs.job_folder import JobRows, JobSpec, new_job_name, read_rows


def test_asked_to_stop_it_is_terminating_until_it_says_so(jobs_home: Path) -> None:
    job = create_job(job_spec("stopping"))
    job.request_stop()
    assert (job.state, job.cancelled, job.ended) == ("TERMINATING", True, False)
    assert (job.folder / "run" / "cancel").exists()  # where training looks
    job.log.append("STOPPED", "")
    assert (job.state, job.ended) == ("STOPPED", True)


def test_names_tell_the_model_and_are_safe_in_paths() -> None:
    assert new_job_name("Org/My Model.v2")[:-6] == "my-model-v2-"
    assert new_job_name("../..")[:-6] == "model-"
    assert len({new_job_name("a/b") for _ in range(50)}) == 50


def test_rows_once_read_are_kept_with_their_places(jobs_home: Path, spec: JobSpec) -> None:
    job = create_job(spec.model_copy(update={"name": "kept", "eval_rows": spec.train_rows}))
    JobRows.keep(job)
    first = JobRows.load(job)
    Path(spec.train_rows).write_text('{"prompt": "other", "response": "rows"}')
    JobRows.keep(job)
    again = JobRows.load(job)
    assert (again.train, again.evaluation) == (first.train, first.train)
    assert len(again.train) == 64
    assert (again.train.examples[2].path, again.train.examples[2].line) == (spec.train_rows, 3)


def test_rows_given_at_submission_are_not_read_again(jobs_home: Path, spec: JobSpec) -> None:
    rows = read_rows(spec.train_rows, spec)
    job = create_job(spec.model_copy(update={"name": "given", "train_rows": "nowhere.jsonl"}))
    JobRows(rows, None).save(job.folder)
    JobRows.keep(job)
    assert JobRows.load(job) == (rows, None)


def test_a_folder_of_text_is_for_the_text_recipe_only(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("second")
    (tmp_path / "texts" / "a.txt").write_text("first")
    texts = str(tmp_path / "texts")
    assert [e.answer for e in read_rows(texts, job_spec(recipe="text")).examples] == ["first", "second"]
    with pytest.raises(DataError, match="2 of 2 rows do not fit") as caught:
        read_rows(texts, job_spec(recipe="chat"))
    assert [Path(problem.path).name for problem in caught.value.problems] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match="more than 1 rows"):
        read_rows(texts, job_spec(recipe="text", max_rows=1))

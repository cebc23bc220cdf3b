"""Few rows are answered out of fold before they are fitted together, in a run that can be interrupted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.progress import Progress
from smallfirst.models.manifest import TrainedOn, read_manifest
from smallfirst.path.project.candidates import fits_in_folds, get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file
from smallfirst.path.train import train_stage
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")


LADDER = ("words", "encoder", "tuned")


def few_rows(folder: Path, encoder: Path, **more: Any) -> Project:
    """54 training and 4 selection rows of three labels, told apart by a word."""
    things = ("card", "fee", "pin")
    rows = [
        {"text": f"where is my {things[i % 3]} number {i * 7919 % 1000}", "label": things[i % 3]} for i in range(90)
    ]
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"encoder": str(encoder), "encoder_training": {"duration": "2ep", "batch_tokens": 256}}
    values = {"name": "desk", "data": {"train": "few.jsonl"}, "ladder": list(LADDER), "small": small, **more}
    (folder / "task.yaml").write_text(json.dumps(values))
    return Project.read(read_task_file(folder / "task.yaml"), Progress(quiet=True))


def test_few_rows_are_answered_out_of_fold_and_then_fitted_together(
    tmp_path: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = few_rows(tmp_path, tiny_encoder_folder, routing={"small": "tuned"})  # fitted whatever its folds say
    rows, answered = project.rows.development, Counter[str]()
    for name in LADDER:
        candidate = get_candidate(name)

        def counted(*args: Any, name: str = name, ask: Any = candidate.out_of_fold) -> Any:
            answered[name] += 1
            return ask(*args)

        monkeypatch.setattr(candidate, "out_of_fold", counted)
    refit = get_candidate("tuned").refit

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(get_candidate("tuned"), "refit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_stage(project)
    monkeypatch.setattr(get_candidate("tuned"), "refit", refit)
    run_folder = train_stage(project, resume=True)
    assert answered == dict.fromkeys(LADDER, 1)  # what was answered before is not answered again

    for name, n_folds in zip(LADDER, (5, 5, 3), strict=True):
        folds = run_folder.folds(name)
        assert folds is not None
        assert (folds.n_folds, len(folds.answers)) == (n_folds, len(rows))
        assert folds.dataset_fingerprint == rows.content_fingerprint
        said = [one.text == e.answer for one, e in zip(folds.completions(name), rows.examples, strict=True)]
        assert sum(said) > 0.6 * len(said)
        manifest = read_manifest(run_folder.model_folder(name))
        assert manifest.temperature == folds.manifest.temperature
        seen = TrainedOn.read(run_folder.model_folder(name))
        assert seen == TrainedOn.of(rows)
    tuned = run_folder.folds("tuned")
    run = Run.load(run_folder.path / "tuned" / "run.json")
    assert tuned is not None
    assert (run.n_train, run.best_epoch) == (len(rows), tuned.best_epoch)
    assert [score for _, score in run.validation_curve] == list(tuned.curve[: len(run.validation_curve)])
    assert not (run_folder.path / "folds" / "tuned" / "training").exists()


def test_a_fine_tune_that_will_not_win_ends_with_its_first_fold(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    project = few_rows(tmp_path, tiny_encoder_folder)
    run_folder = train_stage(project)
    found = run_folder.fitted()
    assert found is not None
    assert found.fitted == ("words", "encoder")
    assert re.fullmatch(
        r"it is right on 0\.\d{3} of the first \d\d rows answered out of fold, (words|encoder) on (0\.9\d\d|1\.000)",
        found.left_out["tuned"],
    )
    assert [path.name for path in (run_folder.path / "folds" / "tuned").iterdir()] == ["1.json"]
    assert not run_folder.model_folder("tuned").exists()


def test_from_a_thousand_rows_on_selection_rows_choose(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    project = few_rows(tmp_path, tiny_encoder_folder)
    many = project.rows.train.subset("many", project.rows.train.examples * 1000)
    assert fits_in_folds(project)
    assert not fits_in_folds(project._replace(rows=project.rows.model_copy(update={"train": many})))
    linear = project._replace(file=project.file.model_copy(update={"ladder": ("words",)}))
    some = many.subset("some", many.examples[:2000])
    assert fits_in_folds(linear._replace(rows=linear.rows.model_copy(update={"train": some})))  # in seconds
    assert not fits_in_folds(linear._replace(rows=linear.rows.model_copy(update={"train": many})))

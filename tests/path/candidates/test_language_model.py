"""A fine-tune by several workers is told by files in the run's folder, and begins and ends like any other."""

import json
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.progress import Progress
from smallfirst.path.candidates.language_model import fine_tune
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file
from smallfirst.registry.runs import client
from smallfirst.training import on_ray
from smallfirst.training.on_ray import do_work
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import StepCallback

pytestmark = pytest.mark.usefixtures("module_home")


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Path, toy_rows: Any) -> Project:
    rows = [json.dumps({"text": example.text, "label": example.answer}) for example in toy_rows.examples]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    settings = "{duration: 1ep, batch_tokens: 96, max_seq_tokens: 64}"
    text = f"name: toy\ndata: {{train: rows.jsonl}}\nsmall: {{base: {tiny_folder}, training: {settings}}}\n"
    (tmp_path / "task.yaml").write_text(text)
    return Project.read(read_task_file(tmp_path / "task.yaml"), Progress(quiet=True))


def test_workers_get_the_recipe_and_one_mlflow_run(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def run_on_ray(folder: Path, n_workers: int, *, on_step: StepCallback, **_: Any) -> Any:
        asked.append(n_workers)
        return do_work(folder, on_step=on_step)  # as the only worker

    monkeypatch.setattr(on_ray, "train_on_ray", run_on_ray)
    recipe = TaskRecipe(project.task, project.rows.train, project.rows.selection)
    small = project.file.small
    run = fine_tune(
        project._replace(n_workers=3), recipe, small.training, base=small.base, folder=tmp_path / "run", run_name="r"
    )
    assert asked == [3]
    assert client().get_run(run.run_id).info.status == "FINISHED"
    assert (run.folder / "model.safetensors").is_file()

"""A fine-tune by several workers is told by files in the run's folder, and begins and ends like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallfirst.paths import state_of
from smallfirst.pipeline.candidates.language_model import SMALL
from smallfirst.pipeline.ladder.sweep import sweep_stage, take_winner
from smallfirst.pipeline.train import fine_tune
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.registry.runs import client, open_run
from smallfirst.training.distributed import on_ray
from smallfirst.training.distributed.on_ray import Trial
from smallfirst.training.distributed.work import do_work, read_work
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import Run, train

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
    asked: list[tuple[int, bool]] = []

    def run_on_ray(folder: Path, n_workers: int, *, log: Callable[[str], None], **calls: Any) -> Any:
        asked.append((n_workers, read_work(folder)[0].shard))
        return do_work(folder, **calls)  # as the only worker

    monkeypatch.setattr(on_ray, "train_on_ray", run_on_ray)
    recipe = TaskRecipe(project.task, project.rows.train, project.rows.selection)
    small = project.file.small
    run = fine_tune(
        project._replace(n_workers=3, shard=True),
        recipe,
        small.training,
        base=small.base,
        folder=tmp_path / "run",
        run_name="r",
    )
    assert asked == [(3, True)]
    assert client().get_run(run.run_id).info.status == "FINISHED"
    assert (run.folder / "model.safetensors").is_file()


def test_a_sweep_ends_in_settings_whose_model_the_next_run_takes_over(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = project.file.small
    config = small.training.model_copy(update={"duration": "2ep"})

    def run_on_ray(folder: Path, *_: object, **__: object) -> list[Trial]:
        work, recipe = read_work(folder)
        with open_run("toy", "trial") as tracked:
            train(recipe, config, base=(work.base, work.weights), tracked=tracked, folder=folder / "trials" / "a")
        poor = Trial("b", {"learning_rate": 0.0002, "duration": "1ep"}, 0.5, 1, "stopped early")
        return [Trial("a", {"learning_rate": 0.00031, "duration": "2ep"}, 0.75, 2, "completed"), poor]

    monkeypatch.setattr(on_ray, "sweep_on_ray", run_on_ray)
    head, first, second, said, *lines = sweep_stage(project, n_trials=2, n_workers=1, seed=0)
    assert head.split() == ["learning_rate", "duration", "score", "epochs"]
    assert first.split() == ["0.00031", "2ep", "0.750", "2", "completed"]
    assert second.split() == ["0.0002", "1ep", "0.500", "1", "stopped", "early"]
    assert f"{len(project.rows.selection)} selection rows" in said
    assert "whose model train and run then take over" in said
    assert lines == ["small:", "  training:", "    learning_rate: 0.00031", "    duration: 2ep"]

    with state_of(project.file.folder):
        other, run_folder = RunFolder.new("toy"), RunFolder.new("toy")
        take_winner(project, other.path)
        assert list(other.path.iterdir()) == []  # task.yaml still has other settings
        file = project.file.model_copy(update={"small": small.model_copy(update={"training": config})})
        SMALL.fit(project._replace(file=file), run_folder)
        (won,) = run_folder.path.parent.glob("*/sweep/trials/a")
    names = ("events.jsonl", "model/model.safetensors")
    assert [(run_folder.path / name).read_bytes() for name in names] == [(won / name).read_bytes() for name in names]
    assert Run.load(run_folder.path / "run.json").folder == run_folder.path / "model"

"""A sweep: settings of the language model's fine-tune, compared on selection rows; test rows are never looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import base_sha256
from smallfirst.progress import format_table
from smallfirst.project.project import Project, in_task_state
from smallfirst.project.run_folder import RunFolder
from smallfirst.registry import runs

LEAST_ROWS = 100
"""Selection rows below which differences between trials are mostly chance."""


@in_task_state
def sweep_stage(project: Project, *, n_trials: int, n_workers: int, seed: int) -> list[str]:
    """Run the trials, each an MLflow run below that of the sweep; return a table, the best first, and what to do next.

    Raise as `sweep_on_ray` does.
    """
    from smallfirst.training.distributed.on_ray import COMPLETED, sweep_on_ray
    from smallfirst.training.distributed.work import write_work
    from smallfirst.training.recipes.recipe import TaskRecipe

    file, rows = project.file, project.rows
    if len(rows.selection) < LEAST_ROWS:
        project.progress.log(f"{len(rows.selection)} selection rows: differences between trials are mostly chance")
    recipe = TaskRecipe(project.task, rows.train, rows.selection, file.teacher)
    base, folder = file.small.base, RunFolder.new(file.name).path / "sweep"
    params = {"task": file.name, "trials": n_trials, "n_train": len(rows.train)}
    with (
        runs.open_run(file.name, f"{folder.parent.name}-sweep", params=params) as tracked,
        project.progress.step(f"sweep of {n_trials} trials"),
    ):
        weights = find_weights(base, log=project.progress.log)
        write_work(folder, recipe, file.small.training, (base, weights), tracked.run_id)
        trials = sweep_on_ray(folder, n_trials, n_workers, seed=seed, log=project.progress.log)
        tracked.log_json("sweep", [trial._asdict() for trial in trials])
        tracked.log_metrics(0, {"best_score": trials[0].score})
    head = [*trials[0].settings, "score", "epochs", ""]
    cells = [
        [*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.settings.values())]
        + [f"{trial.score:.3f}", str(trial.epochs), trial.ended]
        for trial in trials
    ]
    kept = ", whose model train and run then take over" if trials[0].ended == COMPLETED else ""
    best = [f"    {name}: {value}" for name, value in trials[0].settings.items()]
    return [
        *format_table([head, *cells]),
        f"scores are on {len(rows.selection)} selection rows; the best settings, for task.yaml{kept}:",
        "small:",
        "  training:",
        *best,
    ]


def take_winner(project: Project, folder: Path) -> None:
    """Copy the winner of an earlier sweep into a new run's folder if it was trained with these settings and rows."""
    from smallfirst.training.distributed.work import read_work
    from smallfirst.training.run import Run

    file, train, selection = project.file, project.rows.train, project.rows.selection
    if (folder / "events.jsonl").exists():
        return
    for path in sorted(folder.parent.glob("*/sweep/trials/*/run.json"), reverse=True):
        run, (work, recipe) = Run.load(path), read_work(path.parents[2])
        there = (run.config, run.base, work.task, work.teacher, recipe.train_rows.content_fingerprint)
        here = (file.small.training, file.small.base, project.task, file.teacher, train.content_fingerprint)
        same_rows = recipe.selection.content_fingerprint == selection.content_fingerprint
        if there == here and same_rows and base_sha256(find_weights(run.base)) == run.base_sha256:
            shutil.copytree(path.parent, folder, dirs_exist_ok=True)
            run.model_copy(update={"folder": folder / "model"}).save(folder / "run.json")
            project.progress.log(f"the sweep of run {path.parents[3].name} has trained these settings: taken over")
            return

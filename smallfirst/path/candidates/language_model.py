"""The fine-tuned small language model, and how a fine-tune is tracked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallfirst.data.pages import PAGE_BREAK
from smallfirst.models.catalog import find_weights
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.project.candidates import Candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.registry import runs

if TYPE_CHECKING:
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.loop import StepMetrics
    from smallfirst.training.recipe import Recipe
    from smallfirst.training.run import Run


class FineTunedModel(Candidate):
    """The fine-tuned small language model."""

    name = FINE_TUNED
    title = "fine-tuned small model"
    explanation = "a small language model, trained further on your rows"
    size = 50
    promise = 15  # no measured set has shown it ahead of an encoder that suits the task; where none does, it is alone
    folder = "model"
    measured_by_default = True
    training_setting = "training"
    is_language_model = True

    def why_unsuitable(self, project: Project) -> str:
        return why_too_long(project) or super().why_unsuitable(project)

    def asked_for(self, file: Any) -> bool:
        """Return True for answers that must be written, and for others where the file names it or sets how it is made.

        On labels encoders of the same size or smaller were right as often on every set that was measured
        (`benchmarks/results/`), and are fitted and served many times faster.
        """
        own = {"base", "training", "vllm"} & file.small.model_fields_set
        return file.kind not in ("classify", "call") or bool(own) or self.name in (file.goes_live, *file.routing.ahead)

    def fit(self, project: Project, run_folder: RunFolder) -> float:
        """Fine-tune and keep the best epoch."""
        from smallfirst.training.recipe import TaskRecipe

        file, rows = project.file, project.rows
        recipe = TaskRecipe(project.task, rows.train, rows.selection)
        run = fine_tune(
            project,
            recipe,
            file.small.training,
            base=file.small.base,
            folder=run_folder.path,
            run_name=run_folder.path.name,
        )
        return run.best_score


def fine_tune(
    project: Project,
    recipe: Recipe,
    config: TrainConfig,
    *,
    base: str,
    folder: Path,
    run_name: str,
    label: str = "training",
    judged_by: str = "on selection rows",
) -> Run:
    """Fine-tune `base` into `folder`/model, tracked in the MLflow run `run_name` and shown as a progress bar.

    A folder in which training was interrupted is continued, in the MLflow run that it began with. Without a `run_name`
    nothing is tracked.
    """
    from smallfirst.training.recipe import TaskRecipe
    from smallfirst.training.run import hold_folder, train

    weights = find_weights(base, log=project.progress.log)
    n_rows = len(recipe.train_rows)
    params: dict[str, object] = {f"train.{name}": value for name, value in config.model_dump().items()}
    params |= {"base": base, "n_train": n_rows, "task": project.file.name}
    params["dataset_fingerprint"] = recipe.train_rows.content_fingerprint
    project.progress.log(f"train: {base}, {config.method}, {config.duration}, {n_rows} rows")
    with hold_folder(folder):
        pass  # the MLflow run of a training under way must not be resumed and closed here
    with (
        _tracked_run(project.file.name, folder, run_name, params) as tracked,
        project.progress.bar(label, 100, unit="%") as update,
    ):

        def on_step(step: StepMetrics) -> None:
            update(round(100 * step.progress), 100, f"loss {step.loss:.3f}, {step.tokens_per_s:.0f} tokens/s")

        calls: dict[str, Any] = {"on_step": on_step, "on_epoch": project.on_epoch}
        if isinstance(recipe, TaskRecipe) and project.n_workers > 1:
            from smallfirst.training.on_ray import train_on_ray, write_work

            write_work(folder, recipe, config, (base, weights), tracked.run_id)
            run = train_on_ray(folder, project.n_workers, log=project.progress.log, **calls)
        else:
            run = train(recipe, config, base=(base, weights), tracked=tracked, folder=folder, **calls)
        tracked.log_artifact(folder / "events.jsonl")
    project.progress.log(
        f"trained in {run.seconds / 60:.1f} min at {run.tokens_per_s:.0f} tokens/s (rows without padding) in "
        f"{run.precision}; best epoch {run.best_epoch}: {run.best_score:.3f} {judged_by}"
    )
    return run


def _tracked_run(experiment: str, folder: Path, run_name: str, params: dict[str, object]) -> runs.TrackedRun:
    """Return the MLflow run that training in this folder began with, else a new one."""
    from smallfirst.training.events import EventLog

    if not run_name:
        return runs.UntrackedRun()
    created = [e.values["run_id"] for e in EventLog(folder / "events.jsonl").read() if e.kind == "CREATED"]
    return runs.resume_run(created[0]) if created else runs.open_run(experiment, run_name, params=params)


def why_too_long(project: Project) -> str:
    """Return why a language model cannot read the training rows, in a clause; empty if it can."""
    paged = any(PAGE_BREAK in example.text for example in project.rows.train.examples)
    return "it reads short texts; these are documents of several pages" if paged else ""


SMALL = FineTunedModel()

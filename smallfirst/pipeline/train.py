"""The training stage: every candidate of a run fitted into one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallfirst.errors import NothingGained, StageMissing
from smallfirst.evaluation.label_errors import read_relabels
from smallfirst.models.catalog import find_weights
from smallfirst.models.local.weights import release_memory
from smallfirst.models.trained_on import TRAINED_ON, TrainedOn
from smallfirst.pipeline.ladder.ladder import Ladder
from smallfirst.pipeline.ladder.plan import TimeBudget
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.project.candidates import Candidate, fits_in_folds, project_candidates
from smallfirst.project.expenses import note_expense
from smallfirst.project.project import Project, in_task_state
from smallfirst.project.run_folder import FITTED, FittedCandidates, RunFolder
from smallfirst.project.run_lock import only_run
from smallfirst.registry import runs

if TYPE_CHECKING:
    from smallfirst.data.dataset import Dataset
    from smallfirst.models.manifest import Int8Check
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.loop import StepMetrics
    from smallfirst.training.recipes.recipe import Recipe
    from smallfirst.training.run import Run


@in_task_state
def train_stage(project: Project, *, resume: bool = False, began: float | None = None) -> RunFolder:
    """Fit the candidates of the project and return the run folder.

    `resume` continues the latest run that reached no report. Raise StageMissing if there is none or its rows were
    others, TrainingError while another run of the task is under way. `minutes` of task.yaml count from `began`, a time
    of the progress's clock; None: from now.
    """
    with only_run(project.file.name):
        return _fit_all(project, resume=resume, began=began)


def _fit_all(project: Project, *, resume: bool, began: float | None) -> RunFolder:
    candidates, train = project_candidates(project), project.rows.train
    run_folder = _run_folder(project, resume=resume)
    for skipped in project.rows.skipped:
        project.progress.log(f"{skipped.what}: {'; '.join(skipped.where)}")
    ladder = tuple(candidate.name for candidate in candidates)
    found = FittedCandidates(ladder=ladder, dataset_fingerprint=train.content_fingerprint)
    if (earlier := run_folder.fitted()) is not None:
        if (earlier.ladder, earlier.dataset_fingerprint) != (ladder, found.dataset_fingerprint):
            raise StageMissing(
                f"the rows or the ladder are others than when run {run_folder.path.name} began",
                hint="smallfirst run task.yaml   starts a new run",
            )
        found = earlier
    found.save(run_folder.path / FITTED)
    _note_labels(project)

    def fit(project: Project, candidate: Candidate) -> None:
        nonlocal found
        start = project.progress.clock()
        with project.progress.step(f"fitting {candidate.title}"):
            try:
                _fit_one(project, run_folder, candidate)
            except NothingGained as why:
                project.progress.log(f"{candidate.name} left out: {why}")
                found = found.model_copy(update={"left_out": {**found.left_out, candidate.name: str(why)}})
                return
        release_memory()
        minutes = {**found.minutes, candidate.name: (project.progress.clock() - start) / 60}
        found = found.model_copy(update={"fitted": (*found.fitted, candidate.name), "minutes": minutes})
        found.save(run_folder.path / FITTED)
        _note_expense(project, run_folder, found)

    waiting = [candidate for candidate in candidates if candidate.name not in found.fitted]
    if project.file.minutes is None:
        for candidate in sorted(waiting, key=lambda candidate: candidate.combines):
            fit(project, candidate)
    else:
        rungs = Ladder(project, waiting, TimeBudget(project, began=began, used_minutes=sum(found.minutes.values())))
        rungs.fit(fit)
        found = found.model_copy(update={"left_out": {**found.left_out, **rungs.left_out}})
    if found.mlflow_run_id is None:
        run_id = run_folder.mlflow_run_id() if FINE_TUNED in found.fitted else _open_run(project, run_folder, found)
        found.model_copy(update={"mlflow_run_id": run_id}).save(run_folder.path / FITTED)
    return run_folder


def _fit_one(project: Project, run_folder: RunFolder, candidate: Candidate) -> None:
    """Fit a candidate on training rows; where these are few, in folds first and then on training and selection rows."""
    if not (candidate.n_folds and fits_in_folds(project)):
        candidate.fit(project, run_folder)
    else:
        rows = project.rows.development
        folds = run_folder.folds(candidate.name)
        if folds is None or folds.dataset_fingerprint != rows.content_fingerprint:
            with project.progress.step(f"{candidate.title}: answering {len(rows):,} rows out of fold"):
                folds = candidate.out_of_fold(project, run_folder)
            run_folder.save_folds(candidate.name, folds)
        candidate.refit(project, run_folder, folds)
    if candidate.promotable:
        TrainedOn.of(project.rows.development).save(run_folder.model_folder(candidate.name) / TRAINED_ON)


def _note_expense(project: Project, run_folder: RunFolder, found: FittedCandidates) -> None:
    """Write to the ledger what fitting has cost so far, at the machine's price an hour: it does nothing else then."""
    hours = sum(found.minutes.values()) / 60
    usd = hours * project.file.prices.machine.usd_per_hour
    what = f"run {run_folder.path.name}: {', '.join(found.minutes)}"
    note_expense(project.file.name, "training", run_folder.path.name, usd, what=what, busy_s=3600 * hours)


def _note_labels(project: Project) -> None:
    """Write to the ledger what people's labels of probable label errors have cost so far."""
    file, relabels = project.file, project.file.data.relabels
    n = len(read_relabels(file.path(relabels))) if relabels else 0
    usd = n * (file.prices.usd_per_label or 0.0)
    note_expense(file.name, "labels", "labels", usd, what=f"{n:,} answers of people")


def _open_run(project: Project, run_folder: RunFolder, found: FittedCandidates) -> str:
    """Return the id of a new, finished MLflow run: no fine-tune made one."""
    params = {"task": project.file.name, "ladder": ", ".join(found.fitted), "n_train": len(project.rows.train)}
    params |= {"dataset_fingerprint": found.dataset_fingerprint}
    with runs.open_run(project.file.name, run_folder.path.name, params=params) as tracked:
        return tracked.run_id


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
    from smallfirst.training.distributed import torchrun
    from smallfirst.training.recipes.recipe import TaskRecipe
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
        if isinstance(recipe, TaskRecipe) and (project.n_workers > 1 or torchrun.is_launched()):
            from smallfirst.training.distributed.on_ray import train_on_ray
            from smallfirst.training.distributed.work import write_work

            write_work(folder, recipe, config, (base, weights), tracked.run_id, shard=project.shard)
            if torchrun.is_launched():
                run: Run = torchrun.train_along(folder, tracked=tracked, **calls)
            else:
                run = train_on_ray(folder, project.n_workers, log=project.progress.log, **calls)
        else:
            run = train(recipe, config, base=(base, weights), tracked=tracked, folder=folder, **calls)
        tracked.log_artifact(folder / "events.jsonl")
    score = dict(run.validation_curve)[run.best_epoch]
    project.progress.log(
        f"trained in {run.seconds / 60:.1f} min at {run.tokens_per_s:.0f} tokens/s; best epoch {run.best_epoch}: "
        f"{score:.3f} {judged_by}"
    )
    return run


def choose_precision(project: Project, folder: Path, rows: Dataset | None = None) -> Int8Check | None:
    """Decide whether the model in a folder is read in int8 from now on, by rows that it was not fitted on.

    Left out these are the selection rows. None where int8 is not possible.
    """
    from smallfirst.models.local.int8_check import check_int8

    found = check_int8(folder, project.rows.selection if rows is None else rows) if project.task.closed else None
    if found:
        project.progress.log(f"int8 {'used' if found.kept else 'not used'}: {found.why}")
    return found


def _run_folder(project: Project, *, resume: bool) -> RunFolder:
    name = project.file.name
    unfinished = RunFolder.unfinished(name)
    if resume:
        unfinished = unfinished or RunFolder.without_report(name)
        if unfinished is None:
            raise StageMissing(f"{name} has no interrupted run to resume", hint="smallfirst train task.yaml")
        project.progress.log(f"resuming run {unfinished.path.name}")
        return unfinished
    if unfinished is not None:
        project.progress.log(f"run {unfinished.path.name} was interrupted; --resume continues it, this is a new run")
    return RunFolder.new(name)


def _tracked_run(experiment: str, folder: Path, run_name: str, params: dict[str, object]) -> runs.TrackedRun:
    """Return the MLflow run that training in this folder began with, else a new one."""
    from smallfirst.training.events import EventLog

    if not run_name:
        return runs.UntrackedRun()
    created = [e.values["run_id"] for e in EventLog(folder / "events.jsonl").read() if e.kind == "CREATED"]
    return runs.resume_run(created[0]) if created else runs.open_run(experiment, run_name, params=params)

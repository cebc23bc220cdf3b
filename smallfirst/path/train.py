"""The training stage: every candidate of a run fitted into one run folder."""

from __future__ import annotations

from smallfirst.base.errors import NothingGained, StageMissing
from smallfirst.ledger.expenses import note_expense
from smallfirst.measuring.label_errors import read_relabels
from smallfirst.models.local.weights import release_memory
from smallfirst.models.manifest import TRAINED_ON, TrainedOn
from smallfirst.path.ladder import Ladder, TimeBudget
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.project.candidates import Candidate, fits_in_folds, project_candidates
from smallfirst.path.project.project import Project, in_task_state
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder, only_run
from smallfirst.registry import runs


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

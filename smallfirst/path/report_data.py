"""The report stage: gather what the other stages measured and write the report."""

from __future__ import annotations

import platform
import shlex
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import smallfirst
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.learning_curve import LearningCurve
from smallfirst.measuring.outcome import Outcome
from smallfirst.path.diagnostics import LEARNING, Diagnostics, diagnose
from smallfirst.path.plans.worth import no_finalists
from smallfirst.path.project.candidate_registry import promotable_names
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.run_folder import (
    CERTIFICATE,
    FOLDS,
    OUTCOME,
    PROMOTED,
    VERDICTS,
    GateVerdicts,
    Promotion,
    RunFolder,
)
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.report.data import (
    LeakEffect,
    OpenEndedRouting,
    ReportData,
    TrainingSummary,
)
from smallfirst.path.report.formats import capitalize_first
from smallfirst.path.summary import OPEN_ENDED
from smallfirst.registry import runs
from smallfirst.routing.certificate.certificate import Certificate


@shown_as("looking for leaks and label errors")
def report_stage(project: Project, run_folder: RunFolder) -> Path:
    """Write the report of everything measured so far to the run folder and to MLflow; return its path."""
    from smallfirst.path.report.page import save

    path = save(report_data(project, run_folder, diagnose(project, run_folder)), run_folder.path / "report.html")
    tracked = runs.resume_run(run_folder.mlflow_run_id())
    tracked.log_artifact(path)
    tracked.finish()
    project.progress.log(f"report: {path}")
    return path


def report_data(project: Project, run_folder: RunFolder, doubts: Diagnostics) -> ReportData:
    """Return everything that the report of a run shows."""
    file, rows = project.file, project.rows
    evaluations = run_folder.evaluations("test")
    verdicts, live = run_folder.find(GateVerdicts, VERDICTS), run_folder.find(Promotion, PROMOTED)
    curve = run_folder.find(LearningCurve, LEARNING)
    return ReportData(
        title=f"{file.name}: small model or large?",
        task=file.name,
        part=project.task.part,
        request_noun=project.task.request_noun,
        pass_score=project.task.pass_score,
        evaluations=tuple(evaluations),
        calibration_evaluations=tuple(
            e for name in (*promotable_names(), "large") if (e := run_folder.evaluation(name, "calibration"))
        ),
        verdicts=verdicts.verdicts if verdicts else (),
        trials=verdicts.trials if verdicts else (),
        smallest_passing=verdicts.winner if verdicts else None,
        outcome=run_folder.find(Outcome, OUTCOME),
        certificate=run_folder.find(Certificate, CERTIFICATE),
        training=_training(file, run_folder),
        machine=file.prices.machine,
        requests_per_month=file.requests_per_month,
        open_ended=run_folder.find(OpenEndedRouting, OPEN_ENDED),
        learning_curve=curve.points if curve else (),
        suspects=doubts.suspects,
        suspects_export=f"smallfirst review {shlex.quote(str(file.folder))} --labels suspects.jsonl",
        self_agreement=doubts.ceiling,
        leaks=LeakEffect.measure(small, doubts.leaks) if (small := _judged(run_folder, live)) else None,
        notes=_notes(rows, run_folder, verdicts),
        made_at=datetime.now(UTC),
        versions=_versions(),
    )


def _judged(run_folder: RunFolder, live: Promotion | None) -> Evaluation | None:
    """The evaluation whose accuracy is shown with and without leaks: of who went live, else of the largest."""
    names = [live.candidate] if live else promotable_names()
    return next((found for name in reversed(names) if (found := run_folder.evaluation(name, "test"))), None)


def _training(file: TaskFile, run_folder: RunFolder) -> TrainingSummary | None:
    if not (run_folder.path / "run.json").exists():  # the ladder is without the fine-tuned model
        return None
    from smallfirst.training.run import Run

    run = Run.load(run_folder.path / "run.json")
    return TrainingSummary(
        **{name: getattr(run, name) for name in ("base", "seconds", "tokens_per_s")},
        method=run.config.method,
        epochs=run.validation_curve[-1][0],
        train_rows=run.n_train,
        cost_usd=file.prices.machine.usd_per_hour * run.seconds / 3600,
    )


def _notes(rows: Rows, run_folder: RunFolder, verdicts: GateVerdicts | None) -> tuple[str, ...]:
    to_fit = (
        f"{len(rows.train)} to train on, {len(rows.selection)} to choose the epoch, the temperature and the candidate"
    )
    if (run_folder.path / FOLDS).is_dir():
        to_fit = (
            f"{len(rows.development)} to train on and, answered out of fold, to choose the epoch, the temperature and "
            "the candidate"
        )
    notes = [
        f"Rows: {to_fit}, {len(rows.calibration)} to certify and nothing else, {len(rows.test)} to test, touched once.",
        "The gate looks at three candidates at most on the same test rows, in an order fixed before: the first has "
        "three fifths of its level, the others share one fifth, plans another.",
    ]
    for found in (*rows.skipped, *rows.notes):
        notes.append(f"{capitalize_first(found.what)}{': ' if found.where else ''}{'; '.join(found.where)}.")
    if rows.counted.in_words:
        notes.append(f"{rows.counted.in_words}.")
    if verdicts and verdicts.how_found:
        notes.append(f"{capitalize_first(str(verdicts.winner))}: {verdicts.how_found}.")
    if (fitted := run_folder.fitted()) is not None and fitted.minutes:
        notes.append(f"Fitted in: {', '.join(f'{name} {took:.1f} min' for name, took in fitted.minutes.items())}.")
        left_out = fitted.left_out | no_finalists(run_folder)
        notes += [f"{capitalize_first(name)} left out: {why}." for name, why in left_out.items()]
    large = run_folder.evaluation("large", "test")
    if large and large.note:
        notes.append(f"Large model: {large.note}.")
    return tuple(notes)


def _versions() -> dict[str, str]:
    found = {"smallfirst": smallfirst.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "scikit-learn", "mlflow-skinny"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

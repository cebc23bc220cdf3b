"""The whole path, stage by stage: the table of contents of the project.

Each stage takes what the one before has left in the run's folder and leaves its own, so `run()` and the single commands
do the same work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.data.dataset import Dataset
from smallfirst.data.split import sample_share
from smallfirst.errors import GateFailed, StageMissing
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.gate import check
from smallfirst.gate.verdict import format_verdict, override_candidate, smallest_passing
from smallfirst.models.catalog import find_weights
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.replay import ReplayModel
from smallfirst.pipeline import large_model as large_path
from smallfirst.pipeline.calibrate import certify_promoted
from smallfirst.pipeline.candidates import fit_linear, load_candidate, load_ood_detector, tune_encoder
from smallfirst.pipeline.check import PreflightReport, run_preflight
from smallfirst.pipeline.confidence_heads import ConfidenceHeads
from smallfirst.pipeline.diagnostics import diagnose, find_split_leaks
from smallfirst.pipeline.learning_curve import measure_curve
from smallfirst.pipeline.parity import parity_stage
from smallfirst.pipeline.retention import measure_retention, requested_probe
from smallfirst.pipeline.router_setup import cascade_stages, routing_rules
from smallfirst.pipeline.summary import OpenEndedRouting, RunSummary, summarize_run
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import GateVerdicts, Promotion, RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.registry import runs, versions
from smallfirst.registry.evaluations import log_evaluation
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.router import Router

PROBE_ROWS = 40
"""Rows asked one at a time for the latency figures."""

T = TypeVar("T")


def run(file: TaskFile, *, progress: Progress | None = None, resume: bool = False) -> RunSummary:
    """Train, measure, gate, promote, certify, measure the Router, report. Raises GateFailed if nothing may go live.

    `resume` goes on with a training that was broken off.
    """
    project = Project.read(file, progress)
    found = check_stage(project)
    warning = "; `smallfirst check` shows why, the gate counts leaks all the same" if found.verdict == "NO" else ""
    foretold = f"; the fine-tune takes {found.needs.short_summary}" if found.needs else ""
    project.progress.log(f"check: {found.verdict} ({len(project.rows.train)} rows to train on){warning}{foretold}")
    run_folder = train_stage(project, resume=resume)
    evaluate_stage(project, run_folder)
    gate_and_release(project, run_folder)
    return summarize_run(file, run_folder)


def gate_and_release(project: Project, run_folder: RunFolder) -> None:
    """Gate, promotion, certificate, Router, report. Raises GateFailed, the report written, if nothing may go live."""
    if project.task.closed:
        measure_curve(project, run_folder)
    verdicts = gate_stage(project, run_folder)
    chosen = chosen_candidate(project, verdicts)
    if not verdicts.of(chosen).passed:
        report_stage(project, run_folder)
        raise GateFailed(
            f"{chosen} may not go live\n{format_verdict(verdicts.of(chosen))}",
            hint=f"read {run_folder.folder / 'report.html'}; keep the large model until it passes",
        )
    promote_stage(project, run_folder)
    calibrate_stage(project, run_folder)
    report_stage(project, run_folder)


def check_stage(project: Project, *, curve: bool = False) -> PreflightReport:
    """What is to be known about the rows and the fine-tune before anything is spent; `curve` adds what more rows do."""
    return run_preflight(project, curve=curve)


def train_stage(project: Project, *, resume: bool = False) -> RunFolder:
    """A run with the fine-tuned model and the linear ones: a new one, or with `resume` the one that was broken off.

    Raises StageMissing if there is none to go on with.
    """
    from smallfirst.training.recipes.recipe import TaskRecipe
    from smallfirst.training.run import train

    file, config = project.file, project.file.small.training
    requested_probe(file)  # questions that cannot be asked are told before anything is trained
    run_folder = _place(project, resume=resume)
    base = find_weights(file.small.base, log=project.progress.log)
    project.progress.log(
        f"train: {file.small.base}, {config.method}, {config.duration}, {len(project.rows.train)} rows"
    )
    params: dict[str, object] = {f"train.{k}": v for k, v in config.model_dump().items()}
    params |= {"base": file.small.base, "n_train": len(project.rows.train), "task": file.name}
    params["dataset_fingerprint"] = project.rows.train.content_fingerprint
    if file.teacher is not None:
        params |= {f"teacher.{k}": v for k, v in file.teacher.model_dump().items()}
    with (
        _tracked(file.name, run_folder, params) as tracked,
        project.progress.bar("training", 100, unit="%") as update,
    ):
        run_record = train(
            TaskRecipe(project.task, project.rows.train, project.rows.selection, file.teacher),
            config,
            base=(file.small.base, base),
            tracked=tracked,
            folder=run_folder.folder,
            on_step=lambda step: update(
                round(100 * step.progress), 100, f"loss {step.loss:.3f}, {step.tokens_per_s:.0f} tokens/s"
            ),
        )
        tracked.log_artifact(run_folder.folder / "events.jsonl")
    project.progress.log(
        f"trained in {run_record.seconds / 60:.1f} min at {run_record.tokens_per_s:.0f} tokens/s; best epoch "
        f"{run_record.best_epoch}: {dict(run_record.validation_curve)[run_record.best_epoch]:.3f} on selection rows"
    )
    _try_int8(project, run_folder)
    fit_linear(project, run_folder)
    tune_encoder(project, run_folder)
    return run_folder


def _try_int8(project: Project, run_folder: RunFolder) -> None:
    """Decide on selection rows, before anything is measured, whether the model is read in int8."""
    from smallfirst.models.local.int8_check import check_int8

    if project.task.closed and (found := check_int8(run_folder.model_folder("small"), project.rows.selection)):
        project.progress.log(f"int8 {'' if found.kept else 'not '}kept: {found.why}")


def _place(project: Project, *, resume: bool) -> RunFolder:
    """The folder of the run."""
    unfinished = RunFolder.unfinished(project.file.name)
    if resume:
        if unfinished is None:
            raise StageMissing(f"{project.file.name} has no run to go on with", hint="smallfirst train task.yaml")
        project.progress.log(f"going on with run {unfinished.folder.name}")
        return unfinished
    if unfinished is not None:
        project.progress.log(
            f"run {unfinished.folder.name} was broken off; --resume goes on with it, this is a new one"
        )
    return RunFolder.new(project.file.name)


def _tracked(task: str, run_folder: RunFolder, params: dict[str, object]) -> runs.TrackedRun:
    """The MLflow run that the folder began with, else a new one."""
    from smallfirst.training.events import EventLog

    begun = [e.values["run_id"] for e in EventLog(run_folder.folder / "events.jsonl").read() if e.kind == "CREATED"]
    return runs.resume_run(begun[0]) if begun else runs.open_run(task, run_folder.folder.name, params=params)


def evaluate_stage(project: Project, run_folder: RunFolder) -> list[Evaluation]:
    """Every candidate and the large model on calibration rows and on test rows; returns the latter."""
    for candidate in project.ladder:
        model = load_candidate(project, run_folder, candidate)
        splits = ("test",) if candidate == "base" else ("calibration", "test")
        for split in splits:
            _run(_evaluate(project, run_folder, model, candidate=candidate, split=split, probe=PROBE_ROWS))
        _run(model.aclose())
    measure_retention(project, run_folder)
    if project.file.large is not None:
        large = _run(large_path.recorded_answers(project.file, project.task, project.rows, progress=project.progress))
        for split in ("calibration", "test"):
            _run(_evaluate(project, run_folder, large, candidate="large", split=split))
    return run_folder.evaluations("test")


def gate_stage(project: Project, run_folder: RunFolder) -> GateVerdicts:
    """The gate's verdict on every candidate, drawn from test rows, corrected for looking at several."""
    found = run_folder.evaluations("test")
    large = run_folder.evaluation("large", "test")
    candidates = [e for e in found if e.candidate in {"words", "encoder", "tuned", "small"}]
    leaks, kept = find_split_leaks(project, run_folder), measure_retention(project, run_folder)
    verdicts = tuple(
        check(
            project.file.gate,
            e,
            large=large,
            comparisons_made=len(candidates),
            leaks=leaks,
            retention=kept if e.candidate == "small" else None,
        )
        for e in candidates
    )
    result = GateVerdicts(verdicts=verdicts, smallest=smallest_passing(verdicts))
    result.save(run_folder.folder / "verdicts.json")
    passing = ", ".join(v.candidate for v in verdicts if v.passed) or "none"
    project.progress.log(f"gate: passing {passing}")
    return result


def override_stage(project: Project, run_folder: RunFolder, candidate: str, *, by: str, because: str) -> GateVerdicts:
    """Return the verdicts with the one on `candidate` overridden. Raises ConfigError as `override_candidate` does."""
    verdicts = override_candidate(run_folder.verdicts().verdicts, candidate, by=by, because=because)
    result = GateVerdicts(verdicts=verdicts, smallest=smallest_passing(verdicts))
    result.save(run_folder.folder / "verdicts.json")
    project.progress.log(f"gate: {candidate} overridden by {by}: {because}")
    return result


def chosen_candidate(project: Project, verdicts: GateVerdicts) -> str:
    """Who drafts answers: as `routing.small` says; `smallest` means the smallest that passes."""
    wish = project.file.routing.small
    return (verdicts.smallest or "small") if wish == "smallest" else wish


def promote_stage(project: Project, run_folder: RunFolder) -> Promotion:
    """The chosen candidate registered, asked over HTTP, and made champion.

    Raises GateFailed if its verdict did not pass, or if the real server does not give the measured answers.
    """
    verdicts = run_folder.verdicts()
    candidate = chosen_candidate(project, verdicts)
    version = versions.register(
        run_folder.model_folder(candidate),
        verdicts.of(candidate),
        name=project.file.register_to,
        run_id=_mlflow_run(run_folder),
        tags={"task": project.file.name, "run": run_folder.folder.name},
    )
    parity_stage(project, run_folder, version, candidate)
    versions.promote(version.name, version.version)
    promoted = Promotion(
        name=version.name,
        version=version.version,
        candidate=candidate,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    promoted.save(run_folder.folder / "promoted.json")
    project.progress.log(f"promoted {promoted.name} version {promoted.version} @champion ({candidate})")
    return promoted


def calibrate_stage(project: Project, run_folder: RunFolder) -> Certificate:
    """The certificate of the promoted model, kept with its version, and the Router measured on test rows."""
    certificate, heads = certify_promoted(project, run_folder)
    _run(_measure_router(project, run_folder, certificate, heads))
    return certificate


def report_stage(project: Project, run_folder: RunFolder) -> Path:
    """The report of everything measured so far, as a file and in MLflow."""
    from smallfirst.pipeline.report_data import report_data
    from smallfirst.report.page import save

    path = save(report_data(project, run_folder, diagnose(project, run_folder)), run_folder.folder / "report.html")
    runs.resume_run(_mlflow_run(run_folder)).log_artifact(path)
    runs.resume_run(_mlflow_run(run_folder)).finish()
    project.progress.log(f"report: {path}")
    return path


async def _evaluate(
    project: Project, run_folder: RunFolder, model: Any, *, candidate: str, split: str, probe: int = 0
) -> Evaluation:
    data, note = getattr(project.rows, split), ""
    if candidate == "base":
        data = large_path.sample_rows(data, project.file.small.sample_base)
    if isinstance(model, ReplayModel) or _asks_recordings(model):
        # Only rows that the large model was asked can be answered from its recordings.
        data = large_path.sample_rows(data, project.file.large.sample(split) if project.file.large else None)
    if isinstance(model, ReplayModel):
        note = model.note
    with project.progress.bar(f"evaluating {candidate} on {split}", len(data)) as update:
        measuring = EvaluationSetup(project.task, data, split=split, progress=update)
        found = await evaluate(model, measuring, candidate=candidate, probe_rows=probe, note=note)
    run_folder.save_evaluation(found)
    log_evaluation(_mlflow_run(run_folder), found)
    project.progress.log(f"{candidate} on {split}: {found.in_words}")
    return found


def _asks_recordings(model: Any) -> bool:
    """True for a Router that may have to ask its large model for an answer that was recorded, or was not."""
    if not (isinstance(model, Router) and isinstance(model.large, ReplayModel)):
        return False
    return "escalate" in {model.certificate.below, *(band.then for band in model.certificate.bands)}


async def _measure_router(
    project: Project, run_folder: RunFolder, certificate: Certificate, heads: ConfidenceHeads
) -> None:
    """The Router on test rows, and on the half of the open-ended requests that its domain gate has not seen."""
    small = load_candidate(project, run_folder, run_folder.promoted().candidate)
    large = general = None
    if project.file.large is not None:
        large = await large_path.recorded_answers(project.file, project.task, project.rows, progress=project.progress)
        open_answers = await large_path.recorded_open_answers(project.file, project.rows, progress=project.progress)
        general = large_path.OpenAnswers(open_answers, large) if open_answers else None
    domain = load_ood_detector(project.file, run_folder) if general else None
    stages = heads.on(cascade_stages(project, run_folder, small))
    rules = routing_rules(project.file, None, run_folder.folder)._replace(
        budget=None
    )  # of a budget all rows would be one hour's
    router = Router(
        stages, large, certificate, general=general, ood_detector=domain, options=rules, name=project.file.name
    )
    try:
        await _evaluate(project, run_folder, router, candidate="routed", split="test", probe=PROBE_ROWS)
        if project.rows.open_ended is not None and domain is not None:
            await _count_open(project, run_folder, router, project.rows.open_ended)
    finally:
        await router.aclose()


async def _count_open(project: Project, run_folder: RunFolder, router: Router, requests: Dataset) -> None:
    _, unseen = sample_share(requests, 0.5, "domain")
    completions = [await router.complete(Request(messages=e.messages)) for e in unseen.examples]
    sent = sum(c.route is not None and c.route.stage == "large" for c in completions)
    share = OpenEndedRouting(n_requests=len(unseen), n_to_large=sent)
    share.save(run_folder.folder / "open_ended.json")
    project.progress.log(f"open-ended requests sent to the large model: {sent} of {len(unseen)}")


def _mlflow_run(run_folder: RunFolder) -> str:
    from smallfirst.training.run import Run

    return Run.load(run_folder.folder / "run.json").run_id


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


__all__ = [
    "Project",
    "calibrate_stage",
    "check_stage",
    "evaluate_stage",
    "gate_stage",
    "promote_stage",
    "report_stage",
    "run",
    "train_stage",
]

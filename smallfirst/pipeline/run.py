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
from smallfirst.gate import gate as gating
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
from smallfirst.registry import runs as tracking
from smallfirst.registry import versions as registry
from smallfirst.registry.evaluations import log_evaluation
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.router import Router

PROBE_ROWS = 40
"""Rows asked one at a time for the latency figures."""

T = TypeVar("T")


def run(file: TaskFile, *, watch: Progress | None = None, resume: bool = False) -> RunSummary:
    """Train, measure, gate, promote, certify, measure the Router, report. Raises GateFailed if nothing may go live.

    `resume` goes on with a training that was broken off.
    """
    job = Project.read(file, watch)
    found = check_stage(job)
    warning = "; `smallfirst check` shows why, the gate counts leaks all the same" if found.verdict == "NO" else ""
    foretold = f"; the fine-tune takes {found.needs.short_summary}" if found.needs else ""
    job.watch.say(f"check: {found.verdict} ({len(job.rows.train)} rows to train on){warning}{foretold}")
    workspace = train_stage(job, resume=resume)
    evaluate_stage(job, workspace)
    gate_and_release(job, workspace)
    return summarize_run(file, workspace)


def gate_and_release(job: Project, workspace: RunFolder) -> None:
    """Gate, promotion, certificate, Router, report. Raises GateFailed, the report written, if nothing may go live."""
    if job.task.closed:
        measure_curve(job, workspace)
    verdicts = gate_stage(job, workspace)
    chosen = chosen_candidate(job, verdicts)
    if not verdicts.of(chosen).passed:
        report_stage(job, workspace)
        raise GateFailed(
            f"{chosen} may not go live\n{gating.format_verdict(verdicts.of(chosen))}",
            hint=f"read {workspace.folder / 'report.html'}; keep the large model until it passes",
        )
    promote_stage(job, workspace)
    calibrate_stage(job, workspace)
    report_stage(job, workspace)


def check_stage(job: Project, *, curve: bool = False) -> PreflightReport:
    """What is to be known about the rows and the fine-tune before anything is spent; `curve` adds what more rows do."""
    return run_preflight(job, curve=curve)


def train_stage(job: Project, *, resume: bool = False) -> RunFolder:
    """A run with the fine-tuned model and the linear ones: a new one, or with `resume` the one that was broken off.

    Raises StageMissing if there is none to go on with.
    """
    from smallfirst.training.recipes.recipe import TaskRecipe
    from smallfirst.training.run import train

    file, config = job.file, job.file.small.training
    requested_probe(file)  # questions that cannot be asked are told before anything is trained
    workspace = _place(job, resume=resume)
    base = find_weights(file.small.base, say=job.watch.say)
    job.watch.say(f"train: {file.small.base}, {config.method}, {config.duration}, {len(job.rows.train)} rows")
    params: dict[str, object] = {f"train.{k}": v for k, v in config.model_dump().items()}
    params |= {"base": file.small.base, "n_train": len(job.rows.train), "task": file.name}
    params["dataset_fingerprint"] = job.rows.train.content_fingerprint
    if file.teacher is not None:
        params |= {f"teacher.{k}": v for k, v in file.teacher.model_dump().items()}
    with (
        _tracked(file.name, workspace, params) as tracked,
        job.watch.bar("training", 100, unit="%") as progress,
    ):
        run_record = train(
            TaskRecipe(job.task, job.rows.train, job.rows.selection, file.teacher),
            config,
            base=(file.small.base, base),
            tracked=tracked,
            folder=workspace.folder,
            on_step=lambda step: progress(
                round(100 * step.progress), 100, f"loss {step.loss:.3f}, {step.tokens_per_s:.0f} tokens/s"
            ),
        )
        tracked.log_artifact(workspace.folder / "events.jsonl")
    job.watch.say(
        f"trained in {run_record.seconds / 60:.1f} min at {run_record.tokens_per_s:.0f} tokens/s; best epoch "
        f"{run_record.best_epoch}: {dict(run_record.validation_curve)[run_record.best_epoch]:.3f} on selection rows"
    )
    _try_eight_bits(job, workspace)
    fit_linear(job, workspace)
    tune_encoder(job, workspace)
    return workspace


def _try_eight_bits(job: Project, workspace: RunFolder) -> None:
    """Nothing back; before anything is measured, it is settled whether the model is read in eight bits from now on."""
    from smallfirst.models.local.int8_check import check_int8

    if job.task.closed and (found := check_int8(workspace.model_folder("small"), job.rows.selection)):
        job.watch.say(f"eight bits {'' if found.kept else 'not '}kept: {found.why}")


def _place(job: Project, *, resume: bool) -> RunFolder:
    """The folder of the run."""
    unfinished = RunFolder.unfinished(job.file.name)
    if resume:
        if unfinished is None:
            raise StageMissing(f"{job.file.name} has no run to go on with", hint="smallfirst train task.yaml")
        job.watch.say(f"going on with run {unfinished.folder.name}")
        return unfinished
    if unfinished is not None:
        job.watch.say(f"run {unfinished.folder.name} was broken off; --resume goes on with it, this is a new one")
    return RunFolder.new(job.file.name)


def _tracked(task: str, workspace: RunFolder, params: dict[str, object]) -> tracking.TrackedRun:
    """The MLflow run that the folder began with, else a new one."""
    from smallfirst.training.events import EventLog

    begun = [e.values["run_id"] for e in EventLog(workspace.folder / "events.jsonl").read() if e.kind == "CREATED"]
    return tracking.resume_run(begun[0]) if begun else tracking.open_run(task, workspace.folder.name, params=params)


def evaluate_stage(job: Project, workspace: RunFolder) -> list[Evaluation]:
    """Every candidate and the large model on calibration rows and on test rows; returns the latter."""
    for candidate in job.ladder:
        model = load_candidate(job, workspace, candidate)
        splits = ("test",) if candidate == "base" else ("calibration", "test")
        for split in splits:
            _run(_evaluate(job, workspace, model, candidate=candidate, split=split, probe=PROBE_ROWS))
        _run(model.aclose())
    measure_retention(job, workspace)
    if job.file.large is not None:
        large = _run(large_path.recorded_answers(job.file, job.task, job.rows, watch=job.watch))
        for split in ("calibration", "test"):
            _run(_evaluate(job, workspace, large, candidate="large", split=split))
    return workspace.evaluations("test")


def gate_stage(job: Project, workspace: RunFolder) -> GateVerdicts:
    """The gate's verdict on every candidate, drawn from test rows, corrected for looking at several."""
    found = workspace.evaluations("test")
    large = workspace.evaluation("large", "test")
    candidates = [e for e in found if e.candidate in {"words", "encoder", "tuned", "small"}]
    leaks, kept = find_split_leaks(job, workspace), measure_retention(job, workspace)
    verdicts = tuple(
        gating.check(
            job.file.gate,
            e,
            large=large,
            comparisons_made=len(candidates),
            leaks=leaks,
            retention=kept if e.candidate == "small" else None,
        )
        for e in candidates
    )
    result = GateVerdicts(verdicts=verdicts, smallest=gating.smallest_passing(verdicts))
    result.save(workspace.folder / "verdicts.json")
    passing = ", ".join(v.candidate for v in verdicts if v.passed) or "none"
    job.watch.say(f"gate: passing {passing}")
    return result


def override_stage(job: Project, workspace: RunFolder, candidate: str, *, by: str, because: str) -> GateVerdicts:
    """The verdicts with the one on `candidate` signed for by a person. Raises ConfigError as `gate.sign` does."""
    verdicts = gating.override_candidate(workspace.verdicts().verdicts, candidate, by=by, because=because)
    result = GateVerdicts(verdicts=verdicts, smallest=gating.smallest_passing(verdicts))
    result.save(workspace.folder / "verdicts.json")
    job.watch.say(f"gate: {candidate} signed for by {by}: {because}")
    return result


def chosen_candidate(job: Project, verdicts: GateVerdicts) -> str:
    """Who drafts answers: as `routing.small` says; `smallest` means the smallest that passes."""
    wish = job.file.routing.small
    return (verdicts.smallest or "small") if wish == "smallest" else wish


def promote_stage(job: Project, workspace: RunFolder) -> Promotion:
    """The chosen candidate registered, asked over HTTP, and made champion.

    Raises GateFailed if its verdict did not pass, or if the real server does not give the measured answers.
    """
    verdicts = workspace.verdicts()
    candidate = chosen_candidate(job, verdicts)
    version = registry.register(
        workspace.model_folder(candidate),
        verdicts.of(candidate),
        name=job.file.register_to,
        run_id=_mlflow_run(workspace),
        tags={"task": job.file.name, "run": workspace.folder.name},
    )
    parity_stage(job, workspace, version, candidate)
    registry.promote(version.name, version.version)
    promoted = Promotion(
        name=version.name,
        version=version.version,
        candidate=candidate,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    promoted.save(workspace.folder / "promoted.json")
    job.watch.say(f"promoted {promoted.name} version {promoted.version} @champion ({candidate})")
    return promoted


def calibrate_stage(job: Project, workspace: RunFolder) -> Certificate:
    """The certificate of the promoted model, kept with its version, and the Router measured on test rows."""
    certificate, heads = certify_promoted(job, workspace)
    _run(_measure_router(job, workspace, certificate, heads))
    return certificate


def report_stage(job: Project, workspace: RunFolder) -> Path:
    """The report of everything measured so far, as a file and in MLflow."""
    from smallfirst.pipeline.report_data import report_data
    from smallfirst.report.page import save

    path = save(report_data(job, workspace, diagnose(job, workspace)), workspace.folder / "report.html")
    tracking.resume_run(_mlflow_run(workspace)).log_artifact(path)
    tracking.resume_run(_mlflow_run(workspace)).finish()
    job.watch.say(f"report: {path}")
    return path


async def _evaluate(
    job: Project, workspace: RunFolder, model: Any, *, candidate: str, split: str, probe: int = 0
) -> Evaluation:
    data, note = getattr(job.rows, split), ""
    if candidate == "base":
        data = large_path.sample_rows(data, job.file.small.sample_base)
    if isinstance(model, ReplayModel) or _asks_recordings(model):
        # Only rows that the large model was asked can be answered from its recordings.
        data = large_path.sample_rows(data, job.file.large.sample(split) if job.file.large else None)
    if isinstance(model, ReplayModel):
        note = model.note
    with job.watch.bar(f"evaluating {candidate} on {split}", len(data)) as progress:
        measuring = EvaluationSetup(job.task, data, split=split, progress=progress)
        found = await evaluate(model, measuring, candidate=candidate, probe_rows=probe, note=note)
    workspace.save_evaluation(found)
    log_evaluation(_mlflow_run(workspace), found)
    job.watch.say(f"{candidate} on {split}: {found.in_words}")
    return found


def _asks_recordings(model: Any) -> bool:
    """True for a Router that may have to ask its large model for an answer that was recorded, or was not."""
    if not (isinstance(model, Router) and isinstance(model.large, ReplayModel)):
        return False
    return "escalate" in {model.certificate.below, *(band.then for band in model.certificate.bands)}


async def _measure_router(job: Project, workspace: RunFolder, certificate: Certificate, heads: ConfidenceHeads) -> None:
    """The Router on test rows, and on the half of the open-ended requests that its domain gate has not seen."""
    small = load_candidate(job, workspace, workspace.promoted().candidate)
    large = general = None
    if job.file.large is not None:
        large = await large_path.recorded_answers(job.file, job.task, job.rows, watch=job.watch)
        open_answers = await large_path.recorded_open_answers(job.file, job.rows, watch=job.watch)
        general = large_path.OpenAnswers(open_answers, large) if open_answers else None
    domain = load_ood_detector(job.file, workspace) if general else None
    stages = heads.on(cascade_stages(job, workspace, small))
    rules = routing_rules(job.file, None, workspace.folder)._replace(
        budget=None
    )  # of a budget all rows would be one hour's
    router = Router(stages, large, certificate, general=general, domain=domain, rules=rules, name=job.file.name)
    try:
        await _evaluate(job, workspace, router, candidate="routed", split="test", probe=PROBE_ROWS)
        if job.rows.open_ended is not None and domain is not None:
            await _count_open(job, workspace, router, job.rows.open_ended)
    finally:
        await router.aclose()


async def _count_open(job: Project, workspace: RunFolder, router: Router, requests: Dataset) -> None:
    _, unseen = sample_share(requests, 0.5, "domain")
    completions = [await router.complete(Request(messages=e.messages)) for e in unseen.examples]
    sent = sum(c.route is not None and c.route.stage == "large" for c in completions)
    share = OpenEndedRouting(n_requests=len(unseen), n_to_large=sent)
    share.save(workspace.folder / "open_ended.json")
    job.watch.say(f"open-ended requests sent to the large model: {sent} of {len(unseen)}")


def _mlflow_run(workspace: RunFolder) -> str:
    from smallfirst.training.run import Run

    return Run.load(workspace.folder / "run.json").run_id


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

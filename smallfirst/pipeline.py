"""The whole path, stage by stage: the table of contents of the project.

Each stage takes what the one before has left in the run's folder and leaves its own, so `run()` and the single commands
do the same work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from smallfirst import gate as gating
from smallfirst import large as large_path
from smallfirst import registry, tracking
from smallfirst.data.check import CheckReport, check
from smallfirst.data.dataset import Dataset
from smallfirst.data.split import take_share
from smallfirst.errors import GateFailed, StageMissing
from smallfirst.evaluation.evaluate import Measuring, evaluate, restrict
from smallfirst.evaluation.evaluation import Evaluation
from smallfirst.models.base import find
from smallfirst.models.model import Request
from smallfirst.models.replay import ReplayModel
from smallfirst.models.scored import Manifest, ScoredModel, load_model, read_manifest
from smallfirst.outcome import OpenEndedShare, Outcome, outcome_of
from smallfirst.routing.certificate import Certificate, certify
from smallfirst.routing.domain import DomainGate
from smallfirst.routing.router import Router
from smallfirst.taskfile import Rows, TaskFile, read_rows, read_task
from smallfirst.tasks.classify import Classify
from smallfirst.watching import Watch
from smallfirst.workspace import Promoted, Verdicts, Workspace

PROBE_ROWS = 40
"""Rows asked one at a time for the latency figures."""

T = TypeVar("T")


class Job(NamedTuple):
    """A task file with what it names, read once and handed from stage to stage."""

    file: TaskFile
    rows: Rows
    task: Classify
    watch: Watch

    @classmethod
    def read(cls, file: TaskFile, watch: Watch | None = None) -> Job:
        """The job of a task file. Raises DataError or ConfigError if rows or settings are wrong."""
        rows = read_rows(file)
        return cls(file, rows, read_task(file, rows), watch or Watch())


def run(file: TaskFile, *, watch: Watch | None = None) -> Outcome:
    """Train, measure, gate, promote, certify, measure the Router, report. Raises GateFailed if nothing may go live."""
    job = Job.read(file, watch)
    report = check_stage(job)
    job.watch.say(f"check: {report.verdict} ({len(job.rows.train)} rows to train on)")
    workspace = train_stage(job)
    evaluate_stage(job, workspace)
    verdicts = gate_stage(job, workspace)
    chosen = chosen_candidate(job, verdicts)
    if not verdicts.of(chosen).passed:
        report_stage(job, workspace)
        raise GateFailed(
            f"{chosen} may not go live\n{gating.explain(verdicts.of(chosen))}",
            hint=f"read {workspace.folder / 'report.html'}; keep the large model until it passes",
        )
    promote_stage(job, workspace)
    calibrate_stage(job, workspace)
    report_stage(job, workspace)
    return outcome_of(file, workspace)


def check_stage(job: Job) -> CheckReport:
    """What is to be known about the rows before anything is spent on them."""
    validation = job.rows.selection.subset("validation", job.rows.selection.examples + job.rows.calibration.examples)
    return check(job.rows.train, validation=validation, test=job.rows.test)


def train_stage(job: Job) -> Workspace:
    """A new run with the fine-tuned model and the linear ones."""
    from smallfirst.training.run import train

    file, config = job.file, job.file.small.training
    workspace = Workspace.new(file.name)
    base = find(file.small.base, say=job.watch.say)
    job.watch.say(f"train: {file.small.base}, {config.method}, {config.duration}, {len(job.rows.train)} rows")
    params = {f"train.{k}": v for k, v in config.model_dump().items()}
    params |= {"base": file.small.base, "n_train": len(job.rows.train), "task": file.name}
    params["dataset_fingerprint"] = job.rows.train.content_fingerprint
    with (
        tracking.open_run(file.name, workspace.folder.name, params=params) as tracked,
        job.watch.bar("training", 100, unit="%") as progress,
    ):
        run_record = train(
            job.task,
            job.rows.train,
            job.rows.selection,
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
    _fit_linear(job, workspace)
    return workspace


def evaluate_stage(job: Job, workspace: Workspace) -> list[Evaluation]:
    """Every candidate and the large model on calibration rows and on test rows; returns the latter."""
    for candidate in job.file.small.ladder:
        model = _local_candidate(job, workspace, candidate)
        splits = ("test",) if candidate == "base" else ("calibration", "test")
        for split in splits:
            _run(_evaluate(job, workspace, model, candidate=candidate, split=split, probe=PROBE_ROWS))
        _run(model.aclose())
    if job.file.large is not None:
        large = _run(large_path.recorded_answers(job.file, job.task, job.rows, watch=job.watch))
        for split in ("calibration", "test"):
            _run(_evaluate(job, workspace, large, candidate="large", split=split))
    return workspace.evaluations("test")


def gate_stage(job: Job, workspace: Workspace) -> Verdicts:
    """The gate's verdict on every candidate, drawn from test rows, corrected for looking at several."""
    found = workspace.evaluations("test")
    large = workspace.evaluation("large", "test")
    candidates = [e for e in found if e.candidate in {"words", "encoder", "small"}]
    verdicts = tuple(gating.check(job.file.gate, e, large=large, comparisons_made=len(candidates)) for e in candidates)
    result = Verdicts(verdicts=verdicts, smallest=gating.smallest_passing(verdicts))
    result.save(workspace.folder / "verdicts.json")
    passing = ", ".join(v.candidate for v in verdicts if v.passed) or "none"
    job.watch.say(f"gate: passing {passing}")
    return result


def chosen_candidate(job: Job, verdicts: Verdicts) -> str:
    """Who drafts answers: as `routing.small` says; `smallest` means the smallest that passes."""
    wish = job.file.routing.small
    return (verdicts.smallest or "small") if wish == "smallest" else wish


def promote_stage(job: Job, workspace: Workspace) -> Promoted:
    """The chosen candidate registered and made champion. Raises GateFailed if its verdict did not pass."""
    verdicts = workspace.verdicts()
    candidate = chosen_candidate(job, verdicts)
    version = registry.register(
        workspace.model_folder(candidate),
        verdicts.of(candidate),
        name=job.file.register_to,
        run_id=_mlflow_run(workspace),
        tags={"task": job.file.name, "run": workspace.folder.name},
    )
    registry.promote(version.name, version.version)
    promoted = Promoted(
        name=version.name,
        version=version.version,
        candidate=candidate,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    promoted.save(workspace.folder / "promoted.json")
    job.watch.say(f"promoted {promoted.name} version {promoted.version} @champion ({candidate})")
    return promoted


def calibrate_stage(job: Job, workspace: Workspace) -> Certificate:
    """The certificate of the promoted model, kept with its version, and the Router measured on test rows."""
    promoted = workspace.promoted()
    small = workspace.evaluation(promoted.candidate, "calibration")
    if small is None:
        raise StageMissing(f"{promoted.candidate} was not evaluated", hint="smallfirst evaluate task.yaml")
    manifest = read_manifest(workspace.model_folder(promoted.candidate))
    _fit_domain(job, workspace)
    certificate = certify(
        _run(_in_domain(job, workspace, small)),
        workspace.evaluation("large", "calibration"),
        job.file.routing.promise,
        model_fingerprint=manifest.weights_fingerprint,
        temperature=manifest.temperature,
    )
    certificate.save(workspace.folder / "certificate.json")
    registry.attach(promoted.name, promoted.version, "certificate.json", certificate.model_dump_json(indent=2).encode())
    job.watch.say(f"certificate: {certificate.why}")
    job.watch.say(f"below the threshold: {certificate.below} ({certificate.below_why})")
    _run(_measure_router(job, workspace, certificate))
    return certificate


def report_stage(job: Job, workspace: Workspace) -> Path:
    """The report of everything measured so far, as a file and in MLflow."""
    from smallfirst.report.page import save
    from smallfirst.reporting import report_data

    path = save(report_data(job.file, job.rows, workspace), workspace.folder / "report.html")
    tracking.reopen_run(_mlflow_run(workspace)).log_artifact(path)
    tracking.reopen_run(_mlflow_run(workspace)).finish()
    job.watch.say(f"report: {path}")
    return path


def champion_router(file: TaskFile, *, live: bool = True) -> dict[str, Any]:
    """The served models by name: the Router, its small model, and the general model if one can be reached."""
    workspace = Workspace.latest(file.name)
    version = registry.resolve(f"{file.register_to}@champion")
    raw = registry.read_attachment(version.name, version.version, "certificate.json")
    if raw is None:
        raise StageMissing(
            f"{version.name} version {version.version} has no certificate", hint="smallfirst calibrate task.yaml"
        )
    certificate = Certificate.model_validate_json(raw)
    small = load_model(version.folder, name=f"{file.name}-small", price=file.prices.machine)
    served: dict[str, Any] = {f"{file.name}-small": small}
    large = general = None
    if file.large is not None and (live or file.large.recorded):
        job = Job.read(file, Watch(quiet=True))
        if live and (file.large.endpoint or file.large.gguf):
            large = large_path.prompted_model(file, job.task, job.rows.train)
            general = large_path.general_model(file)
        else:
            large = _run(large_path.recorded_answers(file, job.task, job.rows, watch=job.watch))
            general = _run(large_path.recorded_open(file, job.rows, watch=job.watch)) or large
        served[f"{file.name}-large"] = general
    domain = DomainGate.load(workspace.folder / "domain")
    router = Router(small, large, certificate, general=general, domain=domain, name=file.name)
    return {file.name: router, **served}


def _fit_linear(job: Job, workspace: Workspace) -> None:
    from smallfirst.models.linear import LinearScorer
    from smallfirst.training.run import judge

    for kind in ("words", "encoder"):
        if kind not in job.file.small.ladder:
            continue
        encoder = None
        if kind == "encoder":
            from smallfirst.models.encoder import Encoder

            encoder = Encoder(find(job.file.small.encoder, say=job.watch.say))
        scorer = LinearScorer.fit(kind, job.rows.train, job.task, encoder=encoder)
        scored = scorer.score([e.text for e in job.rows.selection.examples])
        accuracy, temperature = judge(scored, job.rows.selection, job.task)
        base = job.file.small.encoder if kind == "encoder" else ""
        manifest = Manifest(kind=kind, task=job.task, base=base, temperature=temperature)
        scorer.save(workspace.model_folder(kind), manifest)
        job.watch.say(f"fitted {kind} + linear: {accuracy:.3f} on selection rows")


def _local_candidate(job: Job, workspace: Workspace, candidate: str) -> ScoredModel:
    if candidate != "base":
        return load_model(
            workspace.model_folder(candidate), name=f"{job.file.name}-{candidate}", price=job.file.prices.machine
        )
    from smallfirst.models.local import LabelScorer

    scorer = LabelScorer.untouched(find(job.file.small.base), job.task, base=job.file.small.base)
    return ScoredModel(scorer, scorer.manifest, name=job.file.small.base, price=job.file.prices.machine)


async def _evaluate(
    job: Job, workspace: Workspace, model: Any, *, candidate: str, split: str, probe: int = 0
) -> Evaluation:
    data, note = getattr(job.rows, split), ""
    if isinstance(model, ReplayModel) or _asks_recordings(model):
        # Only rows that the large model was asked can be answered from its recordings.
        data = large_path.sample(data, job.file.large.sample(split) if job.file.large else None)
    if isinstance(model, ReplayModel):
        note = model.note
    with job.watch.bar(f"evaluating {candidate} on {split}", len(data)) as progress:
        measuring = Measuring(job.task, data, split=split, progress=progress)
        found = await evaluate(model, measuring, candidate=candidate, probe_rows=probe, note=note)
    workspace.save_evaluation(found)
    tracking.log_evaluation(_mlflow_run(workspace), found)
    job.watch.say(f"{candidate} on {split}: accuracy {found.accuracy} n={found.accuracy.n}")
    return found


def _asks_recordings(model: Any) -> bool:
    return isinstance(model, Router) and isinstance(model.large, ReplayModel) and model.certificate.below == "escalate"


async def _in_domain(job: Job, workspace: Workspace, small: Evaluation) -> Evaluation:
    """The evaluation on rows that reach the small model at all: the certificate speaks of these."""
    domain = DomainGate.load(workspace.folder / "domain")
    if domain is None:
        return small
    doubts = [await domain.doubt(Request(messages=e.messages)) for e in job.rows.calibration.examples]
    await domain.aclose()
    own = tuple(
        example
        for example, doubt in zip(job.rows.calibration.examples, doubts, strict=True)
        if doubt.value <= domain.limit
    )
    data = job.rows.calibration.subset("calibration", own)
    return restrict(small, Measuring(job.task, data, split="calibration"))


def _fit_domain(job: Job, workspace: Workspace) -> None:
    if job.rows.open_ended is None:
        return
    fitting, _ = take_share(job.rows.open_ended, 0.5, "domain")
    encoder = None
    if "encoder" in job.file.small.ladder:
        from smallfirst.models.encoder import Encoder

        encoder = (job.file.small.encoder, Encoder(find(job.file.small.encoder)))
    gate = DomainGate.fit(job.rows.train, fitting, job.rows.selection, encoder=encoder)
    gate.save(workspace.folder / "domain")
    _run(gate.aclose())


async def _measure_router(job: Job, workspace: Workspace, certificate: Certificate) -> None:
    """The Router on test rows, and on the half of the open-ended requests that its domain gate has not seen."""
    small = _local_candidate(job, workspace, workspace.promoted().candidate)
    large = general = None
    if job.file.large is not None:
        large = await large_path.recorded_answers(job.file, job.task, job.rows, watch=job.watch)
        open_answers = await large_path.recorded_open(job.file, job.rows, watch=job.watch)
        general = large_path.OpenAnswers(open_answers, large) if open_answers else None
    price = job.file.prices.machine
    domain = DomainGate.load(workspace.folder / "domain", price=price) if general else None
    router = Router(small, large, certificate, general=general, domain=domain, name=job.file.name)
    try:
        await _evaluate(job, workspace, router, candidate="routed", split="test", probe=PROBE_ROWS)
        if job.rows.open_ended is not None and domain is not None:
            await _count_open(job, workspace, router, job.rows.open_ended)
    finally:
        await router.aclose()


async def _count_open(job: Job, workspace: Workspace, router: Router, requests: Dataset) -> None:
    _, unseen = take_share(requests, 0.5, "domain")
    completions = [await router.complete(Request(messages=e.messages)) for e in unseen.examples]
    sent = sum(c.route is not None and c.route.stage == "large" for c in completions)
    share = OpenEndedShare(n_requests=len(unseen), n_to_large=sent)
    share.save(workspace.folder / "open_ended.json")
    job.watch.say(f"open-ended requests sent to the large model: {sent} of {len(unseen)}")


def _mlflow_run(workspace: Workspace) -> str:
    from smallfirst.training.run import Run

    return Run.load(workspace.folder / "run.json").run_id


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


__all__ = [
    "Job",
    "calibrate_stage",
    "champion_router",
    "check_stage",
    "evaluate_stage",
    "gate_stage",
    "promote_stage",
    "report_stage",
    "run",
    "train_stage",
]

"""Who may answer: the rungs of the ladder, the domain gate in front of them, and the Router over what went live."""

from __future__ import annotations

import asyncio
from typing import Any

from smallfirst import large as large_path
from smallfirst import registry, tracking
from smallfirst.data.split import take_share
from smallfirst.errors import StageMissing
from smallfirst.evaluation.evaluate import Measuring, restrict
from smallfirst.evaluation.evaluation import Evaluation
from smallfirst.job import Job
from smallfirst.models.base import find
from smallfirst.models.folder import load_model
from smallfirst.models.manifest import Manifest
from smallfirst.models.model import Model, Request
from smallfirst.routing.certificate import Certificate
from smallfirst.routing.domain import DomainGate
from smallfirst.routing.router import Router
from smallfirst.taskfile import TaskFile
from smallfirst.watching import Watch
from smallfirst.workspace import Workspace


def fit_linear(job: Job, workspace: Workspace) -> None:
    """Nothing back; the linear rungs are fitted and kept in the run's folder."""
    from smallfirst.models.linear import LinearScorer
    from smallfirst.training.exam import judge

    for kind in ("words", "encoder"):
        if kind not in job.ladder:
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


def tune_encoder(job: Job, workspace: Workspace) -> None:
    """Nothing back; the sentence encoder is fine-tuned into the run's folder, watched in an MLflow run of its own."""
    if "tuned" not in job.ladder:
        return
    from smallfirst.training.contrastive import EncoderLesson
    from smallfirst.training.run import train

    small, folder = job.file.small, workspace.folder / "tuned"
    lesson = EncoderLesson(job.task, job.rows.train, job.rows.selection)
    base = (small.encoder, find(small.encoder, say=job.watch.say))
    params = {"base": small.encoder, "n_train": len(job.rows.train), "task": job.file.name}
    params |= {f"train.{k}": v for k, v in small.encoder_training.model_dump().items()}
    with (
        tracking.open_run(job.file.name, f"{workspace.folder.name}-tuned", params=params) as tracked,
        job.watch.bar("tuning encoder", 100, unit="%") as progress,
    ):
        run = train(
            lesson,
            small.encoder_training,
            base=base,
            tracked=tracked,
            folder=folder,
            on_step=lambda step: progress(round(100 * step.progress), 100, f"loss {step.loss:.3f}"),
        )
    best = dict(run.validation_curve)[run.best_epoch]
    job.watch.say(f"tuned the encoder in {run.seconds / 60:.1f} min: {best:.3f} on selection rows")


def local_candidate(job: Job, workspace: Workspace, candidate: str) -> Model:
    """A rung of the ladder, ready to answer: kept in the run's folder, or the untouched base model."""
    name, price = f"{job.file.name}-{candidate}", job.file.prices.machine
    if candidate != "base":
        return load_model(workspace.model_folder(candidate), name=name, price=price)
    return large_path.untouched_base(job.file, job.task, job.rows.train)


def fit_domain(job: Job, workspace: Workspace) -> None:
    """Nothing back; a domain gate is fitted if there are open-ended requests to fit it on."""
    if job.rows.open_ended is None:
        return
    fitting, _ = take_share(job.rows.open_ended, 0.5, "domain")
    encoder = None
    if "encoder" in job.file.small.ladder:
        from smallfirst.models.encoder import Encoder

        encoder = (job.file.small.encoder, Encoder(find(job.file.small.encoder)))
    gate = DomainGate.fit(job.rows.train, fitting, job.rows.selection, encoder=encoder)
    gate.save(workspace.folder / "domain")
    asyncio.run(gate.aclose())


async def in_domain(job: Job, workspace: Workspace, small: Evaluation) -> Evaluation:
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
            large = asyncio.run(large_path.recorded_answers(file, job.task, job.rows, watch=job.watch))
            general = asyncio.run(large_path.recorded_open(file, job.rows, watch=job.watch)) or large
        served[f"{file.name}-large"] = general
    domain = DomainGate.load(workspace.folder / "domain")
    router = Router(small, large, certificate, general=general, domain=domain, name=file.name)
    return {file.name: router, **served}

"""What is served: each task's Router under watch, the models behind it, and `auto` over all tasks.

A Router stands on what its champion's version carries in the registry: the certificate, and the reference that live
traffic is compared with. Without an issued certificate the small model runs in shadow, beside the large one that
answers, unless somebody has signed for it in task.yaml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from smallfirst import large as large_path
from smallfirst import registry
from smallfirst.candidates import SIGNATURE_FOLDER, domain_of
from smallfirst.errors import ConfigError, StageMissing
from smallfirst.evaluation.evaluation import Evaluation
from smallfirst.golive.heads import DIFFICULTY, HEADS, Heads
from smallfirst.job import Job
from smallfirst.models.folder import load_model
from smallfirst.models.model import Model
from smallfirst.records import Record
from smallfirst.routing.auto import Auto
from smallfirst.routing.certificate import Certificate
from smallfirst.routing.difficulty import Difficulty
from smallfirst.routing.front import Front
from smallfirst.routing.monitor import Monitor
from smallfirst.routing.policy import SECONDS, Purse
from smallfirst.routing.router import Router
from smallfirst.routing.signature import SIGNATURE
from smallfirst.routing.stages import Rules, Stage
from smallfirst.serving.entries import LedgerRow
from smallfirst.serving.ledger import Ledger
from smallfirst.serving.live import Auditing, Live
from smallfirst.serving.watch import LiveRouters
from smallfirst.taskfile import TaskFile
from smallfirst.watching import Watch
from smallfirst.workspace import Workspace

AUTO = "auto"
"""Name under which every task of a server is reached at once."""
CHALLENGER = "challenger"
"""Alias, and stage, of a version that a split sends a share of the requests to."""
REFERENCE = "reference.json"
"""What is kept beside the certificate."""


class Reference(Record):
    """What the small model gave on the calibration rows: live traffic is compared with it."""

    confidence: tuple[float, ...] = ()
    """Its confidences, in [0, 1]."""
    doubt: tuple[float, ...] = ()
    """The domain check's doubts, in [0, 1]; empty without a domain check."""
    labels: tuple[str, ...] = ()
    """Its answers, where they are labels."""
    large_usd: float | None = None
    """Mean cost of an answer of the large model in USD; None if it was not measured."""


class Served(NamedTuple):
    """What a server is given."""

    models: dict[str, Model]
    """By served name."""
    watch: LiveRouters
    """The extension that shows and takes in what happens after go-live."""


def keep_reference(
    job: Job, promoted: tuple[str, int], small: Evaluation, doubts: Sequence[float], large: Evaluation | None
) -> Reference:
    """The reference of the calibration rows, kept with the model's version (`promoted`: name and version)."""
    found = Reference(
        confidence=tuple(row.confidence for row in small.rows if row.confidence is not None),
        doubt=tuple(doubts),
        labels=tuple(row.answer for row in small.rows if row.answer is not None) if job.task.closed else (),
        large_usd=large.cost_usd_per_1k / 1000 if large else None,
    )
    registry.attach(*promoted, REFERENCE, found.model_dump_json().encode())
    return found


def drafting_stages(job: Job, workspace: Workspace, last: Model) -> tuple[Stage, ...]:
    """The cascade's stages below the large model: the cheaper candidates ahead, then `last`, always called `small`."""
    price = job.file.prices.machine
    ahead = [
        Stage(name, load_model(workspace.model_folder(name), name=f"{job.file.name}-{name}", price=price))
        for name in job.file.routing.ahead
    ]
    return (*ahead, Stage("small", last))


def rules_of(file: TaskFile, large_usd: float | None, folder: Path, beside: Sequence[Stage] = ()) -> Rules:
    """The rules of a task file; a learned difficulty is in the run's folder. ConfigError: a policy leads nowhere.

    Policies that lead to the challenger are left out where it is not among the stages `beside`.
    """
    routing = file.routing
    stages = {"small", "large", "general", "cascade", CHALLENGER, *routing.ahead}
    for place, policy in enumerate(routing.policies):
        if policy.to not in stages:
            raise ConfigError(
                f"{file.name}: routing.policies[{place}] leads to {policy.to!r}, which is no stage",
                hint=f"use one of {', '.join(sorted(stages))}",
            )
    there = {CHALLENGER} & {stage.name for stage in beside}
    policies = [p for p in routing.policies if p.to != CHALLENGER or p.to in there]
    signed = f"{routing.override.by}: {routing.override.because}" if routing.override else ""
    expected = {} if large_usd is None else {"large": large_usd}
    hardness = Difficulty.load(folder / DIFFICULTY)
    return Rules(policies, routing.budget, hardness, tuple(beside), signed, expected)


def challenger_of(file: TaskFile) -> tuple[Stage, ...]:
    """The challenger's version as a stage beside the cascade, if a policy leads to it. RegistryError: there is none."""
    if all(policy.to != CHALLENGER for policy in file.routing.policies):
        return ()
    version = registry.resolve(f"{file.register_to}@{CHALLENGER}")
    model = load_model(version.folder, name=f"{file.name}-{CHALLENGER}", price=file.prices.machine)
    return (Stage(CHALLENGER, model),)


def served(files: Sequence[TaskFile], ledger: Ledger, *, live: bool = True, store_bodies: bool = False) -> Served:
    """The models of several tasks by name: each one's Router, small and large model, and `auto` over all Routers.

    `live=False` answers the large path from recordings. Raises StageMissing if a task has no champion or certificate,
    ConfigError if two tasks share a name.
    """
    models: dict[str, Model] = {}
    routers: list[Live] = []
    folders: dict[str, Path] = {}
    for file in files:
        if file.name in models or file.name == AUTO:
            raise ConfigError(f"two things would be served as {file.name!r}", hint="give each task a name of its own")
        version = registry.resolve(f"{file.register_to}@champion")
        # The champion's own run, not the newest one: that may be a challenger's that has lost.
        workspace = Workspace.latest(file.name, version.tags.get("run"))
        found, beside = _live_router(file, (version, workspace), ledger, live=live, store_bodies=store_bodies)
        routers.append(found)
        folders[file.name] = workspace.folder / SIGNATURE_FOLDER
        models |= {file.name: found, **beside}
    known = {name: folder for name, folder in folders.items() if (folder / SIGNATURE).exists()}
    if known:
        general = next((r.router.general for r in routers if r.router.general is not None), None)
        by_name: dict[str, Model] = {r.name: r for r in routers if r.name in known}
        models[AUTO] = Auto(Front.load(known), by_name, general)
    return Served(models, LiveRouters(routers, ledger))


def _live_router(
    file: TaskFile, champion: tuple[registry.ModelVersion, Workspace], ledger: Ledger, *, live: bool, store_bodies: bool
) -> tuple[Live, dict[str, Model]]:
    """The task's Router under watch, and its small and large model by served name."""
    (version, workspace), job = champion, Job.read(file, Watch(quiet=True))
    certificate = Certificate.model_validate_json(_attached(version.name, version.version, "certificate.json"))
    reference = Reference.model_validate_json(
        registry.read_attachment(version.name, version.version, REFERENCE) or b"{}"
    )
    heads = Heads.model_validate_json(registry.read_attachment(version.name, version.version, HEADS) or b"{}")
    small = load_model(version.folder, name=f"{file.name}-small", price=file.prices.machine)
    large, general = _large_models(job, live=live)
    if large is None and not certificate.issued and file.routing.override is None:
        raise StageMissing(
            f"{file.name}: {certificate.why}; and there is no large model to run in shadow of",
            hint="name one under large:, or sign for it under routing.override: {by: …, because: …}",
        )
    router = Router(
        heads.on(drafting_stages(job, workspace, small)),
        large,
        certificate,
        general=general,
        domain=domain_of(file, workspace) if general is not None else None,
        rules=rules_of(file, reference.large_usd, workspace.folder, challenger_of(file)),
        name=file.name,
    )
    if router.purse is not None:
        remember(router.purse, ledger, file.name)
    beside: dict[str, Model] = {f"{file.name}-small": small}
    if general is not None:
        beside[f"{file.name}-large"] = general
    judge = _judge(file, certificate, large)
    auditing = Auditing(judge, _holds(job.task), store_bodies)
    watched = Live(router, _monitor(file, certificate, reference, judge), ledger=ledger, auditing=auditing)
    return watched, beside


def remember(purse: Purse, ledger: Ledger, task: str) -> None:
    """Nothing back; the purse knows what escalated answers of the task cost in its window, before this process."""
    now = datetime.now(UTC)
    since = now - timedelta(seconds=SECONDS[purse.budget.per])
    for row in ledger.entries(LedgerRow, since=since, task=task):
        drafted = any(step.decision == "passed on" and step.model for step in row.steps)
        cost_usd = sum(step.cost_usd for step in row.steps if step.decision == "answered")
        if drafted and cost_usd:
            purse.pay(cost_usd, age_s=(now - row.at).total_seconds())


def _judge(file: TaskFile, certificate: Certificate, large: Model | None) -> Literal["large", "person"]:
    """Who judges audits: a person where nobody else is there, or nobody knows how often the large model errs."""
    unknown = certificate.labels == "gold" and certificate.audit_limit is None and certificate.issued
    return "person" if large is None or unknown else file.routing.judge


def _monitor(
    file: TaskFile, certificate: Certificate, reference: Reference, judge: Literal["large", "person"]
) -> Callable[[], Monitor]:
    """Makes the monitor of a task as at go-live; where the large model judges, the limit allows for its own errors."""
    routing, limit = file.routing, certificate.promised_error
    if judge == "large" and certificate.labels == "gold":
        limit = certificate.audit_limit or limit
    shadow = not certificate.issued and routing.override is None
    return lambda: Monitor(
        routing.monitor,
        limit=min(limit, 0.999),
        reference_confidence=reference.confidence,
        reference_doubt=reference.doubt,
        reference_labels=reference.labels,
        shadow=shadow,
    )


def _holds(task: Any) -> Callable[[str, str], bool]:
    """Whether a draft says what a judge says, by the task's own score."""

    def holds(draft: str, judged: str) -> bool:
        right = task.parse(judged)
        return right is not None and task.score([right], task.parse(draft)) >= task.right_from

    return holds


def _large_models(job: Job, *, live: bool) -> tuple[Model | None, Model | None]:
    """The large model asked for the task, and as it is; both None where nobody can be asked."""
    file = job.file
    if file.large is None or not (live or file.large.recorded):
        return None, None
    if live and (file.large.endpoint or file.large.gguf):
        return large_path.prompted_model(file, job.task, job.rows.train), large_path.general_model(file)
    large: Model = asyncio.run(large_path.recorded_answers(file, job.task, job.rows, watch=job.watch))
    return large, asyncio.run(large_path.recorded_open(file, job.rows, watch=job.watch)) or large


def _attached(name: str, version: int, filename: str) -> bytes:
    raw = registry.read_attachment(name, version, filename)
    if raw is None:
        raise StageMissing(f"{name} version {version} has no certificate", hint="smallfirst calibrate task.yaml")
    return raw

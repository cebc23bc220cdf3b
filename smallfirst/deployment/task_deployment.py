"""One task of a server: what its versions share, and how a Router is built from one of them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.base.errors import RegistryError, StageMissing
from smallfirst.base.files import SharedLock
from smallfirst.base.paths import home, state_of
from smallfirst.base.progress import Progress
from smallfirst.base.sync import outside_event_loop
from smallfirst.data.dataset import Message
from smallfirst.deployment.audited_router import AuditedRouter, AuditSettings, outcome_of
from smallfirst.deployment.hot_swap import ModelSet, SharedModel
from smallfirst.deployment.second_look import TAG, SecondLook, SecondLooks, read_look
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.outcome import Outcome
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Model, Request
from smallfirst.path import large_model as large_path
from smallfirst.path import router_setup
from smallfirst.path.parity import PARITY, VLLM_PARITY, ParityResult
from smallfirst.path.project.project import Project, load_small, small_engine
from smallfirst.path.project.run_folder import OUTCOME, RunFolder, hold_served
from smallfirst.path.project.task_file import RoutingConfig, TaskFile
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.monitor import Judge, Monitor, allocate_audits, not_watched, watched_quantities
from smallfirst.routing.policies import CHALLENGER
from smallfirst.routing.router import Router, Stage

_log = logging.getLogger("smallfirst.serving")
CERTIFICATE = "certificate.json"
"""Attachment that a version needs before it may be served."""
Trial = Callable[[Sequence[Model]], None]
"""Asks new models one request each; raises what they raise."""


class TargetVersions(NamedTuple):
    """The versions that the registry's aliases name."""

    champion: int
    challenger: int | None = None
    """None if no policy leads to it, or no version has the alias."""
    second_look: str = ""
    """What was announced of the champion's second look, after which it is loaded anew."""

    @property
    def description(self) -> str:
        beside = f", challenger {self.challenger}" if self.challenger is not None else ""
        looked = " after its second look" if self.second_look else ""
        return f"version {self.champion}{looked}{beside}"


class DeployedVersion(NamedTuple):
    """A version that is loaded."""

    versions: TargetVersions
    router: AuditedRouter
    models: ModelSet
    profile_folder: Path
    """May be missing; `auto` recognises the task by it."""
    second_look: SecondLook | None = None
    """If it was taken."""
    held: SharedLock | None = None
    """Keeps its task from being forgotten."""

    @property
    def encoder(self) -> SentenceEncoder | None:
        """The one that the model which answers last reads with."""
        return router_setup.own_encoder(self.router.router.stages[-1].model)

    async def aclose(self) -> None:
        await self.models.aclose()
        if self.held is not None:
            self.held.release()


class TaskDeployment:
    """One task of a server."""

    def __init__(
        self,
        file: TaskFile,
        ledger: Ledger,
        *,
        live: bool = True,
        store_bodies: bool = False,
        large: Model | None = None,
    ) -> None:
        """Read the task; `live=False` answers the large path from recordings, `large` in place of the file's own model.

        Raise RegistryError without a champion, or without the challenger that a policy leads to, and as `Project.read`.
        """
        self.file, self._ledger, self._store_bodies = file, ledger, store_bodies
        self._goes_live_alone = large is None
        """False: whoever gave the large model decides what the small one may answer."""
        with state_of(file.folder):
            self._read(live=live, instead=large)

    def _read(self, *, live: bool, instead: Model | None) -> None:
        file = self.file
        if self.target_versions().challenger is None and router_setup.routes_to_challenger(file):
            raise RegistryError(
                f"{file.name}: a policy leads to the challenger, and no version of {file.register_to} is called so",
                hint="smallfirst run task.yaml --challenge, or leave out the policy",
            )
        project = Project.read(file, Progress(quiet=True))
        self._task = project.task
        large, general = (instead, None) if instead else _large_models(project, live=live)
        self.shared = list({id(model): model for model in (large, general) if model}.values())
        """Models that all versions share."""
        shared = {id(model): SharedModel(model) for model in self.shared}
        self.large, self.general = shared.get(id(large)), shared.get(id(general))
        self.sample: tuple[Message, ...] = project.rows.train.examples[0].messages
        """A request with which new models are tried."""

    @property
    def name(self) -> str:
        return self.file.name

    def target_versions(self) -> TargetVersions:
        """Look up what the aliases name now; no file is read. Raise RegistryError without a champion."""
        name = self.file.register_to
        versions.check_name(name)
        with state_of(self.file.folder):
            try:
                known = versions.list_versions(name)
                named = {alias: v.version for v in known for alias in v.aliases}
                looks = {v.version: v.tags.get(TAG, "") for v in known}
            except RegistryError:  # nothing is registered under this name
                named, looks = {}, {}
        if not {versions.CHAMPION, versions.SHADOW} & named.keys():
            raise RegistryError(
                f"{self.file.name} has no champion: no model has passed its gate and become {name}@champion",
                hint="smallfirst run task.yaml   says at its end what is missing",
            )
        champion = named.get(versions.CHAMPION, named.get(versions.SHADOW, 0))
        challenger = named.get(CHALLENGER) if router_setup.routes_to_challenger(self.file) else None
        return TargetVersions(champion, challenger, looks.get(champion, ""))

    def certified(self, version: int) -> bool:
        """Return True if a version has its certificate; without one it is not loaded."""
        with state_of(self.file.folder):
            return versions.read_attachment(self.file.register_to, version, CERTIFICATE) is not None

    def load(self, wanted: TargetVersions, *, trial: Trial | None = None) -> DeployedVersion:
        """Return the audited Router of a version, with the models that are served beside it.

        Raise StageMissing without certificate or run, RegistryError if files are damaged, and what `trial` raises; what
        was loaded by then is freed.
        """
        loaded: list[Model] = []
        try:
            with state_of(self.file.folder):
                return self._load(wanted, loaded, trial)
        except BaseException:
            for model in loaded:
                asyncio.run(model.aclose())
            raise

    def _load(self, wanted: TargetVersions, loaded: list[Model], trial: Trial | None) -> DeployedVersion:
        file, held = self.file, hold_served(self.file.name)
        version = versions.resolve(f"{file.register_to}/{wanted.champion}")
        # The version's own run, not the newest one: that may be a challenger's that has lost.
        run = version.tags.get("run")
        if run and not (folder := home() / "tasks" / file.name / run).exists():
            versions.fetch_folder(version.name, version.version, router_setup.RUN, folder)
        run_folder = RunFolder.latest(file.name, run)
        where = f"{version.name} version {version.version}"
        certificate = Certificate.from_json(_attached(version, CERTIFICATE), where=f"the certificate of {where}")
        parts = router_setup.RouterParts.from_json(
            _attached(version, router_setup.PARTS, b"{}"), where=f"the parts of {where}"
        )
        raw = versions.read_attachment(version.name, version.version, OUTCOME)
        outcome = Outcome.from_json(raw, where=f"the outcome of {where}") if raw else None
        self._check_fallback(certificate, outcome)
        self._check_engine(version)
        ahead = router_setup.stages_ahead(file, run_folder, version=version.version)
        loaded += [stage.model for stage in ahead]
        name = router_setup.versioned_name(f"{file.name}-small", version.version)
        small = load_small(file, version.folder, name=name)
        loaded.append(small)
        detector = router_setup.load_ood_detector(file, run_folder, parts, small)
        router_setup.check_filters(certificate, file, detector)
        beside = router_setup.challenger_stages(file, wanted.challenger) if wanted.challenger is not None else ()
        loaded += [stage.model for stage in beside]
        if trial is not None:
            trial(loaded)
        router = Router(
            parts.on((*ahead, Stage("small", small))),
            self.large,
            certificate,
            general=self.general,
            ood_detector=detector,
            options=router_setup.routing_rules(file, parts.large_usd, run_folder.path, beside),
            name=file.name,
        )
        outcome = self._outcome_here(outcome) if outcome else outcome_of(router)
        judge = _judge(file.routing, certificate, outcome, self.large)
        # Last, since it writes the state of the certificate to the ledger.
        audited = AuditedRouter(
            router,
            _monitor(router, file.routing, judge, outcome),
            ledger=self._ledger,
            auditing=AuditSettings(
                judge, _agreement(self._task), self._store_bodies, self._task, file.routing.labels == "large"
            ),
            outcome=outcome,
            second_look=self._second_look(router, version, run_folder),
        )
        models: dict[str, Model] = {file.name: audited, f"{file.name}-small": small}
        if self.general is not None:
            models[f"{file.name}-large"] = self.general.inner
        served = ModelSet(file.name, models, audited)
        profile = run_folder.path / router_setup.PROFILE_FOLDER
        return DeployedVersion(wanted, audited, served, profile, read_look(version), held)

    def _second_look(self, router: Router, version: ModelVersion, run_folder: RunFolder) -> SecondLooks | None:
        """Return what collects drafts in shadow; None if no second look is to come."""
        if self.file.routing.second_look_after is None or version.tags.get(TAG):
            return None
        if self._goes_live_alone and not self.file.sets_gate:
            _log.warning("%s: no second look is taken: task.yaml has no gate", self.name)
            return None
        try:
            return SecondLooks(router, _agreement(self._task), self._ledger, self.file, version, run_folder)
        except StageMissing as error:
            _log.warning("%s: no second look is taken here: %s", self.name, error.args[0])
            return None

    def _check_engine(self, version: ModelVersion) -> None:
        """Raise StageMissing unless the version was compared with its measured answers on the engine that serves it."""
        if read_manifest(version.folder).kind not in ("label_tokens", "generative", "chat", "text"):
            return
        attached = functools.partial(versions.read_attachment, version.name, version.version)
        engine, on_vllm, here = small_engine(self.file), attached(VLLM_PARITY), attached(PARITY)
        found = ParityResult.from_json(on_vllm, where=VLLM_PARITY) if on_vllm else None
        served = found is not None and found.passed and found.engine == engine
        if not served if engine else here is None and found is not None:
            raise StageMissing(
                f"{version.name} version {version.version} was not compared with its measured answers on "
                f"{engine or 'PyTorch'}, which is to serve it",
                hint="smallfirst parity task.yaml   compares them; its certificate then holds there too",
            )

    def _check_fallback(self, certificate: Certificate, outcome: Outcome | None) -> None:
        goes_live = outcome.goes_live if outcome else certificate.issued
        if self.large is None and not goes_live:
            raise StageMissing(
                f"{self.name}: {certificate.report.why}; and there is no large model that could answer instead",
                hint="name a large model under large:; or  smallfirst run task.yaml   says at its end what is missing",
            )

    def _outcome_here(self, outcome: Outcome) -> Outcome:
        """Return the outcome as it is at this server: whether there is a large model here, which may judge."""
        lost = self.large is None and outcome.watched_by == "large"
        judge = "" if lost else outcome.watched_by
        return outcome.model_copy(update={"large": self.large is not None, "watched_by": judge})


def _judge(routing: RoutingConfig, certificate: Certificate, outcome: Outcome, large: Model | None) -> Judge:
    """Return who judges audits: a person if there is no large model or its own error rate is unknown."""
    known = any(certificate.audit_limit_for(risk, "large") is not None for risk in ("error", "accuracy_loss"))
    watched = certificate.issued or outcome.audited is not None
    known |= outcome.audited is not None and "large" in outcome.audited.limits
    return "person" if large is None or (watched and not known) else routing.judge


def _monitor(router: Router, routing: RoutingConfig, judge: Judge, outcome: Outcome) -> Monitor:
    """Return the Router's monitor; log which limits nothing can test."""
    certificate = router.certificate
    quantities = watched_quantities(certificate, judge, outcome.audited)
    for words in not_watched(certificate, judge):
        _log.warning("%s: nothing after go-live tests the limit %r", router.name, words)
    return Monitor(
        routing.monitor,
        quantities=quantities,
        allocation=allocate_audits(certificate.report.curve, certificate.threshold),
        shadow=not outcome.goes_live,
    )


def _agreement(task: Any) -> Callable[[str, str], bool]:
    """Tell by the task's own score whether a draft agrees with a judge's answer."""

    def agrees(draft: str, judged: str) -> bool:
        right = task.parse(judged)
        return right is not None and task.score([right], task.parse(draft)) >= task.pass_score

    return agrees


def _large_models(project: Project, *, live: bool) -> tuple[Model | None, Model | None]:
    file = project.file
    if file.large is None or not (live or file.large.recorded):
        return None, None
    if live and file.large.general_engine:
        return large_path.prompted_model(file, project.task, project.rows.train), large_path.general_model(file)

    async def recorded() -> tuple[Model, Model]:
        large = await large_path.recorded_answers(file, project.task, project.rows, progress=project.progress)
        return large, await large_path.recorded_open_answers(file, project.rows, progress=project.progress) or large

    return outside_event_loop(lambda: asyncio.run(recorded()))


def _attached(version: versions.ModelVersion, filename: str, otherwise: bytes | None = None) -> bytes:
    raw = versions.read_attachment(version.name, version.version, filename)
    if raw is None and otherwise is None:
        raise StageMissing(
            f"{version.name} version {version.version} has no certificate", hint="smallfirst calibrate task.yaml"
        )
    return otherwise or b"" if raw is None else raw


async def check_models_answer(models: Sequence[Model], request: Request) -> None:
    """Ask every model one request. Raise ModelError if one of them does not answer."""
    for model in models:
        await model.complete(request)

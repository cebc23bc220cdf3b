"""From the entities of an endpoint to what is served under its name: registered models, external models, a cascade."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import accumulate
from typing import Annotated, NamedTuple

from pydantic import Field

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.task_deployment import audited_router
from smallfirst.errors import PriceUnknown, RegistryError, StageMissing
from smallfirst.gate.outcome import Outcome
from smallfirst.models.few_shot import PromptedModel
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Model,
    Request,
    Route,
    RouteStep,
    open_stream,
)
from smallfirst.models.remote.model import EndpointConfig, EndpointModel
from smallfirst.models.usage import max_answer_tokens
from smallfirst.models.wrappers import DelegatingModel
from smallfirst.paths import home
from smallfirst.pipeline.confidence_heads import HEADS, ConfidenceHeads
from smallfirst.pipeline.router_setup import PROFILE_FOLDER, REFERENCE, TrafficReference, versioned_name
from smallfirst.pricing.prices import PriceBook
from smallfirst.project.run_folder import OUTCOME
from smallfirst.project.task_file import RoutingConfig
from smallfirst.records import Record
from smallfirst.registry import versions
from smallfirst.registry.versions import check_name as check_name
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.ood.detector import OodGate
from smallfirst.routing.policies.built_in import SplitPolicy, split_position
from smallfirst.routing.router import Router
from smallfirst.routing.types import Stage
from smallfirst.serving.ledger.ledger import Ledger


class RegisteredEntity(Record):
    """A model of the registry."""

    name: str
    model: str
    """Three-level name, `catalog.schema.model`."""
    version: str
    """A number, or `@` and an alias that is followed."""

    @property
    def reference(self) -> str:
        return self.model + (self.version if self.version.startswith("@") else f"/{self.version}")


class ExternalEntity(Record):
    """A model behind an OpenAI-compatible address."""

    name: str
    endpoint: EndpointConfig


class Cascade(Record):
    """Registered models answer what their certificate allows, and the fallback the rest.

    One that is live by the gate of its task alone, without a certificate, answers every request.
    """

    fallback: str
    """Name of the external entity that is asked last."""


class EndpointPlan(Record):
    """What an endpoint is made of."""

    registered: tuple[RegisteredEntity, ...] = ()
    external: tuple[ExternalEntity, ...] = ()
    percent: dict[str, Annotated[int, Field(ge=0, le=100)]]
    """Share of the requests by entity name, in percent; they sum to 100."""
    cascade: Cascade | None = None
    """None: every entity answers what it gets."""
    sticky_by: tuple[str, ...] = ("user",)
    """Tags of a request, such as `user`: equal values go to the same entity. The first one it has counts."""
    prices: PriceBook = PriceBook()


class LoadedEndpoint(NamedTuple):
    """The models of a plan."""

    models: dict[str, Model]
    """By served name: the endpoint's, and `endpoint/entity` for each entity alone."""
    versions: dict[str, int]
    notes: tuple[str, ...]
    routers: tuple[AuditedRouter, ...] = ()
    """The cascades, `endpoint/entity` by name."""

    async def aclose(self) -> None:
        for model in self.models.values():
            await model.aclose()


def resolve_versions(plan: EndpointPlan) -> dict[str, int]:
    """Return the version that each registered entity means now. Raise RegistryError if there is none."""
    found = {}
    for entity in plan.registered:
        alias = entity.version.removeprefix("@")
        if alias == entity.version:
            found[entity.name] = int(alias)
            continue
        there = [v.version for v in versions.list_versions(entity.model) if alias in v.aliases]
        if not there:
            raise RegistryError(f'{entity.model} has no version called "{alias}"', hint="promote one")
        found[entity.name] = there[0]
    return found


def load_endpoint(name: str, plan: EndpointPlan, ledger: Ledger, *, store_bodies: bool = False) -> LoadedEndpoint:
    """Load what is served under `name`; it may take seconds, since files are verified and weights are read.

    Cascades are audited and monitored as those of a task are, in the ledger. Raise RegistryError, ConfigError and
    PriceUnknown for an entity that cannot be loaded, StageMissing for a cascade without a certificate or without the
    domain check behind which that was made.
    """
    routers: list[AuditedRouter] = []
    external: dict[str, Model] = {one.name: external_model(one, plan.prices) for one in plan.external}
    inner, loaded, notes = dict(external), {}, []
    embedder: Model | None = None
    for entity in plan.registered:
        version = versions.resolve(entity.reference)
        # Before anything large is read: after a promotion it may be missing for a while.
        outcome = _outcome(version) if plan.cascade else None
        certificate = _certificate(version, outcome) if plan.cascade else None
        shown = versioned_name(entity.name, version.version)
        embedder = inner[entity.name] = load_model(
            version.folder, name=shown, price=plan.prices.machine, certified=certificate is not None
        )
        loaded[entity.name] = version.version
        if plan.cascade and certificate:
            large = external[plan.cascade.fallback]
            router = _cascade(version, certificate, (embedder, large), plan, name=f"{name}/{entity.name}")
            audited = audited_router(
                router,
                _reference(version),
                routing=RoutingConfig(),
                task=read_manifest(version.folder).task,
                ledger=ledger,
                store_bodies=store_bodies,
                outcome=None if certificate.issued else outcome,
            )
            routers.append(audited)
            inner[entity.name] = audited
            audits = "a share of its answers is audited" if certificate.issued else "nothing is promised about them"
            notes.append(f"{entity.name}: {certificate.why}; {audits}")
    weights = {entity: percent for entity, percent in plan.percent.items() if percent}
    alone = {
        f"{name}/{entity}": TrafficSplit(entity, {entity: model}, {entity: 100}) for entity, model in inner.items()
    }
    whole = TrafficSplit(
        name, inner, weights, sticky_by=plan.sticky_by, embedder=embedder if len(plan.registered) == 1 else None
    )
    return LoadedEndpoint({name: whole, **alone}, loaded, tuple(notes), tuple(routers))


def external_model(entity: ExternalEntity, prices: PriceBook) -> EndpointModel:
    """Return the external entity's model, not connected yet. Raise ConfigError without its key, and PriceUnknown."""
    try:
        return EndpointModel(entity.endpoint, prices)
    except PriceUnknown as error:
        asked = {entity.endpoint.model: {"input_usd_per_mtok": "…", "output_usd_per_mtok": "…"}}
        hint = f"add to the config, in USD per million tokens: smallfirst: {{prices: {{tokens: {asked}}}}}"
        raise PriceUnknown(f"{entity.name}: {error.args[0]}", hint=hint.replace("'", '"')) from None


def _outcome(version: versions.ModelVersion) -> Outcome | None:
    """Return what the version's run decided. Another large model is asked here, so audits by it have no limit."""
    raw = versions.read_attachment(version.name, version.version, OUTCOME)
    found = Outcome.from_json(raw, where=f"the outcome of {version.name} version {version.version}") if raw else None
    return found and found.model_copy(update={"large": True, "watched_by": "", "audited": None})


def _certificate(version: versions.ModelVersion, outcome: Outcome | None) -> Certificate:
    what = f"{version.name} version {version.version}"
    raw = versions.read_attachment(version.name, version.version, "certificate.json")
    if raw is None:
        raise StageMissing(
            f"{what} has no certificate, so nothing says which answers it may give",
            hint="smallfirst calibrate task.yaml; or split the traffic: strategy: split",
        )
    found = Certificate.from_json(raw, where=f"the certificate of {what}")
    if not found.issued and not (outcome and outcome.goes_live):
        raise StageMissing(
            f"{what}: {found.why}; and no gate of its task lets it answer without",
            hint="label more rows, or set a gate in task.yaml that it passes: smallfirst run task.yaml",
        )
    if found.issued and found.filters.get("policies"):
        raise StageMissing(
            f"{what} was certified behind the policies of its task, which are not served here",
            hint="smallfirst serve task.yaml",
        )
    if len(found.thresholds) > 1:
        ahead = ", ".join(list(found.thresholds)[:-1])
        raise StageMissing(
            f"{what} was certified together with {ahead} before it in the cascade, which are not served here",
            hint="smallfirst serve task.yaml",
        )
    return found


def _cascade(
    version: versions.ModelVersion,
    certificate: Certificate,
    models: tuple[Model, Model],
    plan: EndpointPlan,
    *,
    name: str,
) -> Router:
    """Return a Router over the version's model and the fallback, which gets what the certificate does not cover."""
    (small, fallback), manifest, cascade = models, read_manifest(version.folder), plan.cascade
    assert cascade is not None
    large = fallback
    certificate = certificate.model_copy(update={"below": "escalate" if certificate.issued else "keep"})
    heads = ConfidenceHeads.model_validate_json(versions.read_attachment(version.name, version.version, HEADS) or b"{}")
    if manifest.kind not in ("chat", "text"):
        large = PromptedModel(large, manifest.task, max_tokens=manifest.task.max_answer_tokens)
    return Router(
        heads.on((Stage("small", small),)),
        large,
        certificate,
        general=fallback,
        ood_detector=_ood_detector(version, plan.prices),
        name=name,
    )


def _reference(version: versions.ModelVersion) -> TrafficReference:
    raw = versions.read_attachment(version.name, version.version, REFERENCE)
    return TrafficReference.model_validate_json(raw or b"{}")


def _ood_detector(version: versions.ModelVersion, prices: PriceBook) -> OodGate | None:
    """Return the domain check of the run that made the version; None if the certificate was made without one."""
    if not _reference(version).doubt:
        return None
    run = home() / "tasks" / version.tags.get("task", "") / version.tags.get("run", "")
    detector = OodGate.load(run / PROFILE_FOLDER, price=prices.machine)
    if detector is None:
        raise StageMissing(
            f"{version.name} version {version.version} was certified behind a domain check, which is not in {run}",
            hint="serve it where it was trained, or split the traffic: strategy: split",
        )
    return detector


class TrafficSplit(DelegatingModel):
    """Several Models as one: each request goes to one of them, by weight; equal values of a tag to the same one."""

    def __init__(
        self,
        name: str,
        models: Mapping[str, Model],
        percent: Mapping[str, int],
        *,
        sticky_by: tuple[str, ...] = (),
        embedder: Model | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        single = next(iter(models.values())) if len(models) == 1 else None
        self._embedder = embedder or single
        super().__init__(self._embedder or next(iter(models.values())), name=name)
        self._models, self._percent, self._sticky_by, self._chance = models, percent, sticky_by, chance

    @property
    def capabilities(self) -> frozenset[Capability]:
        more = self._embedder.capabilities if self._embedder else frozenset[Capability]()
        return more - {Capability.JSON, Capability.LOGPROBS} | {Capability.STREAM}

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(*self._models.values())

    async def complete(self, request: Request) -> Completion:
        entity, why, at = self.choose(request)
        return self._with_entity(await self._models[entity].complete(request), entity, why, at)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        entity, why, at = self.choose(request)
        async with open_stream(self._models[entity], request) as chunks:
            async for chunk in chunks:
                if (answer := chunk.completion) is not None:
                    chunk = chunk.model_copy(update={"completion": self._with_entity(answer, entity, why, at)})
                yield chunk

    def choose(self, request: Request) -> tuple[str, str, float | None]:
        """Return the entity that answers, why, and the request's position in [0, 1)."""
        if len(self._percent) == 1:
            entity = next(iter(self._percent))
            return entity, "all requests go there", None
        tag = next((tag for tag in self._sticky_by if tag in request.tags), None)
        at = self._chance()
        if tag is not None:
            at = split_position(SplitPolicy(kind="split", to="", share=1, by=tag, salt=self.name), request)
        by = f"by {tag}" if tag else "by chance"
        ends = zip(self._percent, accumulate(self._percent.values()), strict=True)
        entity = next(name for name, end in ends if at * 100 < end)
        return entity, f"{self._percent[entity]} % go there, {by}", at

    async def aclose(self) -> None:
        # Audits under way in a cascade still ask the external models.
        for model in reversed(list(self._models.values())):
            await model.aclose()

    def _with_entity(self, completion: Completion, entity: str, why: str, at: float | None) -> Completion:
        """Return the completion with the entity in its route; a Router's own route stays, with one step more."""
        step = RouteStep(stage="split", decision="passed on", why=f"{why}: to {entity}", score=at)
        route = completion.route
        if route is None:
            here = completion.confidence
            route = Route(stage=entity, why=why, certified=False, confidence=here, trail=(step,))
        else:
            route = route.model_copy(update={"trail": (step, *route.trail)})
        return completion.model_copy(update={"route": route})

"""What an endpoint serves: registered models, external models, cascades of both, and its shares of the traffic."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.task_deployment import CERTIFICATE, audited_router
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
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.registry.versions import check_name as check_name
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.domain import OodGate
from smallfirst.routing.policies import SplitPolicy, split_position
from smallfirst.routing.router import Router, Stage
from smallfirst.serving.ledger.ledger import Ledger


class Entity(NamedTuple):
    """A registered model, or one behind an OpenAI-compatible address."""

    name: str
    model: str = ""
    """Three-level name, `catalog.schema.model`."""
    version: str = ""
    """A number, or `@` and an alias that is followed."""
    address: EndpointConfig | None = None


class EndpointPlan(NamedTuple):
    """What an endpoint is made of."""

    name: str
    entities: tuple[Entity, ...]
    percent: Mapping[str, int]
    """Share of the requests by entity, in percent; they sum to 100."""
    fallback: str | None
    """Name of the entity behind an address that a cascade asks last; None: every entity answers what it gets."""
    sticky_by: tuple[str, ...] = ("user",)
    """Tags of a request whose equal values go to the same entity; the first one that it has counts."""
    prices: PriceBook = PriceBook()
    store_bodies: bool = False

    @property
    def registered(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if entity.address is None)


class LoadedEndpoint(NamedTuple):
    """The models of a plan."""

    models: dict[str, Model]
    """By served name: the endpoint's, and `endpoint/entity` for each entity alone."""
    versions: dict[str, int]
    notes: tuple[str, ...]
    routers: tuple[AuditedRouter, ...]
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


def load_endpoint(plan: EndpointPlan, ledger: Ledger) -> LoadedEndpoint:
    """Load what an endpoint serves; it may take seconds, since files are verified and weights are read.

    Cascades are audited and monitored as those of a task are, in the ledger. Raise RegistryError, ConfigError and
    PriceUnknown for an entity that cannot be loaded, StageMissing for a cascade without a certificate or without the
    domain check behind which that was made.
    """
    routers: list[AuditedRouter] = []
    external: dict[str, Model] = {e.name: external_model(e.address, plan.prices) for e in plan.entities if e.address}
    inner, loaded, notes = dict(external), {}, []
    embedder: Model | None = None
    for entity in plan.registered:
        mark = "" if entity.version.startswith("@") else "/"
        version = versions.resolve(f"{entity.model}{mark}{entity.version}")
        # Before anything large is read: after a promotion it may be missing for a while.
        outcome = _outcome(version) if plan.fallback else None
        certificate = _certificate(version, outcome) if plan.fallback else None
        shown = versioned_name(entity.name, version.version)
        embedder = inner[entity.name] = load_model(
            version.folder, name=shown, price=plan.prices.machine, certified=certificate is not None
        )
        loaded[entity.name] = version.version
        if plan.fallback and certificate:
            name = f"{plan.name}/{entity.name}"
            router = _cascade(version, certificate, embedder, external[plan.fallback], plan.prices, name)
            inner[entity.name] = audited = audited_router(
                router,
                _reference(version),
                routing=RoutingConfig(),
                task=read_manifest(version.folder).task,
                ledger=ledger,
                store_bodies=plan.store_bodies,
                outcome=None if certificate.issued else outcome,
            )
            routers.append(audited)
            audits = "a share of its answers is audited" if certificate.issued else "nothing is promised about them"
            notes.append(f"{entity.name}: {certificate.why}; {audits}")
    weights = {name: percent for name, percent in plan.percent.items() if percent}
    alone = {f"{plan.name}/{name}": TrafficSplit(name, {name: model}, {name: 100}) for name, model in inner.items()}
    one = embedder if len(plan.registered) == 1 else None
    whole = TrafficSplit(plan.name, inner, weights, sticky_by=plan.sticky_by, embedder=one)
    return LoadedEndpoint({plan.name: whole, **alone}, loaded, tuple(notes), tuple(routers))


def external_model(address: EndpointConfig, prices: PriceBook) -> EndpointModel:
    """Return the model at an address, not connected yet. Raise ConfigError without its key, PriceUnknown.

    A model on this machine is paid by the hour, whatever a vendor charges for one of the same name.
    """
    by_hour = address.is_loopback and address.model not in prices.tokens
    try:
        return EndpointModel(address.model_copy(update={"priced_by": "machine"} if by_hour else {}), prices)
    except PriceUnknown as error:
        tokens = f'{{"{address.model}": {{"input_usd_per_mtok": "…", "output_usd_per_mtok": "…"}}}}'
        hint = f"add to the config, in USD per million tokens: smallfirst: {{prices: {{tokens: {tokens}}}}}"
        raise PriceUnknown(error.args[0], hint=hint) from None


def _outcome(version: ModelVersion) -> Outcome | None:
    """Return what the version's run decided. Another large model is asked here, so audits by it have no limit."""
    raw = versions.read_attachment(version.name, version.version, OUTCOME)
    found = Outcome.from_json(raw, where=f"the outcome of {version.name} version {version.version}") if raw else None
    return found and found.model_copy(update={"large": True, "watched_by": "", "audited": None})


def _certificate(version: ModelVersion, outcome: Outcome | None) -> Certificate:
    what = f"{version.name} version {version.version}"
    raw = versions.read_attachment(version.name, version.version, CERTIFICATE)
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
    behind = "behind the policies of its task" if found.filters.get("policies") else ""
    if len(found.thresholds) > 1:
        behind = f"together with {', '.join(list(found.thresholds)[:-1])} before it in the cascade"
    if behind and (found.issued or len(found.thresholds) > 1):
        raise StageMissing(
            f"{what} was certified {behind}, which are not served here", hint="smallfirst serve task.yaml"
        )
    return found


def _cascade(
    version: ModelVersion, certificate: Certificate, small: Model, fallback: Model, prices: PriceBook, name: str
) -> Router:
    """Return a Router over the version's model and the fallback, which gets what the certificate does not cover."""
    manifest, large = read_manifest(version.folder), fallback
    certificate = certificate.model_copy(update={"below": "escalate" if certificate.issued else "keep"})
    heads = ConfidenceHeads.model_validate_json(versions.read_attachment(version.name, version.version, HEADS) or b"{}")
    if manifest.kind not in ("chat", "text"):
        large = PromptedModel(large, manifest.task, max_tokens=manifest.task.max_answer_tokens)
    detector = None
    if _reference(version).doubt:  # the certificate was made behind a domain check
        run = home() / "tasks" / version.tags.get("task", "") / version.tags.get("run", "")
        detector = OodGate.load(run / PROFILE_FOLDER, price=prices.machine)
        if detector is None:
            raise StageMissing(
                f"{version.name} version {version.version} was certified behind a domain check, which is not in {run}",
                hint="serve it where it was trained, or split the traffic: strategy: split",
            )
    stages = heads.on((Stage("small", small),))
    return Router(stages, large, certificate, general=fallback, ood_detector=detector, name=name)


def _reference(version: ModelVersion) -> TrafficReference:
    raw = versions.read_attachment(version.name, version.version, REFERENCE)
    return TrafficReference.model_validate_json(raw or b"{}")


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
        """`embedder` alone embeds texts and gives probabilities of labels; None: no model does, unless there is one."""
        first = next(iter(models.values()))
        self._embeds = embedder is not None or len(models) == 1
        super().__init__(embedder or first, name=name)
        self._models, self._percent, self._sticky_by, self._chance = models, percent, sticky_by, chance

    @property
    def capabilities(self) -> frozenset[Capability]:
        more = self.inner.capabilities if self._embeds else frozenset[Capability]()
        return more - {Capability.JSON, Capability.LOGPROBS} | {Capability.STREAM}

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(*self._models.values())

    async def complete(self, request: Request) -> Completion:
        chosen = self._choose(request)
        return _with_step(await self._models[chosen[0]].complete(request), *chosen)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        chosen = self._choose(request)
        async with open_stream(self._models[chosen[0]], request) as chunks:
            async for chunk in chunks:
                if (answer := chunk.completion) is not None:
                    chunk = chunk.model_copy(update={"completion": _with_step(answer, *chosen)})
                yield chunk

    def _choose(self, request: Request) -> tuple[str, str, float | None]:
        """Return the entity that answers, why, and the request's position in [0, 1)."""
        entity, why, at = next(iter(self._percent)), "all requests go there", None
        if len(self._percent) > 1:
            tag, at = next((tag for tag in self._sticky_by if tag in request.tags), None), self._chance()
            if tag is not None:
                at = split_position(SplitPolicy(kind="split", to="", share=1, by=tag, salt=self.name), request)
            ends = zip(self._percent, accumulate(self._percent.values()), strict=True)
            entity = next(name for name, end in ends if at * 100 < end)
            why = f"{self._percent[entity]} % go there, {f'by {tag}' if tag else 'by chance'}"
        return entity, why, at

    async def aclose(self) -> None:
        # Audits under way in a cascade still ask the external models.
        for model in reversed(list(self._models.values())):
            await model.aclose()


def _with_step(completion: Completion, entity: str, why: str, at: float | None) -> Completion:
    """Return the completion with the entity in its route; a Router's own route stays, with one step more."""
    # Without a `model`: that is what tells a draft from a decision.
    step = RouteStep(stage="split", decision="passed on", why=f"{why}: to {entity}", score=at)
    route, here = completion.route, completion.confidence
    if route is None:
        route = Route(stage=entity, why=why, certified=False, confidence=here, trail=(step,))
    else:
        route = route.model_copy(update={"trail": (step, *route.trail)})
    return completion.model_copy(update={"route": route})

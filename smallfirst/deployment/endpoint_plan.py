"""What an endpoint serves: registered and external models, each with its share of the traffic."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

from smallfirst.base.errors import PriceUnknown, RegistryError
from smallfirst.models.loading import load_model
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    DelegatingModel,
    Model,
    Request,
    Route,
    RouteStep,
    max_answer_tokens,
    open_stream,
)
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel
from smallfirst.path.router_setup import versioned_name
from smallfirst.registry import versions
from smallfirst.registry.versions import check_name as check_name
from smallfirst.routing.policies import SplitPolicy, split_position

STICKY_BY = "user"
"""Tag of a request whose equal values go to the same entity."""


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
    prices: PriceBook = PriceBook()

    @property
    def registered(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if entity.address is None)


class LoadedEndpoint(NamedTuple):
    """The models of a plan."""

    models: dict[str, Model]
    """By served name: the endpoint's, and `endpoint/entity` for each entity alone."""
    versions: dict[str, int]

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


def load_endpoint(plan: EndpointPlan) -> LoadedEndpoint:
    """Load what an endpoint serves; it may take seconds, since files are verified and weights are read.

    Raise RegistryError, ConfigError and PriceUnknown for an entity that cannot be loaded.
    """
    models: dict[str, Model] = {e.name: external_model(e.address, plan.prices) for e in plan.entities if e.address}
    loaded = {}
    for entity in plan.registered:
        mark = "" if entity.version.startswith("@") else "/"
        version = versions.resolve(f"{entity.model}{mark}{entity.version}")
        name = versioned_name(entity.name, version.version)
        models[entity.name] = load_model(version.folder, name=name, price=plan.prices.machine)
        loaded[entity.name] = version.version
    weights = {name: percent for name, percent in plan.percent.items() if percent}
    alone = {f"{plan.name}/{name}": TrafficSplit(name, {name: model}, {name: 100}) for name, model in models.items()}
    whole = TrafficSplit(plan.name, models, weights)
    return LoadedEndpoint({plan.name: whole, **alone}, loaded)


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


class TrafficSplit(DelegatingModel):
    """Several Models as one: each request goes to one of them, by weight; those of one user to the same one."""

    def __init__(
        self,
        name: str,
        models: Mapping[str, Model],
        percent: Mapping[str, int],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(next(iter(models.values())), name=name)
        self._models, self._percent, self._chance = models, percent, chance

    @property
    def capabilities(self) -> frozenset[Capability]:
        without = {Capability.JSON, Capability.LOGPROBS, Capability.LABEL_PROBABILITIES}
        return self.inner.capabilities - without | {Capability.STREAM}

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(*self._models.values())

    async def complete(self, request: Request) -> Completion:
        entity, why = self._choose(request)
        return _with_route(await self._models[entity].complete(request), entity, why)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        entity, why = self._choose(request)
        async with open_stream(self._models[entity], request) as chunks:
            async for chunk in chunks:
                if (answer := chunk.completion) is not None:
                    chunk = chunk.model_copy(update={"completion": _with_route(answer, entity, why)})
                yield chunk

    def _choose(self, request: Request) -> tuple[str, str]:
        """Return the entity that answers, and why."""
        if len(self._percent) == 1:
            return next(iter(self._percent)), "all requests go there"
        by_user = STICKY_BY in request.tags
        by = SplitPolicy(kind="split", to="", share=1, by=STICKY_BY, salt=self.name)
        at = split_position(by, request) if by_user else self._chance()
        ends = zip(self._percent, accumulate(self._percent.values()), strict=True)
        entity = next(name for name, end in ends if at * 100 < end)
        return entity, f"{self._percent[entity]} % go there, by {STICKY_BY if by_user else 'chance'}"

    async def aclose(self) -> None:
        for model in self._models.values():
            await model.aclose()


def _with_route(completion: Completion, entity: str, why: str) -> Completion:
    """Return the completion with the entity that gave it."""
    # Without a `model`: that is what tells a draft from a decision.
    step = RouteStep(stage="split", decision="passed on", why=f"{why}: to {entity}")
    route = Route(stage=entity, why=why, certified=False, confidence=completion.confidence, trail=(step,))
    return completion.model_copy(update={"route": route})

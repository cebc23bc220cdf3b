"""What an endpoint serves: registered models, each with its share of the traffic."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

from smallfirst.models.loading import load_model
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
from smallfirst.path.router_setup import versioned_name
from smallfirst.registry import versions
from smallfirst.routing.policies import SplitPolicy, split_position

STICKY_BY = "user"
"""Tag of a request whose equal values go to the same entity."""


class LoadedEndpoint(NamedTuple):
    """The models of an endpoint."""

    models: dict[str, Model]
    """By served name: the endpoint's, and `endpoint/entity` for each entity alone."""
    versions: dict[str, int]
    """By entity."""

    async def aclose(self) -> None:
        for model in self.models.values():
            await model.aclose()


def load_endpoint(name: str, references: Mapping[str, str], percent: Mapping[str, int]) -> LoadedEndpoint:
    """Load what an endpoint serves; it may take seconds, since files are verified and weights are read.

    `references` are those of the registry by entity; `percent`, the shares of the entities, sums to 100. Raise
    RegistryError and ConfigError for an entity that cannot be loaded.
    """
    models: dict[str, Model] = {}
    loaded = {}
    for entity, reference in references.items():
        version = versions.resolve(reference)
        models[entity] = load_model(version.folder, name=versioned_name(entity, version.version))
        loaded[entity] = version.version
    weights = {entity: share for entity, share in percent.items() if share}
    alone = {f"{name}/{one}": TrafficSplit(one, {one: model}, {one: 100}) for one, model in models.items()}
    return LoadedEndpoint({name: TrafficSplit(name, models, weights), **alone}, loaded)


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
    # Without a `model`: that is what tells a draft from a decision.
    step = RouteStep(stage="split", decision="passed on", why=f"{why}: to {entity}")
    route = Route(stage=entity, why=why, certified=False, confidence=completion.confidence, trail=(step,))
    return completion.model_copy(update={"route": route})

"""Router: ordered models and a certificate, itself a Model.

The small model drafts every answer; the certificate says from which confidence on the draft may stand. What is below
goes to the large model, or stays small without the promise where the large one was measured to be no better there.
A request that is no job for the small model at all (another domain) goes to the large one as it came, without the
task's prompt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from smallfirst.errors import ModelError
from smallfirst.models.model import Chunk, Completion, Model, Request, Route
from smallfirst.routing.certificate import Certificate


class Doubt(NamedTuple):
    """How unlike the task's own requests a request is."""

    value: float
    """In [0, 1]."""
    cost_usd: float
    """What it cost to find out."""
    latency_ms: float
    """How long it took."""


class Domain(Protocol):
    """Tells requests that belong to the task from all others."""

    async def doubt(self, request: Request) -> Doubt:
        """The request's doubt; above `limit` it is taken for something else."""

    async def aclose(self) -> None:
        """Free what it holds."""

    @property
    def limit(self) -> float:
        """The most doubt a request of the task may raise."""


class Router:
    """Small first. `large` answers the task's doubtful requests; `general` whatever is not the task's."""

    def __init__(
        self,
        small: Model,
        large: Model | None,
        certificate: Certificate,
        *,
        general: Model | None = None,
        domain: Domain | None = None,
        name: str = "",
    ) -> None:
        self.small, self.large, self.certificate = small, large, certificate
        self.general, self.domain = general or large, domain
        self._name = name or small.name

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The draft where it may stand, else the large model's answer; cost and latency include a thrown-away draft."""
        doubt, outside = await self._outside(request)
        if outside is not None and self.general is not None:
            return _after(doubt, await self.general.complete(request), outside)
        return await self._cascade(request, doubt, outside)

    async def _cascade(self, request: Request, doubt: Doubt, outside: Route | None) -> Completion:
        """The same once the domain is known; `outside` here means that there is no other model to send it to."""
        draft = _after(doubt, await self.small.complete(request), outside)
        route = self._judge(draft)
        if outside is not None:  # the certificate speaks of the task's own requests only
            why = f"{outside.why}, and there is no other model to ask"
            route = route.model_copy(update={"certified": False, "why": why})
        if route.stage == "small" or self.large is None:
            return draft.model_copy(update={"route": route})
        try:
            answer = await self.large.complete(request)
        except ModelError as error:
            why = f"the large model did not answer ({error.args[0]}), so the small model's draft stands"
            route = route.model_copy(update={"stage": "small", "why": why})
            return draft.model_copy(update={"route": route})
        return answer.model_copy(
            update={
                "route": route,
                "cost_usd": answer.cost_usd + draft.cost_usd,
                "latency_ms": answer.latency_ms + draft.latency_ms,
            }
        )

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The chosen model's stream. Nothing is sent before the choice is made, so nothing is ever taken back."""
        doubt, outside = await self._outside(request)
        if outside is None or self.general is None:
            completion = await self._cascade(request, doubt, outside)
            yield Chunk(text=completion.text)
            yield Chunk(completion=completion)
            return
        async for chunk in self.general.stream(request):
            if chunk.completion is not None:
                chunk = Chunk(completion=_after(doubt, chunk.completion, outside))
            yield chunk

    async def aclose(self) -> None:
        """Close every model of the cascade."""
        for model in {id(m): m for m in (self.small, self.large, self.general) if m}.values():
            await model.aclose()
        if self.domain is not None:
            await self.domain.aclose()

    async def _outside(self, request: Request) -> tuple[Doubt, Route | None]:
        """The doubt, and the route of a request that is not the task's; no route for the task's own."""
        if self.domain is None:
            return Doubt(0.0, 0.0, 0.0), None
        conversation = sum(message.role != "system" for message in request.messages) > 1
        doubt = await self.domain.doubt(request)
        if doubt.value <= self.domain.limit and not conversation:
            return doubt, None
        why = f"unlike this task's requests (doubt {doubt.value:.2f}, limit {self.domain.limit:.2f})"
        if conversation:
            why = "a conversation, while this task is asked in one message"
        return doubt, Route(stage="large", why=why, certified=False)

    def _judge(self, draft: Completion) -> Route:
        confidence, certificate = draft.confidence or 0.0, self.certificate
        if confidence >= certificate.threshold:
            return self._route("small", "as sure as the certificate asks for", draft, certified=True)
        if self.large is None:
            return self._route("small", "not sure, and there is no large model to ask", draft)
        if certificate.below == "escalate":
            return self._route("large", "the small model was not sure enough", draft)
        return self._route("small", "not sure, but the large model was measured to be no better here", draft)

    def _route(self, stage: str, why: str, draft: Completion, *, certified: bool = False) -> Route:
        return Route(
            stage=stage,
            why=why,
            certified=certified,
            threshold=self.certificate.threshold,
            confidence=draft.confidence,
        )


def _after(doubt: Doubt, completion: Completion, route: Route | None) -> Completion:
    """The completion with its route, and with what the domain check took added."""
    return completion.model_copy(
        update={
            "route": route,
            "cost_usd": completion.cost_usd + doubt.cost_usd,
            "latency_ms": completion.latency_ms + doubt.latency_ms,
        }
    )

"""Router: ordered models, policies and a certificate, itself a Model.

Policies are asked first, then the domain; what is the task's own goes up the cascade, cheapest stage first. Each stage
drafts an answer, and the certificate says from which confidence on the draft may stand. What no stage keeps goes to the
large model, stays small without the promise where the large one was measured to be no better there, or is marked for a
person. A request that is no job for the small models at all (another domain) goes to the large one as it came, without
the task's prompt. Every answer carries its way, step by step, with the price of each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from smallfirst.errors import ModelError
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, RouteStep
from smallfirst.routing.certificate.certificate import NEVER_ACCEPT, Certificate
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.policies import CASCADE, BudgetTracker, apply_policies
from smallfirst.routing.types import Decision, OodDetector, OodScore, RouterOptions, Stage
from smallfirst.routing.way import RoutingAttempt

__all__ = ["OodScore", "Router"]


class Router:
    """Small first. `large` answers the task's doubtful requests; `general` whatever is not the task's."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """What it can do beyond answering."""

    def __init__(
        self,
        drafts: Model | Sequence[Stage],
        large: Model | None,
        certificate: Certificate,
        *,
        general: Model | None = None,
        domain: OodDetector | None = None,
        rules: RouterOptions | None = None,
        name: str = "",
    ) -> None:
        """`drafts` is one small model, or stages from the cheapest up."""
        self.drafts: tuple[Stage, ...] = (Stage("small", drafts),) if isinstance(drafts, Model) else tuple(drafts)
        self.large, self.certificate = large, certificate
        self.general, self.domain = general or large, domain
        self.rules = rules or RouterOptions()
        self.purse = BudgetTracker(self.rules.budget) if self.rules.budget else None
        self._name = name or self.drafts[-1].model.name
        self._promise = _in_words(certificate)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The draft where it may stand, else the large model's answer; cost and latency include thrown-away drafts."""
        return await self.finish(await self.decide(request), request)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The chosen model's stream. Nothing is sent before the choice is made, so nothing is ever taken back."""
        async for chunk in self.finish_stream(await self.decide(request), request):
            yield chunk

    async def decide(self, request: Request, *, paused: str = "") -> Decision:
        """Who answers a request, and why; drafts are made as far as the decision needs them.

        `paused` says why no draft may stand at the moment: the task's own requests go to the large model undrafted.
        """
        placed = apply_policies(self.rules.before, request, self.rules.difficulty)
        way = RoutingAttempt(self, request, paused)
        if placed is not None and placed.to != CASCADE:
            return await way.run_stage(placed)
        return await way.run_cascade(placed)

    async def finish(self, decision: Decision, request: Request) -> Completion:
        """The answer once it is decided who gives it. Raises ModelError where nobody does and there is no draft."""
        if decision.ask is None:
            assert decision.draft is not None
            return decision.draft
        try:
            answer = await decision.ask.complete(request)
        except ModelError as error:
            return _draft_after_all(decision, error)
        return self._answered(decision, answer)

    async def finish_stream(self, decision: Decision, request: Request) -> AsyncIterator[Chunk]:
        """The same piece by piece; a model that fails before its first text leaves the word to the draft."""
        begun, draft = False, decision.draft
        if decision.ask is not None:
            try:
                async for chunk in decision.ask.stream(request):
                    begun = begun or bool(chunk.text)
                    if chunk.completion is not None:
                        chunk = chunk.model_copy(update={"completion": self._answered(decision, chunk.completion)})
                    yield chunk
                return
            except ModelError as error:
                if begun:
                    raise
                draft = _draft_after_all(decision, error)
        assert draft is not None
        yield Chunk(text=draft.text)
        yield Chunk(completion=draft)

    def stage(self, name: str) -> Stage | None:
        """A drafting stage, or one beside the cascade, by name."""
        return next((s for s in (*self.drafts, *self.rules.beside) if s.name == name), None)

    def threshold(self, stage: str) -> float:
        """Confidence from which on a stage's drafts stand; above 1 where none does."""
        if stage == self.drafts[-1].name:
            return self.certificate.threshold
        return next((one.threshold for one in self.certificate.stages if one.name == stage), NEVER_ACCEPT)

    def promises(self, stage: Stage, label: str, confidence: float | None) -> bool:
        """True if the certificate covers this draft of a stage."""
        if stage is self.drafts[-1]:
            return self.certificate.promises(label, confidence)
        named = any(one.name == stage.name for one in self.certificate.stages)
        return named and self.certificate.promises(label, confidence, stage=stage.name)

    @property
    def promise(self) -> str:
        """What is promised of certified answers, in words."""
        return self._promise

    async def aclose(self) -> None:
        """Close every model of the cascade."""
        models = [s.model for s in (*self.drafts, *self.rules.beside)]
        for model in {id(m): m for m in (*models, self.large, self.general) if m}.values():
            await model.aclose()
        if self.domain is not None:
            await self.domain.aclose()

    def _answered(self, decision: Decision, answer: Completion) -> Completion:
        """The asked model's answer with the whole way's cost, latency and steps."""
        if self.purse is not None and decision.draft is not None:  # a budget is about escalation alone
            self.purse.pay(answer.cost_usd)
        step = RouteStep(
            stage=decision.route.stage,
            decision="answered",
            why="asked last",
            model=answer.answered_by,
            cost_usd=answer.cost_usd,
            latency_ms=answer.latency_ms,
        )
        return answer.model_copy(
            update={
                "route": decision.route.model_copy(update={"trail": (*decision.route.trail, step)}),
                "cost_usd": answer.cost_usd + decision.cost_usd,
                "latency_ms": answer.latency_ms + decision.latency_ms,
            }
        )


def _draft_after_all(decision: Decision, error: ModelError) -> Completion:
    """The draft, since the model that was to answer did not. Raises the error if there is no draft."""
    if decision.draft is None:
        raise error
    step = RouteStep(stage=decision.route.stage, decision="failed", why=str(error.args[0]))
    why = f"the large model did not answer ({error.args[0]}), so the small model's draft stands"
    trail = (*decision.route.trail, step)
    stage = next(s.stage for s in reversed(decision.route.trail) if s.decision == "passed on" and s.model)
    route = decision.route.model_copy(update={"stage": stage, "why": why, "trail": trail})
    return decision.draft.model_copy(update={"route": route})


def _in_words(certificate: Certificate) -> str:
    """What it promises; certificates made before the promise was kept promise how many are wrong."""
    if certificate.promise is not None:
        return certificate.promise.in_words
    return Guarantee(at_most_wrong=certificate.promised_error, confidence=certificate.confidence).in_words

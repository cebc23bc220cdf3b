"""One request's way through a Router: policies, domain, drafts from the cheapest up, and what becomes of the doubtful.

Every step is written down with its score, its threshold and its price, as far as the way went; drafts are made only as
far as the decision needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallfirst.errors import ModelError
from smallfirst.models.protocol import Completion, Model, Request, Route, RouteStep
from smallfirst.routing.policies import PolicyDecision, is_conversation
from smallfirst.routing.types import Decision, Stage

if TYPE_CHECKING:
    from smallfirst.routing.router import Router


class RoutingAttempt:
    """One request's way through a Router: what was tried so far, and what it took."""

    def __init__(self, router: Router, request: Request, paused: str = "") -> None:
        self.router, self.request, self.paused = router, request, paused
        self.trail: list[RouteStep] = []
        self.cost_usd = self.latency_ms = 0.0
        self.draft: Completion | None = None

    async def run_stage(self, placed: PolicyDecision) -> Decision:
        """Straight to the stage that a policy names."""
        said = RouteStep(
            stage=placed.policy,
            decision="passed on",
            why=f"{placed.why}: to {placed.to}",
            score=placed.score,
            threshold=placed.threshold,
        )
        self.trail.append(said)
        stage, why = self.router.stage(placed.to), f"{placed.policy}: {placed.why}"
        if stage is not None:
            draft, confidence = await self._drafted(stage)
            self._note(stage, draft, "kept", "a policy placed it here", confidence=confidence)
            return self._stands(draft, self._route(stage.name, why, confidence=confidence))
        general = placed.to == "general" and self.router.general is not None
        return self._ask(self.router.general if general else self.router.large, self._route(placed.to, why))

    async def run_cascade(self, placed: PolicyDecision | None) -> Decision:
        """Past the domain, then from the cheapest stage to the one whose draft stands."""
        outside = None if placed else await self._outside()
        if outside and self.router.general is not None:
            return self._ask(self.router.general, self._route("large", outside, threshold=None))
        if self.paused and self.router.large is not None and not outside:
            return self._ask(self.router.large, self._route("large", self.paused))
        for stage in self.router.drafts:
            draft, confidence = await self._drafted(stage)
            threshold = self.router.threshold(stage.name)
            if outside:  # the certificate speaks of the task's own requests only
                why = f"{outside}, and there is no other model to ask"
                self._note(stage, draft, "kept", why, confidence=confidence, threshold=threshold)
                return self._stands(draft, self._route(stage.name, why, confidence=confidence, threshold=threshold))
            if self.router.promises(stage, draft.text, confidence):
                why = "as sure as the certificate asks for"
                self._note(stage, draft, "kept", why, confidence=confidence, threshold=threshold)
                self._not_asked()
                certified = not self.paused
                route = self._route(stage.name, why, confidence=confidence, threshold=threshold, certified=certified)
                return self._stands(draft, route)
            self._note(stage, draft, "passed on", "not sure enough", confidence=confidence, threshold=threshold)
        return self._below(confidence, threshold)

    def _below(self, confidence: float | None, threshold: float) -> Decision:
        """No draft was sure enough: escalate, keep the last one without the promise, or leave it to a person."""
        router, last = self.router, self.router.drafts[-1].name
        stage, then = last, router.certificate.decide(confidence)
        if router.rules.signed and not router.certificate.issued:
            why = f"not certified; signed for by {router.rules.signed}"
        elif router.large is None and then == "escalate":
            why = "not sure, and there is no large model to ask"
        elif then == "abstain":
            stage, why = "person", "not sure, and the large model was measured to be no better here: for a person"
        elif then == "keep":
            why = "not sure, but the large model was measured to be no better here"
        elif router.purse is not None and not router.purse.allows(router.rules.expected_cost_usd.get("large", 0.0)):
            why = f"not sure, but the budget of ${router.purse.budget.usd:g} a {router.purse.budget.per} is spent"
        else:
            why = "the small model was not sure enough"
            return self._ask(router.large, self._route("large", why, confidence=confidence, threshold=threshold))
        self._not_asked()
        assert self.draft is not None
        return self._stands(self.draft, self._route(stage, why, confidence=confidence, threshold=threshold))

    async def _drafted(self, stage: Stage) -> tuple[Completion, float | None]:
        """A stage's draft and its confidence, None if it has no view; what it took is added up."""
        cheaper = self.draft
        self.draft = await stage.model.complete(self.request)
        self.cost_usd += self.draft.cost_usd
        self.latency_ms += self.draft.latency_ms
        own = self.draft.confidence
        return self.draft, stage.head.confidence(self.draft, cheaper) if stage.head else own

    async def _outside(self) -> str | None:
        """Why the request is not the task's; None if it is."""
        if self.router.domain is None:
            return None
        doubt, limit = await self.router.domain.doubt(self.request), self.router.domain.limit
        self.cost_usd += doubt.cost_usd
        self.latency_ms += doubt.latency_ms
        why = None
        if is_conversation(self.request):
            why = "a conversation, while this task is asked in one message"
        elif doubt.value > limit:
            why = f"unlike this task's requests (doubt {doubt.value:.2f}, limit {limit:.2f})"
        step = RouteStep(
            stage="domain",
            decision="passed on",
            why=why or "the task's own",
            score=doubt.value,
            threshold=limit,
            cost_usd=doubt.cost_usd,
            latency_ms=doubt.latency_ms,
        )
        self.trail.append(step)
        return why

    def _note(
        self,
        stage: Stage,
        draft: Completion,
        decision: str,
        why: str,
        *,
        confidence: float | None,
        threshold: float | None = None,
    ) -> None:
        values = {"stage": stage.name, "decision": decision, "why": why, "model": draft.answered_by}
        costs = {"cost_usd": draft.cost_usd, "latency_ms": draft.latency_ms}
        self.trail.append(RouteStep.model_validate({**values, **costs, "score": confidence, "threshold": threshold}))

    def _not_asked(self) -> None:
        """What the choice that was not made would have cost, where that is known."""
        expected = self.router.rules.expected_cost_usd.get("large")
        if self.router.large is not None and expected is not None:
            why = "expected price of asking"
            name = self.router.large.name
            self.trail.append(RouteStep(stage="large", decision="not asked", why=why, model=name, cost_usd=expected))

    def _route(
        self,
        stage: str,
        why: str,
        *,
        confidence: float | None = None,
        threshold: float | None = None,
        certified: bool = False,
    ) -> Route:
        return Route(
            stage=stage,
            why=why,
            certified=certified,
            threshold=threshold,
            confidence=confidence,
            task=self.router.name,
            promise=self.router.promise if certified else "",
            trail=tuple(self.trail),
        )

    def _stands(self, draft: Completion, route: Route) -> Decision:
        route = route.model_copy(update={"trail": tuple(self.trail)})
        whole = {"route": route, "cost_usd": self.cost_usd, "latency_ms": self.latency_ms}
        return Decision(route, draft.model_copy(update=whole), None, self.cost_usd, self.latency_ms)

    def _ask(self, model: Model | None, route: Route) -> Decision:
        if model is None:
            raise ModelError(f"{self.router.name}: no model for stage {route.stage!r}: {route.why}")
        draft = self.draft
        if draft is not None:
            whole = {"cost_usd": self.cost_usd, "latency_ms": self.latency_ms}
            draft = draft.model_copy(update=whole)
        return Decision(route, draft, model, self.cost_usd, self.latency_ms)

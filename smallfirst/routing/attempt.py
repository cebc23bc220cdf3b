"""One request on its way through a Router: which stages draft, what each step decides, and what it has cost so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallfirst.errors import ModelError
from smallfirst.models.protocol import (
    DEFAULT_MAX_TOKENS,
    Capability,
    Completion,
    Model,
    Request,
    Route,
    RouteStep,
)
from smallfirst.models.usage import max_answer_tokens
from smallfirst.pricing.charge import Charge, itemized, with_purpose
from smallfirst.routing.policies.policy import PolicyDecision, is_conversation
from smallfirst.routing.types import OUT_OF_SCOPE, Decision, Stage

if TYPE_CHECKING:
    from smallfirst.routing.router import Router


class RoutingAttempt:
    """The steps a Router takes for one request, with their cost and latency so far."""

    def __init__(self, router: Router, request: Request, paused: str = "") -> None:
        self.router, self.request, self.paused = router, request, paused
        self.trail: list[RouteStep] = []
        self.latency_ms = 0.0
        self.charges: tuple[Charge, ...] = ()
        """What was paid so far; drafts before the last are discarded ones."""
        self.draft: Completion | None = None
        self.features: tuple[float, ...] | None = None
        """Of the domain check; None if there was none, or for a conversation."""
        self.changed = ""
        """What `changed_by` found in the first draft that it is true of; no later one is certified."""

    async def run_stage(self, chosen: PolicyDecision) -> Decision:
        judged = {"score": chosen.score, "threshold": chosen.threshold}
        self._add_step(chosen.policy, "passed on", f"{chosen.why}: to {chosen.to}", **judged)
        stage, why = self.router.stage(chosen.to), f"{chosen.policy}: {chosen.why}"
        if stage is not None:
            draft, confidence = await self._make_draft(stage)
            self._add_draft(stage, "kept", "a policy sends it here", confidence)
            return self._accept(draft, self._route(stage.name, why, confidence))
        general = chosen.to == "general" and self.router.general is not None
        return self._delegate(self.router.general if general else self.router.large, self._route(chosen.to, why))

    async def run_cascade(self, chosen: PolicyDecision | None) -> Decision:
        unlike = await self._out_of_domain()
        outside = None if chosen else unlike
        if self.paused and self.router.large is not None and not outside:
            return self._delegate(self.router.large, self._route("large", self.paused))
        if outside and (self.paused or not any(map(self._may_accept, self.router.stages))):
            return self._answer_outside(outside)
        for stage in self.router.stages:
            draft, confidence = await self._make_draft(stage)
            threshold = self.router.threshold(stage.name)
            if self.changed:
                self._add_draft(stage, "passed on", self.changed, confidence, threshold)
                continue
            fields = None if outside else self._certified_fields(stage)
            by_fields = bool(fields) and self.router.certificate.keeps_fields(draft.field_confidence)
            covers = self.router.certificate.covers
            if by_fields or covers(draft.text, confidence, threshold=threshold, tags=self.request.tags):
                why = "confident enough for the certificate"
                self._add_draft(stage, "kept", why, confidence, threshold)
                self._add_large_not_asked()
                return self._accept(
                    draft, self._route(stage.name, why, confidence, threshold, certified=not self.paused, fields=fields)
                )
            self._add_draft(stage, "passed on", "not confident enough", confidence, threshold)
        return self._answer_outside(outside) if outside else self._below_threshold(confidence, threshold)

    async def draft_alone(self) -> tuple[Completion, float | None] | None:
        """Return the last stage's draft with its confidence; None for a conversation, or if a setting changed it."""
        await self._out_of_domain()
        if self.router.ood_detector is not None and is_conversation(self.request):
            return None
        drafted = await self._make_draft(self.router.stages[-1])
        return None if self.changed else drafted

    def _may_accept(self, stage: Stage) -> bool:
        """Return True if a draft of a foreign request could be accepted, were the model certain."""
        if stage.acceptance is None or self.features is None or not self.router.certificate.issued:
            return False  # without the one score the certificate covers what passes the domain check only
        return stage.acceptance.confidence(1.0, self.features) >= self.router.threshold(stage.name)

    def _answer_outside(self, why: str) -> Decision:
        """Ask the general model, whose failure no draft may replace, or answer out of scope."""
        if self.router.general is not None:
            return self._delegate(self.router.general, self._route("large", why))._replace(draft=None)
        why = f"{why}, and there is no other model to ask"
        self._add_step(OUT_OF_SCOPE, "answered", "routing.out_of_scope says what")
        return self._accept(self.router.options.out_of_scope.completion, self._route(OUT_OF_SCOPE, why))

    async def answer_uncertified(self, stage: Stage, why: str) -> Completion:
        draft, confidence = await self._make_draft(stage)
        self._add_draft(stage, "kept", why, confidence)
        accepted = self._accept(draft, self._route(stage.name, why, confidence)).draft
        assert accepted is not None
        return accepted

    def _below_threshold(self, confidence: float | None, threshold: float | None) -> Decision:
        router, stage = self.router, self.router.stages[-1].name
        tracker, cause = router.budget_tracker, self.changed or "not confident enough"
        action = router.certificate.below
        if self.changed:  # the thresholds do not decide, and the confidence is not one that rows were counted by
            threshold = None
        if router.large is None and action == "escalate":
            why = f"{cause}, and there is no large model to ask"
        elif action == "abstain":
            reason = "the large model was not shown to be better here" if router.large else "there is no large model"
            stage, why = "person", f"{cause}, and {reason}: left to a person"
        elif self.paused:
            why = f"{self.paused}, and there is no large model to ask"
        elif action == "keep" and not router.certificate.issued and not self.changed:
            why = "answered without a promise: the model passed its gate alone, and no certificate was issued"
        elif action == "keep":
            why = f"{cause}, but the large model was not shown to be better here"
        elif tracker is not None and not tracker.allows(router.options.expected_cost_usd.get("large", 0.0)):
            why = f"{cause}, but the budget of ${tracker.budget.usd:g} a {tracker.budget.per} is spent"
        else:
            why = self.changed or "the small model was not confident enough"
            return self._delegate(router.large, self._route("large", why, confidence, threshold))
        self._add_large_not_asked()
        assert self.draft is not None
        fields = self._certified_fields(router.stages[-1])
        return self._accept(self.draft, self._route(stage, why, confidence, threshold, fields=fields))

    def _certified_fields(self, stage: Stage) -> tuple[str, ...] | None:
        """Return the fields of the last stage's draft that are certified; None where no limit is on fields."""
        fields = self.router.certificate.fields
        if fields is None or stage is not self.router.stages[-1] or self.draft is None:
            return None
        return () if self.paused or self.changed else fields.certified(self.draft.field_confidence)

    async def _make_draft(self, stage: Stage) -> tuple[Completion, float | None]:
        others = [self.draft] if self.draft else []
        self.draft = await stage.model.complete(self.request)
        self.changed = self.changed or changed_by(self.request, stage.model, self.draft)
        self.charges = (*(with_purpose(self.charges, "draft") if others else self.charges), *self.draft.charges)
        self.latency_ms += self.draft.latency_ms
        return self.draft, stage.confidence(self.draft, others, self.features)

    async def _out_of_domain(self) -> str | None:
        detector = self.router.ood_detector
        if detector is None:
            return None
        found, threshold = await detector.score(self.request), detector.threshold
        self.charges += itemized("domain", found.cost_usd, found.charges)
        self.latency_ms += found.latency_ms
        self.features = None if is_conversation(self.request) else found.features
        why = None
        if is_conversation(self.request):
            why = "a conversation, while this task expects a single message"
        elif found.value > threshold:
            why = f"unlike this task's requests (out-of-domain score {found.value:.2f}, threshold {threshold:.2f})"
        paid = {"cost_usd": found.cost_usd, "latency_ms": found.latency_ms}
        self._add_step(
            "domain", "passed on", why or "belongs to the task", score=found.value, threshold=threshold, **paid
        )
        return why

    def _add_step(self, stage: str, decision: str, why: str, **values: object) -> None:
        self.trail.append(RouteStep.model_validate({"stage": stage, "decision": decision, "why": why, **values}))

    def _add_draft(
        self, stage: Stage, decision: str, why: str, confidence: float | None, threshold: float | None = None
    ) -> None:
        assert self.draft is not None
        paid = {"cost_usd": self.draft.cost_usd, "latency_ms": self.draft.latency_ms}
        by = self.draft.answered_by
        self._add_step(stage.name, decision, why, model=by, score=confidence, threshold=threshold, **paid)

    def _add_large_not_asked(self) -> None:
        """Add what the large model was expected to cost, where that is known."""
        large, expected = self.router.large, self.router.options.expected_cost_usd.get("large")
        if large is not None and expected is not None:
            self._add_step("large", "not asked", "expected cost of asking", model=large.name, cost_usd=expected)

    def _route(
        self,
        stage: str,
        why: str,
        confidence: float | None = None,
        threshold: float | None = None,
        *,
        certified: bool = False,
        fields: tuple[str, ...] | None = None,
    ) -> Route:
        return Route(
            stage=stage,
            why=why,
            certified=certified,
            threshold=threshold,
            confidence=confidence,
            task=self.router.name,
            guarantee=self.router.guarantee if certified else "",
            certified_fields=fields,
            trail=tuple(self.trail),
        )

    def _accept(self, draft: Completion, route: Route) -> Decision:
        accepted = draft.with_charges(self.charges, route=route, latency_ms=self.latency_ms)
        return Decision(route, accepted, None, self.charges, self.latency_ms, self.changed)

    def _delegate(self, model: Model | None, route: Route) -> Decision:
        if model is None:
            raise ModelError(f"{self.router.name}: no model for stage {route.stage!r}: {route.why}")
        draft = self.draft and self.draft.with_charges(self.charges, latency_ms=self.latency_ms)
        return Decision(route, draft, model, with_purpose(self.charges, "draft"), self.latency_ms, self.changed)


def changed_by(request: Request, model: Model, answer: Completion) -> str:
    """Return the setting of a request by which an answer is another one than evaluation got; empty if it is the same.

    Only a model that generates has such answers, and an answer that a setting could have changed and did not (a limit
    that was not reached, a stop text that did not come) is the same.
    """
    if Capability.CHOSEN in model.capabilities:
        return ""
    if request.temperature > 0:
        return f"temperature {request.temperature:g}: certified are answers at temperature 0"
    if request.response_format is not None and Capability.JSON in model.capabilities:
        return "response_format: certified are answers without one"
    most = min(DEFAULT_MAX_TOKENS, max_answer_tokens(model) or DEFAULT_MAX_TOKENS)
    if answer.finish_reason == "length" and request.max_tokens < most:
        return f"max_tokens {request.max_tokens} cut the answer off: certified are answers of up to {most} tokens"
    if answer.completion_tokens > DEFAULT_MAX_TOKENS < request.max_tokens:
        return f"max_tokens {request.max_tokens}: certified are answers of up to {most} tokens, and this one is longer"
    if request.stop and answer.stopped is not False:
        how = "ended" if answer.stopped else "may have ended"
        return f"stop: one of its texts {how} the answer, and certified are whole ones"
    return ""

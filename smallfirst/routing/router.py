"""Router: drafting stages, policies and a certificate in front of a large model; itself a Model.

Policies apply first, then the out-of-domain check, then the cascade, cheapest stage first. What no stage is confident
about goes to the large model, is answered small without a guarantee, or is left to a person. Every answer carries its
route.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TypeVar

from smallfirst.errors import ModelError, NotRecorded
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    EmbeddingModel,
    Embeddings,
    LabelProbabilityModel,
    LabelScores,
    Model,
    ProbedModel,
    Request,
    Route,
    RouteStep,
    embedding_model,
    label_probability_model,
    open_stream,
    probed_model,
)
from smallfirst.models.usage import ReportUnfinished, max_answer_tokens, usage_of_draft
from smallfirst.models.wrappers import CallableModel
from smallfirst.routing.budget import BudgetTracker
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.policies import apply_policies
from smallfirst.routing.policies.policy import CASCADE, PolicyDecision, is_conversation
from smallfirst.routing.types import Decision, OodDetector, RouterOptions, Stage

T = TypeVar("T")
_IN_DOMAIN = "belongs to the task"


class Router(CallableModel):
    """Answer with the cheapest stage whose draft the certificate accepts, else with the large model."""

    def __init__(
        self,
        stages: Model | Sequence[Stage],
        large: Model | None,
        certificate: Certificate,
        *,
        general: Model | None = None,
        ood_detector: OodDetector | None = None,
        options: RouterOptions | None = None,
        name: str = "",
    ) -> None:
        """Route between one small model, or stages with the cheapest first, `large`, and `general` for others."""
        self.stages = (Stage("small", stages),) if isinstance(stages, Model) else tuple(stages)
        self.large, self.certificate = large, certificate
        self.general, self.ood_detector = general or large, ood_detector
        self.options = options or RouterOptions()
        self.budget_tracker = BudgetTracker(self.options.budget) if self.options.budget else None
        self.guarantee = _describe_guarantee(certificate)
        """What is guaranteed about certified answers, in one line."""
        self._name = name or self.stages[-1].model.name
        drafting = [stage.model for stage in reversed(self.stages)]
        self._embedding: EmbeddingModel | None = next(filter(None, map(embedding_model, drafting)), None)
        self._scoring: LabelProbabilityModel | None = next(filter(None, map(label_probability_model, drafting)), None)
        self._probed: ProbedModel | None = next(filter(None, map(probed_model, drafting)), None)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        given = {
            Capability.EMBEDDINGS: self._embedding,
            Capability.LABEL_PROBABILITIES: self._scoring,
            Capability.READINESS: self._probed,
        }
        return frozenset({Capability.STREAM, *(capability for capability, model in given.items() if model)})

    @property
    def max_answer_tokens(self) -> int | None:
        stages = (*self.stages, *self.options.policy_stages)
        return max_answer_tokens(*(stage.model for stage in stages), self.large, self.general)

    async def complete(self, request: Request) -> Completion:
        return await self.finish(await self.decide(request), request)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        async with aclosing(self.finish_stream(await self.decide(request), request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def decide(self, request: Request, *, paused: str = "") -> Decision:
        """Decide who answers a request; `paused` is why the task's requests go to the large model without a draft."""
        chosen = apply_policies(self.options.policies, request, self.options.difficulty)
        attempt = RoutingAttempt(self, request, paused)
        with ReportUnfinished(lambda _: usage_of_draft(self.name, attempt.cost_usd, attempt.draft)):
            if chosen is not None and chosen.to != CASCADE:
                return await attempt.run_stage(chosen)
            return await attempt.run_cascade(chosen)

    async def finish(self, decision: Decision, request: Request) -> Completion:
        if decision.model is None:
            assert decision.draft is not None
            return decision.draft
        with ReportUnfinished(lambda _: usage_of_draft(self.name, decision.cost_usd, decision.draft)):
            try:
                answer = await decision.model.complete(request)
            except ModelError as error:
                return await self._fall_back_to_draft(decision, request, error)
        return self._routed(decision, answer)

    async def finish_stream(self, decision: Decision, request: Request) -> AsyncGenerator[Chunk]:
        """Yield the answer of a decision; use the draft if the model fails before its first text."""
        begun, draft = False, decision.draft
        with ReportUnfinished(lambda _: usage_of_draft(self.name, decision.cost_usd, decision.draft)) as report:
            if decision.model is not None:
                try:
                    async with open_stream(decision.model, request) as chunks:
                        async for chunk in chunks:
                            begun = begun or bool(chunk.text)
                            if chunk.completion is not None:
                                report.done()
                                answer = self._routed(decision, chunk.completion)
                                chunk = chunk.model_copy(update={"completion": answer})
                            yield chunk
                    return
                except ModelError as error:
                    if begun:
                        raise
                    draft = await self._fall_back_to_draft(decision, request, error)
            assert draft is not None
            yield Chunk(text=draft.text)
            report.done()
            yield Chunk(completion=draft)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return await self._able(self._embedding, "embeddings").embed(texts)

    async def probabilities(self, texts: Sequence[str]) -> list[LabelScores]:
        return await self._able(self._scoring, "label probabilities").probabilities(texts)

    async def ready(self) -> None:
        if self._probed is not None:
            await self._probed.ready()

    def stage(self, name: str) -> Stage | None:
        return next((s for s in (*self.stages, *self.options.policy_stages) if s.name == name), None)

    def threshold(self, stage: str) -> float:
        if stage == self.stages[-1].name:
            return self.certificate.threshold
        return next((one.threshold for one in self.certificate.stages if one.name == stage), NEVER_ACCEPT)

    def covers(self, stage: Stage, label: str, confidence: float | None) -> bool:
        if stage is self.stages[-1]:
            return self.certificate.covers(label, confidence)
        known = any(one.name == stage.name for one in self.certificate.stages)
        return known and self.certificate.covers(label, confidence, stage=stage.name)

    async def aclose(self) -> None:
        models = [s.model for s in (*self.stages, *self.options.policy_stages)]
        for model in {id(m): m for m in (*models, self.large, self.general) if m}.values():
            await model.aclose()
        if self.ood_detector is not None:
            await self.ood_detector.aclose()

    def _able(self, model: T | None, what: str) -> T:
        if model is None:
            raise ModelError(f"{self.name} has no {what}")
        return model

    async def _fall_back_to_draft(self, decision: Decision, request: Request, error: ModelError) -> Completion:
        what = error.reason or error.args[0]
        failed = RouteStep(stage=decision.route.stage, decision="failed", why=what)
        why, trail = (
            f"the large model did not answer ({what}), so the small model's draft is used",
            decision.route.trail,
        )
        if decision.draft is not None:
            stage = next(s.stage for s in reversed(trail) if s.decision == "passed on" and s.model)
            route = decision.route.model_copy(update={"stage": stage, "why": why, "trail": (*trail, failed)})
            return decision.draft.model_copy(update={"route": route})
        if not isinstance(error, NotRecorded):  # it may answer later, while a recording never will
            raise error
        attempt = RoutingAttempt(self, request)
        attempt.trail, attempt.cost_usd, attempt.latency_ms = [*trail, failed], decision.cost_usd, decision.latency_ms
        return await attempt.answer_uncertified(self.stages[-1], why)

    def _routed(self, decision: Decision, answer: Completion) -> Completion:
        if self.budget_tracker is not None and decision.draft is not None:  # the budget limits escalation alone
            self.budget_tracker.pay(answer.cost_usd)
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


class RoutingAttempt:
    """The steps a Router takes for one request, with their cost and latency so far."""

    def __init__(self, router: Router, request: Request, paused: str = "") -> None:
        self.router, self.request, self.paused = router, request, paused
        self.trail: list[RouteStep] = []
        self.cost_usd = self.latency_ms = 0.0
        self.draft: Completion | None = None

    async def run_stage(self, chosen: PolicyDecision) -> Decision:
        self._add_step(
            stage=chosen.policy,
            decision="passed on",
            why=f"{chosen.why}: to {chosen.to}",
            score=chosen.score,
            threshold=chosen.threshold,
        )
        stage, why = self.router.stage(chosen.to), f"{chosen.policy}: {chosen.why}"
        if stage is not None:
            draft, confidence = await self._make_draft(stage)
            self._add_draft(stage, draft, "kept", "a policy sends it here", confidence=confidence)
            return self._accept(draft, self._route(stage.name, why, confidence=confidence))
        general = chosen.to == "general" and self.router.general is not None
        return self._delegate(self.router.general if general else self.router.large, self._route(chosen.to, why))

    async def run_cascade(self, chosen: PolicyDecision | None) -> Decision:
        outside = None if chosen else await self._out_of_domain()
        if outside and self.router.general is not None:
            return self._delegate(self.router.general, self._route("large", outside, threshold=None))
        if self.paused and self.router.large is not None and not outside:
            return self._delegate(self.router.large, self._route("large", self.paused))
        for stage in self.router.stages:
            draft, confidence = await self._make_draft(stage)
            threshold = self.router.threshold(stage.name)
            if outside:  # the certificate covers the task's own requests only
                why = f"{outside}, and there is no other model to ask"
                self._add_draft(stage, draft, "kept", why, confidence=confidence, threshold=threshold)
                return self._accept(draft, self._route(stage.name, why, confidence=confidence, threshold=threshold))
            if self.router.covers(stage, draft.text, confidence):
                why = "confident enough for the certificate"
                self._add_draft(stage, draft, "kept", why, confidence=confidence, threshold=threshold)
                self._add_large_not_asked()
                certified = not self.paused
                route = self._route(stage.name, why, confidence=confidence, threshold=threshold, certified=certified)
                return self._accept(draft, route)
            self._add_draft(
                stage, draft, "passed on", "not confident enough", confidence=confidence, threshold=threshold
            )
        return self._below_threshold(confidence, threshold)

    async def answer_uncertified(self, stage: Stage, why: str) -> Completion:
        draft, confidence = await self._make_draft(stage)
        self._add_draft(stage, draft, "kept", why, confidence=confidence)
        accepted = self._accept(draft, self._route(stage.name, why, confidence=confidence)).draft
        assert accepted is not None
        return accepted

    def _below_threshold(self, confidence: float | None, threshold: float) -> Decision:
        router, last = self.router, self.router.stages[-1].name
        stage, action, tracker = last, router.certificate.decide(confidence), router.budget_tracker
        if router.options.signed_by and not router.certificate.issued:
            why = f"not certified; signed for by {router.options.signed_by}"
        elif router.large is None and action == "escalate":
            why = "not confident enough, and there is no large model to ask"
        elif action == "abstain":
            stage, why = "person", "not confident enough, and the large model is no better here: left to a person"
        elif action == "keep":
            why = "not confident enough, but the large model was measured to be no better here"
        elif tracker is not None and not tracker.allows(router.options.expected_cost_usd.get("large", 0.0)):
            why = f"not confident enough, but the budget of ${tracker.budget.usd:g} a {tracker.budget.per} is spent"
        else:
            why = "the small model was not confident enough"
            return self._delegate(router.large, self._route("large", why, confidence=confidence, threshold=threshold))
        self._add_large_not_asked()
        assert self.draft is not None
        return self._accept(self.draft, self._route(stage, why, confidence=confidence, threshold=threshold))

    async def _make_draft(self, stage: Stage) -> tuple[Completion, float | None]:
        cheaper = self.draft
        self.draft = await stage.model.complete(self.request)
        self.cost_usd += self.draft.cost_usd
        self.latency_ms += self.draft.latency_ms
        own = self.draft.confidence
        return self.draft, stage.head.confidence(self.draft, cheaper) if stage.head else own

    async def _out_of_domain(self) -> str | None:
        detector = self.router.ood_detector
        if detector is None:
            return None
        found, threshold = await detector.score(self.request), detector.threshold
        self.cost_usd += found.cost_usd
        self.latency_ms += found.latency_ms
        why = None
        if is_conversation(self.request):
            why = "a conversation, while this task expects a single message"
        elif found.value > threshold:
            why = f"unlike this task's requests (out-of-domain score {found.value:.2f}, threshold {threshold:.2f})"
        self._add_step(
            stage="domain",
            decision="passed on",
            why=why or _IN_DOMAIN,
            score=found.value,
            threshold=threshold,
            cost_usd=found.cost_usd,
            latency_ms=found.latency_ms,
        )
        return why

    def _add_step(self, **values: object) -> None:
        self.trail.append(RouteStep.model_validate(values))

    def _add_draft(
        self,
        stage: Stage,
        draft: Completion,
        decision: str,
        why: str,
        *,
        confidence: float | None,
        threshold: float | None = None,
    ) -> None:
        self._add_step(
            stage=stage.name,
            decision=decision,
            why=why,
            model=draft.answered_by,
            score=confidence,
            threshold=threshold,
            cost_usd=draft.cost_usd,
            latency_ms=draft.latency_ms,
        )

    def _add_large_not_asked(self) -> None:
        """Add what the large model was expected to cost, where that is known."""
        large, expected = self.router.large, self.router.options.expected_cost_usd.get("large")
        if large is not None and expected is not None:
            why = "expected cost of asking"
            self._add_step(stage="large", decision="not asked", why=why, model=large.name, cost_usd=expected)

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
            guarantee=self.router.guarantee if certified else "",
            trail=tuple(self.trail),
        )

    def _accept(self, draft: Completion, route: Route) -> Decision:
        route = route.model_copy(update={"trail": tuple(self.trail)})
        total = {"route": route, "cost_usd": self.cost_usd, "latency_ms": self.latency_ms}
        return Decision(route, draft.model_copy(update=total), None, self.cost_usd, self.latency_ms)

    def _delegate(self, model: Model | None, route: Route) -> Decision:
        if model is None:
            raise ModelError(f"{self.router.name}: no model for stage {route.stage!r}: {route.why}")
        total = {"cost_usd": self.cost_usd, "latency_ms": self.latency_ms}
        draft = self.draft and self.draft.model_copy(update=total)
        return Decision(route, draft, model, self.cost_usd, self.latency_ms)


def took_cascade(route: Route) -> bool:
    """Return True if the certificate's thresholds decided: no policy, and not because it was out of domain."""
    outside = any(step.stage == "domain" and step.why != _IN_DOMAIN for step in route.trail)
    return route.threshold is not None and not outside


def _describe_guarantee(certificate: Certificate) -> str:
    if certificate.guarantee is not None:
        return certificate.guarantee.in_words
    return Guarantee(max_error=certificate.max_error, confidence=certificate.confidence).in_words

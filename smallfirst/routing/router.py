"""Router: drafting stages, policies and a certificate in front of a large model; itself a Model.

Policies apply first, then the out-of-domain check, then the cascade, cheapest stage first. What no stage is confident
about goes to the large model, is answered small without a guarantee, or is left to a person; if it is foreign too, it
goes to the general model, or is answered out of scope where there is none. Every answer carries its route.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from smallfirst.errors import ModelError, NotRecorded
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Embeddings,
    LabelScores,
    Model,
    Request,
    RouteStep,
    embedding_model,
    label_probability_model,
    open_stream,
    probed_model,
)
from smallfirst.models.usage import ReportUnfinished, max_answer_tokens, usage_of_draft
from smallfirst.models.wrappers import CallableModel
from smallfirst.routing.attempt import RoutingAttempt
from smallfirst.routing.budget import BudgetTracker
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.policies.policy import CASCADE, apply_policies
from smallfirst.routing.types import Decision, OodDetector, RouterOptions, Stage

T = TypeVar("T")


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
        self.guarantee = certificate.guarantee.in_words
        """What is guaranteed about certified answers, in one line."""
        self._name = name or self.stages[-1].model.name

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        given = {
            Capability.EMBEDDINGS: embedding_model,
            Capability.LABEL_PROBABILITIES: label_probability_model,
            Capability.READINESS: probed_model,
        }
        return frozenset({Capability.STREAM, *(one for one, able in given.items() if self._drafting(able))})

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
        policies = self.options.policies
        chosen = apply_policies(policies, request, self.options.gain) if policies else None
        attempt = RoutingAttempt(self, request, paused)
        with ReportUnfinished(lambda _: usage_of_draft(self.name, attempt.charges, attempt.draft)):
            if chosen is not None and chosen.to != CASCADE:
                return await attempt.run_stage(chosen)
            return await attempt.run_cascade(chosen)

    async def finish(self, decision: Decision, request: Request) -> Completion:
        if decision.model is None:
            assert decision.draft is not None
            return decision.draft
        with ReportUnfinished(lambda _: usage_of_draft(self.name, decision.charges, decision.draft)):
            try:
                answer = await decision.model.complete(request)
            except ModelError as error:
                return await self._fall_back_to_draft(decision, request, error)
        return self.routed(decision, answer)

    async def finish_stream(self, decision: Decision, request: Request) -> AsyncGenerator[Chunk]:
        """Yield the answer of a decision; use the draft if the model fails before its first text."""
        begun, draft = False, decision.draft
        with ReportUnfinished(lambda _: usage_of_draft(self.name, decision.charges, decision.draft)) as report:
            if decision.model is not None:
                try:
                    async with open_stream(decision.model, request) as chunks:
                        async for chunk in chunks:
                            begun = begun or bool(chunk.text)
                            if chunk.completion is not None:
                                report.done()
                                answer = self.routed(decision, chunk.completion)
                                chunk = chunk.model_copy(update={"completion": answer})
                            yield chunk
                    return
                except ModelError as error:
                    if begun:
                        raise
                    draft = await self._fall_back_to_draft(decision, request, error)
            assert draft is not None
            if not draft.refusal:
                yield Chunk(text=draft.text)
            report.done()
            yield Chunk(completion=draft)

    async def draft(self, request: Request) -> tuple[Completion, float | None] | None:
        """Return the only stage's draft with its confidence, whatever the certificate says.

        None if a policy or a setting of the request keeps it from the thresholds.
        """
        chosen = apply_policies(self.options.policies, request, self.options.gain)
        if chosen is not None and chosen.to != CASCADE:
            return None
        return await RoutingAttempt(self, request).draft_alone()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return await self._able(embedding_model, "embeddings").embed(texts)

    async def probabilities(self, texts: Sequence[str]) -> list[LabelScores]:
        return await self._able(label_probability_model, "label probabilities").probabilities(texts)

    async def ready(self) -> None:
        if (probed := self._drafting(probed_model)) is not None:
            await probed.ready()

    def stage(self, name: str) -> Stage | None:
        return next((s for s in (*self.stages, *self.options.policy_stages) if s.name == name), None)

    def threshold(self, stage: str) -> float:
        if stage == self.stages[-1].name:
            return self.certificate.threshold
        return self.certificate.thresholds.get(stage, NEVER_ACCEPT)

    async def aclose(self) -> None:
        models = [stage.model for stage in (*self.stages, *self.options.policy_stages)]
        for model in {id(m): m for m in (*models, self.large, self.general) if m}.values():
            await model.aclose()
        if self.ood_detector is not None:
            await self.ood_detector.aclose()

    def _drafting(self, able: Callable[[Model], T | None]) -> T | None:
        """Return the last drafting model that can do something; None if none can."""
        return next(filter(None, (able(stage.model) for stage in reversed(self.stages))), None)

    def _able(self, able: Callable[[Model], T | None], what: str) -> T:
        if (model := self._drafting(able)) is None:
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
        attempt.trail, attempt.charges, attempt.latency_ms = [*trail, failed], decision.charges, decision.latency_ms
        return await attempt.answer_uncertified(self.stages[-1], why)

    def routed(self, decision: Decision, answer: Completion) -> Completion:
        """Return the answer of the model that a decision names, with its route and the cost of the draft."""
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
        return answer.with_charges(
            (*decision.charges, *answer.charges),
            route=decision.route.model_copy(update={"trail": (*decision.route.trail, step)}),
            latency_ms=answer.latency_ms + decision.latency_ms,
        )

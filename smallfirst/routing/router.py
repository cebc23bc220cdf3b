"""Router: drafting stages, policies and a certificate in front of a large model; itself a Model.

Policies apply first, then the out-of-domain check, then the cascade, cheapest stage first. What no stage is confident
about goes to the large model, is answered small without a guarantee, or is left to a person; if it is foreign too, it
goes to the general model, or is answered out of scope where there is none. Every answer carries its route.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from smallfirst.base.errors import ModelError, NotRecorded
from smallfirst.base.records import Record
from smallfirst.models.pricing import Charge, total_usd, with_purpose
from smallfirst.models.protocol import (
    DEFAULT_MAX_TOKENS,
    CallableModel,
    Capability,
    Chunk,
    Completion,
    Model,
    ProbedModel,
    Request,
    Route,
    RouteStep,
    max_answer_tokens,
    open_stream,
    probed_model,
    unless_answered,
    usage_of_draft,
)
from smallfirst.models.stages import OUT_OF_SCOPE, Answerer, answerer
from smallfirst.routing.acceptance import AcceptanceScore
from smallfirst.routing.certificate.certificate import NEVER_ACCEPT, Certificate
from smallfirst.routing.domain import OodGate
from smallfirst.routing.gain import GainModel
from smallfirst.routing.languages import LANGUAGE, detect_language
from smallfirst.routing.policies import CASCADE, Policy, PolicyDecision, apply_policies, is_conversation
from smallfirst.tasks.call import function_of

REFUSAL = "This request is not one that this service answers."
"""What is said unless the task file says it otherwise."""


class OutOfScope(Record):
    """What is answered to a foreign request where there is no large model to ask."""

    answer: str = ""
    """The answer, such as a label of its own; left out: a refusal."""
    refuse: bool = False
    """True puts the text into OpenAI's field `refusal` and leaves `content` null, as is done without an answer."""

    @property
    def completion(self) -> Completion:
        """The answer as a Completion that cost nothing."""
        return Completion(
            text=self.answer or REFUSAL,
            refusal=self.refuse or not self.answer,
            answered_by=OUT_OF_SCOPE,
            latency_ms=0.0,
            cost_usd=0.0,
        )


class Stage(NamedTuple):
    """One drafting model of the cascade."""

    name: str
    """`words`, `encoder`, `small`, …; as the certificate names it."""
    model: Model
    acceptance: AcceptanceScore | None = None
    """Corrects the confidence for foreign requests; without it the certificate covers what the domain check passes."""

    def confidence(self, draft: Completion, features: Sequence[float] | None = None) -> float | None:
        """Return the confidence in [0, 1] that the thresholds are compared with; None where nothing gives one.

        `features` are those of the domain check.
        """
        if self.acceptance is None or features is None:
            return draft.confidence
        return self.acceptance.confidence(draft.confidence or 0.0, features)


class RouterOptions(NamedTuple):
    """Settings of a Router beside its models and its certificate."""

    policies: Sequence[Policy] = ()
    gain: GainModel | None = None
    policy_stages: Sequence[Stage] = ()
    """Stages that only a policy leads to, such as a challenger."""
    expected_cost_usd: Mapping[str, float] = {}
    """Measured mean cost of an answer by stage, shown for a model that was not asked."""
    out_of_scope: OutOfScope = OutOfScope()
    """What is answered to a foreign request where nobody else can answer."""


class Decision(NamedTuple):
    """Who answers: an accepted draft, or a model still to be asked."""

    route: Route
    draft: Completion | None
    """The accepted draft, or the fallback if `model` fails; its cost and latency are those of the whole attempt."""
    model: Model | None
    """The model to ask; None if the draft is accepted."""
    charges: tuple[Charge, ...]
    """What was paid so far."""
    latency_ms: float
    changed: str = ""
    """The setting of the request that made the draft another one than was certified, so that it says nothing of the
    traffic; empty if none did."""

    @property
    def cost_usd(self) -> float:
        return total_usd(self.charges)


class Router(CallableModel):
    """Answer with the cheapest stage whose draft the certificate accepts, else with the large model."""

    def __init__(
        self,
        stages: Model | Sequence[Stage],
        large: Model | None,
        certificate: Certificate,
        *,
        general: Model | None = None,
        ood_detector: OodGate | None = None,
        options: RouterOptions | None = None,
        name: str = "",
    ) -> None:
        """Route between one small model, or stages with the cheapest first, `large`, and `general` for others."""
        self.stages = (Stage("small", stages),) if isinstance(stages, Model) else tuple(stages)
        self.large, self.certificate = large, certificate
        self.general, self.ood_detector = general or large, ood_detector
        self.options = options or RouterOptions()
        self.guarantee = certificate.guarantee.in_words
        """What is guaranteed about certified answers, in one line."""
        self._name = name or self.stages[-1].model.name
        if certificate.guarantee.languages:
            detect_language("")  # without the extra it fails here and not at a request

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({Capability.STREAM} | ({Capability.READINESS} if self._probed else set()))

    @property
    def max_answer_tokens(self) -> int | None:
        stages = (*self.stages, *self.options.policy_stages)
        return max_answer_tokens(*(stage.model for stage in stages), self.large, self.general)

    @property
    def functions(self) -> Sequence[Mapping[str, Any]] | None:
        """The functions that its last stage calls; None where it calls none."""
        return getattr(self.stages[-1].model, "functions", None)

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
        with unless_answered(request.bill, lambda _: usage_of_draft(self.name, attempt.charges, attempt.draft)):
            if chosen is not None and chosen.to != CASCADE:
                return await attempt.run_stage(chosen)
            return await attempt.run_cascade(chosen)

    async def finish(self, decision: Decision, request: Request) -> Completion:
        if decision.model is None:
            assert decision.draft is not None
            return decision.draft
        with unless_answered(request.bill, lambda _: usage_of_draft(self.name, decision.charges, decision.draft)):
            try:
                answer = await decision.model.complete(request)
            except ModelError as error:
                return await self._fall_back_to_draft(decision, request, error)
        return self.routed(decision, answer)

    async def finish_stream(self, decision: Decision, request: Request) -> AsyncGenerator[Chunk]:
        """Yield the answer of a decision; use the draft if the model fails before its first text."""
        begun, draft = False, decision.draft
        drafts = usage_of_draft(self.name, decision.charges, draft)
        with unless_answered(request.bill, lambda _: drafts):
            if decision.model is not None:
                try:
                    async with open_stream(decision.model, request) as chunks:
                        async for chunk in chunks:
                            begun = begun or bool(chunk.text)
                            if chunk.completion is not None:
                                drafts = None  # they are on the bill of the Completion
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
            drafts = None  # they are on the bill of the Completion
            yield Chunk(completion=draft)

    async def draft(self, request: Request) -> tuple[Completion, float | None] | None:
        """Return the only stage's draft with its confidence, whatever the certificate says.

        None if a policy or a setting of the request keeps it from the thresholds.
        """
        chosen = apply_policies(self.options.policies, request, self.options.gain)
        if chosen is not None and chosen.to != CASCADE:
            return None
        return await RoutingAttempt(self, request).draft_alone()

    async def ready(self) -> None:
        if (probed := self._probed) is not None:
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

    @property
    def _probed(self) -> ProbedModel | None:
        """The last drafting model that can be probed; None if none can."""
        return next(filter(None, (probed_model(stage.model) for stage in reversed(self.stages))), None)

    async def _fall_back_to_draft(self, decision: Decision, request: Request, error: ModelError) -> Completion:
        what = error.reason or error.args[0]
        failed = RouteStep(stage=decision.route.stage, decision="failed", why=what)
        why, trail = (
            f"the large model did not answer ({what}), so the small model's draft is used",
            decision.route.trail,
        )
        if self.functions is not None and not isinstance(error, NotRecorded):
            raise error  # nobody vouches for a call, and what it does may not be undone
        if decision.draft is not None:
            stage = next(s.stage for s in reversed(trail) if s.decision == "passed on" and s.model)
            route = decision.route.model_copy(update={"stage": stage, "why": why, "trail": (*trail, failed)})
            return decision.draft.model_copy(update={"route": route})
        if not isinstance(error, NotRecorded):  # it may answer later, while a recording never will
            raise error
        attempt = RoutingAttempt(self, request, after=(decision, failed))
        return await attempt.answer_uncertified(self.stages[-1], why)

    def call_in(self, answer: Completion) -> dict[str, Any]:
        """Return what a step says of an answer: the function that it calls, and where values were read."""
        function = {} if self.functions is None else {"function": function_of(answer.text)}
        return {**function, **({"read": answer.read} if function or answer.read else {})}

    def routed(self, decision: Decision, answer: Completion) -> Completion:
        """Return the answer of the model that a decision names, with its route and the cost of the draft."""
        step = RouteStep(
            stage=decision.route.stage,
            decision="answered",
            why="asked last",
            model=answer.answered_by,
            cost_usd=answer.cost_usd,
            latency_ms=answer.latency_ms,
            **self.call_in(answer),
        )
        return answer.with_charges(
            (*decision.charges, *answer.charges),
            route=decision.route.model_copy(update={"trail": (*decision.route.trail, step)}),
            latency_ms=answer.latency_ms + decision.latency_ms,
        )


class RoutingAttempt:
    """The steps a Router takes for one request, with their cost and latency so far."""

    def __init__(
        self, router: Router, request: Request, paused: str = "", *, after: tuple[Decision, RouteStep] | None = None
    ) -> None:
        """Begin anew, or go on `after` a decision whose model failed, with the step that says so."""
        self.router, self.request, self.paused = router, request, paused
        self.trail: list[RouteStep] = [*after[0].route.trail, after[1]] if after else []
        self.latency_ms = after[0].latency_ms if after else 0.0
        self.charges: tuple[Charge, ...] = after[0].charges if after else ()
        """What was paid so far; drafts before the last are discarded ones."""
        self.draft: Completion | None = None
        self.features: tuple[float, ...] | None = None
        """Of the domain check; None if there was none, or for a conversation."""
        self.language = detect_language(request.text) if router.certificate.guarantee.languages else ""
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
        general = answerer(chosen.to) is Answerer.GENERAL and self.router.general is not None
        return self._delegate(self.router.general if general else self.router.large, self._route(chosen.to, why))

    async def run_cascade(self, chosen: PolicyDecision | None) -> Decision:
        unlike = await self._out_of_domain()
        outside = None if chosen else unlike
        foreign = self._foreign_language()
        if self.router.certificate.guarantee.languages:
            self._add_step("language", "passed on", foreign or f"written in {self.language}")
        passed_on = self.paused or foreign
        if passed_on and self.router.large is not None and not outside:
            return self._delegate(self.router.large, self._route("large", passed_on))
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
            if by_fields or covers(draft.text, confidence, threshold=threshold, tags=self._groups):
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

    @property
    def _groups(self) -> Mapping[str, str]:
        """By `per_group` the value of the request."""
        told = {LANGUAGE: self.language} if self.router.certificate.guarantee.languages else {}
        return {**self.request.tags, **told}

    def _foreign_language(self) -> str:
        """Return why the request's language sends it on before it is drafted; empty if it does not.

        Where no certificate was issued, the languages of the task are those of the rows that the gate was about.
        """
        certificate = self.router.certificate
        languages = certificate.guarantee.languages or ()
        shown = [one.label for one in certificate.groups if one.certified] if certificate.issued else languages
        if not languages or self.language in shown:
            return ""
        of = f"in which nothing is shown ({', '.join(shown)} are)" if self.language in languages else "foreign here"
        return f"written in {self.language or 'no language'}, {of}"

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
        cause = self.changed or "not confident enough"
        action = router.certificate.below
        if self.changed:  # the thresholds do not decide, and the confidence is not one that rows were counted by
            threshold = None
        if router.large is None and action == "escalate":
            why = f"{cause}, and there is no large model to ask"
        elif action == "abstain":
            reason = "the large model was not shown to be better here" if router.large else "there is no large model"
            stage, why = Answerer.PERSON.value, f"{cause}, and {reason}: left to a person"
        elif self.paused:
            why = f"{self.paused}, and there is no large model to ask"
        elif action == "keep" and not router.certificate.issued and not self.changed:
            why = "answered without a promise: the model passed its gate alone, and no certificate was issued"
        elif action == "keep":
            why = f"{cause}, but the large model was not shown to be better here"
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
        is_first = self.draft is None
        self.draft = await stage.model.complete(self.request)
        self.changed = self.changed or changed_by(self.request, stage.model, self.draft)
        self.charges = (*(self.charges if is_first else with_purpose(self.charges, "draft")), *self.draft.charges)
        self.latency_ms += self.draft.latency_ms
        return self.draft, stage.confidence(self.draft, self.features)

    async def _out_of_domain(self) -> str | None:
        detector = self.router.ood_detector
        if detector is None:
            return None
        found, threshold = await detector.score(self.request), detector.threshold
        self.charges += (found.charge,)
        self.latency_ms += found.latency_ms
        self.features = None if is_conversation(self.request) else found.features
        why = None
        if is_conversation(self.request):
            why = "a conversation, while this task expects a single message"
        elif found.value > threshold:
            why = f"unlike this task's requests (out-of-domain score {found.value:.2f}, threshold {threshold:.2f})"
        paid = {"cost_usd": found.charge.usd or 0.0, "latency_ms": found.latency_ms}
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
        kept = self.router.call_in(self.draft) if decision == "kept" else {}
        self._add_step(stage.name, decision, why, model=by, score=confidence, threshold=threshold, **paid, **kept)

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
            language=self.language,
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


def took_cascade(route: Route) -> bool:
    """Return True if the certificate's thresholds decided: no policy, no pause, no setting, and not out of domain."""
    return route.threshold is not None


def seems_foreign(trail: Iterable[RouteStep]) -> bool:
    """Return True if the domain check took the request for foreign; its draft may have been accepted all the same."""
    found = (step for step in trail if step.stage == "domain")
    return any(s.score is not None and s.threshold is not None and s.score > s.threshold for s in found)


def is_covered(trail: Iterable[RouteStep]) -> bool:
    """Return True if the certificate accepts the answer to which these steps led, also while nothing is promised."""
    return any(step.decision == "kept" and step.threshold is not None for step in trail)

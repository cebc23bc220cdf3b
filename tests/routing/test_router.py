"""Which model answers, what the answer costs, and what is guaranteed about it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from fixtures.certificates import certificate
from fixtures.server import WholeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import ModelError, NotRecorded, Unavailable
from smallfirst.data.dataset import Message
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import stated, total_usd
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, ResponseFormat
from smallfirst.routing.certificate.certificate import (
    NEVER_ACCEPT,
    FieldCertificate,
    GroupCertificate,
    Guarantee,
    KeptFields,
)
from smallfirst.routing.domain import OodScore
from smallfirst.routing.policies import RulePolicy, SplitPolicy
from smallfirst.routing.router import REFUSAL, OutOfScope, Router, RouterOptions, Stage, changed_by, took_cascade
from smallfirst.tasks.answer import Answer

FOREIGN = "unlike this task's requests (out-of-domain score 0.90, threshold 0.50)"


class Echo:
    """Answer with its name and the text, streamed in two pieces; write calls into `events`."""

    capabilities = frozenset({Capability.STREAM})

    def __init__(
        self,
        name: str,
        *,
        confidence: float | None = None,
        cost_usd: float = 0.0,
        latency_ms: float = 0.0,
        error: ModelError | None = None,
        events: list[str] | None = None,
    ) -> None:
        self.name, self.confidence, self.error = name, confidence, error
        self.cost_usd, self.latency_ms = cost_usd, latency_ms
        self.events = events if events is not None else []
        self.functions: tuple[dict[str, Any], ...] | None = None

    async def complete(self, request: Request) -> Completion:
        self.events.append(self.name)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return Completion(
            text=f"{self.name}: {request.text}",
            answered_by=self.name,
            latency_ms=self.latency_ms,
            cost_usd=self.cost_usd,
            confidence=self.confidence,
        )

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        completion = await self.complete(request)
        for part in (f"{self.name}: ", request.text):
            yield Chunk(text=part)
        yield Chunk(completion=completion)

    async def aclose(self) -> None:
        self.events.append(f"{self.name} closed")


class EssayDetector:
    """Score every text with the word essay as foreign."""

    threshold = 0.5

    def __init__(self, *, cost_usd: float = 0.0, latency_ms: float = 0.0, events: list[str] | None = None) -> None:
        self.cost_usd, self.latency_ms = cost_usd, latency_ms
        self.events = events if events is not None else []

    async def score(self, request: Request) -> OodScore:
        self.events.append("domain")
        return OodScore(0.9 if "essay" in request.text else 0.1, stated("domain", self.cost_usd), self.latency_ms)

    async def aclose(self) -> None:
        self.events.append("domain closed")


SMALL = {"cost_usd": 0.001, "latency_ms": 4.0}
LARGE = {"cost_usd": 0.25, "latency_ms": 900.0}


def ask(model: Model, text: str = "where is my card") -> Completion:
    return asyncio.run(model.complete(Request.ask(text)))


def streamed(model: Model, text: str) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in model.stream(Request.ask(text))]

    return asyncio.run(collect())


def route(answer: Completion | None) -> dict[str, Any]:
    """The route without its steps and names, defaults left out."""
    return answer.route.model_dump(exclude={"trail", "task", "guarantee"}, exclude_defaults=True)


def steps(answer: Completion) -> list[tuple[str, str]]:
    return [(step.stage, step.decision) for step in answer.route.trail]


def bill(answer: Completion) -> list[tuple[str, str, float | None]]:
    assert answer.cost_usd == pytest.approx(total_usd(answer.charges), rel=1e-12)
    return [(line.model, line.purpose, line.usd) for line in answer.charges]


def test_the_bill_says_which_work_answered_and_which_was_for_nothing() -> None:
    detector = EssayDetector(cost_usd=0.002, latency_ms=2)
    small, large = Echo("small", confidence=0.9, **SMALL), Echo("large", **LARGE)
    router = Router(small, large, certificate(0.8), ood_detector=detector)
    kept, foreign = ask(router), ask(router, "an essay")
    assert (bill(kept), kept.latency_ms) == ([("domain", "answer", 0.002), ("small", "answer", 0.001)], 4 + 2)
    assert (bill(foreign), foreign.latency_ms) == ([("domain", "draft", 0.002), ("large", "answer", 0.25)], 900 + 2)
    assert streamed(router, "an essay")[-1].completion == foreign
    assert detector.events == ["domain"] * 3  # once for each answer
    down = Echo("large", error=Unavailable("down", hint="wait"))
    unsure = Echo("small", confidence=0.1, **SMALL)
    assert bill(ask(Router(unsure, down, certificate(0.8)))) == [("small", "answer", 0.001)]
    two = (Stage("words", Echo("words", confidence=0.1, **SMALL)), Stage("small", unsure))
    both = [("words", "draft", 0.001), ("small", "draft", 0.001), ("large", "answer", 0.25)]
    assert bill(ask(Router(two, large, certificate(0.8)))) == both


CONFIDENCES = st.one_of(st.none(), st.floats(0, 1))


@settings(max_examples=50, deadline=None)
@given(st.text(), CONFIDENCES)
def test_threshold_zero_is_the_small_model_exactly(text: str, confidence: float | None) -> None:
    small, large = Echo("small", confidence=confidence, **SMALL), Echo("large", **LARGE)
    answer = ask(Router(small, large, certificate(0.0)), text)
    assert answer.model_copy(update={"route": None}) == ask(small, text)
    assert large.events == []


@settings(max_examples=50, deadline=None)
@given(st.text(), CONFIDENCES)
def test_a_certificate_that_accepts_nothing_gives_the_large_models_answer(text: str, confidence: float | None) -> None:
    small, large = Echo("small", confidence=confidence), Echo("large")
    answer = ask(Router(small, large, certificate(NEVER_ACCEPT)), text)
    assert (answer.text, answer.answered_by) == (ask(large, text).text, "large")
    expected = {"stage": "large", "why": "the small model was not confident enough", "certified": False}
    expected |= {"threshold": NEVER_ACCEPT} | ({} if confidence is None else {"confidence": confidence})
    assert route(answer) == expected


@pytest.mark.parametrize(
    ("large", "below", "why"),
    [
        (Echo("large"), "keep", "not confident enough, but the large model was not shown to be better here"),
        (None, "escalate", "not confident enough, and there is no large model to ask"),
        (
            Echo("large", error=Unavailable("no route to host", hint="start it")),
            "escalate",
            "the large model did not answer (no route to host), so the small model's draft is used",
        ),
    ],
)
def test_an_uncertain_draft_is_used_uncertified_where_nobody_is_better(
    large: Echo | None, below: str, why: str
) -> None:
    router = Router(Echo("small", confidence=0.3, **SMALL), large, certificate(0.8, below=below))
    answer, chunks = ask(router), streamed(router, "where is my card")
    assert (answer.answered_by, answer.cost_usd) == ("small", 0.001)
    assert ([chunk.text for chunk in chunks], chunks[-1].completion) == ([answer.text, ""], answer)
    assert route(answer) == {"stage": "small", "why": why, "certified": False, "threshold": 0.8, "confidence": 0.3}


def test_the_languages_that_are_not_shown_go_on_before_they_are_drafted() -> None:
    groups = [
        GroupCertificate(label=one, threshold=at, n_accepted=9, n_errors=0, error_bound=0.0, labels_missing=0)
        for one, at in (("de", 0.5), ("en", 0.8), ("it", NEVER_ACCEPT))
    ]
    shown = certificate(0.5, groups=groups, guarantee=Guarantee(languages=("de", "en", "it")))
    texts = ("wo ist meine Karte?", "where is my card?", "dove si trova la mia carta?", "missä minun korttini on?")
    small, large = Echo("small", confidence=0.6), Echo("large")
    found = [ask(Router(small, large, shown), text).route for text in texts]
    assert [(one.language, one.stage, one.certified) for one in found] == [
        ("de", "small", True), ("en", "large", False), ("it", "large", False), ("fi", "large", False),
    ]  # fmt: skip
    assert (found[2].why, found[3].why) == (
        "written in it, in which nothing is shown (de, en are)",
        "written in fi, foreign here",
    )
    assert small.events == ["small"] * 2
    assert [step.why for step in found[0].trail if step.stage == "language"] == ["written in de"]
    stages = [ask(Router(small, None, shown), text).route for text in texts]
    assert [(one.stage, one.certified) for one in stages] == [("small", True)] + [("small", False)] * 3
    refused = shown.model_copy(update={"issued": False, "below": "keep"})
    assert [ask(Router(small, large, refused), text).route.stage for text in texts] == ["small"] * 3 + ["large"]


def test_a_call_that_nothing_covers_is_not_made_because_the_large_model_is_down() -> None:
    small = Echo("small", confidence=0.3)
    small.functions = ({"name": "OrderTea"},)
    router = Router(small, Echo("large", error=Unavailable("no route", hint="wait")), certificate(0.8))
    with pytest.raises(Unavailable, match="no route"):
        ask(router)
    with pytest.raises(Unavailable, match="no route"):
        streamed(router, "order a box")


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("why", [FOREIGN, "paused", "always"])
def test_where_a_recording_has_no_answer_the_small_model_answers_uncertified(why: str, streaming: bool) -> None:
    policies = (RulePolicy(kind="rule", to="large"),) if why.startswith("always") else ()
    router = Router(
        Echo("small", confidence=1.0, **SMALL),
        Echo("large", error=NotRecorded("/a/b has no answer", reason="a recording has no answer")),
        certificate(0.0),
        ood_detector=EssayDetector(),
        options=RouterOptions(policies=policies),
    )
    asked = Request.ask("an essay" if why == FOREIGN else "where is my card")
    decision = asyncio.run(router.decide(asked, paused="paused" if why == "paused" else ""))

    async def last() -> Completion | None:
        return [chunk async for chunk in router.finish_stream(decision, asked)][-1].completion

    answer = asyncio.run(last() if streaming else router.finish(decision, asked))
    assert (answer.answered_by, answer.cost_usd) == ("small", 0.001)
    said = "the large model did not answer (a recording has no answer), so the small model's draft is used"
    assert route(answer) == {"stage": "small", "why": said, "certified": False, "confidence": 1.0}
    assert [step.decision for step in answer.route.trail[-2:]] == ["failed", "kept"]


def test_a_foreign_request_waits_for_a_large_model_that_is_down() -> None:
    large = Echo("large", error=Unavailable("down"))
    with pytest.raises(Unavailable):
        ask(Router(Echo("small"), large, certificate(0.0), ood_detector=EssayDetector()), "an essay")


def test_a_small_model_that_fails_is_not_hidden() -> None:
    with pytest.raises(ModelError, match="closed"):
        ask(Router(Echo("small", error=ModelError("closed")), Echo("large"), certificate(0.8)))


def test_a_request_of_another_domain_goes_to_the_general_model_without_a_draft() -> None:
    events: list[str] = []
    small, large = Echo("small", confidence=1.0, events=events), Echo("large", events=events)
    general = Echo("general", events=events, **LARGE)
    router = Router(small, large, certificate(0.0), general=general, ood_detector=EssayDetector())
    answer = ask(router, "write an essay")
    assert events == ["general"]
    assert (answer.text, answer.cost_usd, answer.latency_ms) == ("general: write an essay", 0.25, 900)
    assert route(answer) == {"stage": "large", "why": FOREIGN, "certified": False}
    assert ask(router).answered_by == "small"
    chunks = streamed(router, "an essay")
    assert [chunk.text for chunk in chunks] == ["general: ", "an essay", ""]
    assert chunks[-1].completion == ask(router, "an essay")


def test_a_conversation_does_not_belong_to_a_task_of_single_messages() -> None:
    router = Router(Echo("small", confidence=1.0), Echo("large"), certificate(0.0), ood_detector=EssayDetector())
    turns = (
        Message(role="system", content="be kind"),
        Message(role="user", content="where is my card"),
        Message(role="assistant", content="small: card"),
        Message(role="user", content="thanks"),
    )
    answer = asyncio.run(router.complete(Request(messages=turns)))
    why = "a conversation, while this task expects a single message"
    assert route(answer) == {"stage": "large", "why": why, "certified": False}
    assert asyncio.run(router.complete(Request(messages=turns[:2]))).answered_by == "small"


def test_without_any_other_model_a_foreign_request_gets_the_answer_that_the_task_file_names() -> None:
    detector = EssayDetector()
    large = Router(Echo("small"), Echo("large"), certificate(0.0), ood_detector=detector)
    assert ask(large, "write an essay").answered_by == "large"  # the general model unless another is named
    small, why = Echo("small", confidence=1.0), f"{FOREIGN}, and there is no other model to ask"
    refusing = Router(small, None, certificate(0.5), ood_detector=detector)
    refused = ask(refusing, "write an essay")
    assert (refused.text, refused.refusal, small.events) == (REFUSAL, True, [])
    assert route(refused) == {"stage": "out_of_scope", "why": why, "certified": False}
    assert [(chunk.text, chunk.completion) for chunk in streamed(refusing, "an essay")] == [("", refused)]
    options = RouterOptions(out_of_scope=OutOfScope(answer="none of these"))
    answer = ask(Router(small, None, certificate(0.5), ood_detector=detector, options=options), "write an essay")
    assert (answer.text, answer.refusal, answer.answered_by) == ("none of these", False, "out_of_scope")


class Halved:
    """Halve the confidence of a draft for a foreign request."""

    def confidence(self, draft: float, features: Sequence[float]) -> float:
        return draft / 2 if features[0] > 0.5 else draft


class Measured(EssayDetector):
    async def score(self, request: Request) -> OodScore:
        found = await super().score(request)
        return found._replace(features=(found.value,))


@pytest.mark.parametrize(
    ("threshold", "text", "stage", "drafted"),
    [
        (0.4, "write an essay", "small", True),  # foreign by the check alone, but the one score accepts it
        (0.49, "write an essay", "large", True),  # the draft is not confident enough; no fallback is made of it
        (0.6, "write an essay", "large", False),  # no confidence of a draft would do
        (0.6, "where is my card", "small", True),
    ],
)
def test_one_score_of_confidence_and_distance_decides(threshold: float, text: str, stage: str, drafted: bool) -> None:
    small = Echo("small", confidence=0.9)
    stages = [Stage("small", small, acceptance=Halved())]
    answer = ask(Router(stages, Echo("large"), certificate(threshold), ood_detector=Measured()), text)
    assert (answer.route.stage, answer.route.certified, bool(small.events)) == (stage, stage == "small", drafted)
    down = Router(stages, Echo("large", error=Unavailable("down")), certificate(threshold), ood_detector=Measured())
    if stage == "large":
        with pytest.raises(Unavailable):
            ask(down, text)


@pytest.mark.parametrize(("confidence", "stage"), [(0.9, "small"), (0.2, "large")])
async def test_no_text_is_streamed_before_it_is_decided_who_answers(confidence: float, stage: str) -> None:
    events: list[str] = []
    router = Router(Echo("small", confidence=confidence, events=events), Echo("large", events=events), certificate(0.8))
    chunks = []
    async for chunk in router.stream(Request.ask("hello")):
        events.append("text" if chunk.text else "end")
        chunks.append(chunk)
    assert events == [*(["small", "text"] if stage == "small" else ["small", "large", "text", "text"]), "end"]
    assert "".join(chunk.text for chunk in chunks) == f"{stage}: hello"
    assert chunks[-1].completion == await router.complete(Request.ask("hello"))


def test_closing_closes_every_model_once() -> None:
    events: list[str] = []
    small, large = Echo("small", events=events), Echo("large", events=events)
    detector = EssayDetector(events=events)
    asyncio.run(Router(small, large, certificate(0.8), general=large, ood_detector=detector).aclose())
    assert sorted(events) == ["domain closed", "large closed", "small closed"]


def test_a_router_is_ready_when_its_last_probed_stage_is() -> None:
    class Encoder(Echo):
        capabilities = frozenset({Capability.READINESS})

        async def ready(self) -> None:
            self.events.append("ready")

    encoder = Encoder("encoder")
    router = Router([Stage("encoder", encoder), Stage("small", Echo("small"))], None, certificate(0.8), name="desk")
    assert router.capabilities == {Capability.STREAM, Capability.READINESS}
    asyncio.run(router.ready())
    assert encoder.events == ["ready"]
    plain = Router(Echo("small"), None, certificate(0.8))
    assert plain.capabilities == {Capability.STREAM}
    asyncio.run(plain.ready())


def cascade(words: float, small: float, *, options: RouterOptions | None = None, large: Echo | None = None) -> Router:
    """Words, then the small model, then the large one, which was measured to cost a dollar."""
    stages = [
        Stage("words", Echo("words", confidence=words, cost_usd=0.001, latency_ms=1)),
        Stage("small", Echo("small", confidence=small, cost_usd=0.01, latency_ms=10)),
    ]
    last = large or Echo("large", cost_usd=1.0, latency_ms=100)
    options = options or RouterOptions(expected_cost_usd={"large": 1.25})
    return Router(
        stages, last, certificate(0.8, thresholds={"words": 0.9, "small": 0.8}), options=options, name="tickets"
    )


def test_a_cascade_pays_for_every_step() -> None:
    middle, top = ask(cascade(0.89, 0.8)), ask(cascade(0.89, 0.79))
    assert steps(middle) == [("words", "passed on"), ("small", "kept"), ("large", "not asked")]
    assert (middle.answered_by, middle.cost_usd) == ("small", pytest.approx(0.011))
    assert steps(top) == [("words", "passed on"), ("small", "passed on"), ("large", "answered")]
    assert (top.answered_by, top.cost_usd, top.latency_ms) == ("large", pytest.approx(1.011), 111)
    assert [step.cost_usd for step in middle.route.trail] == [0.001, 0.01, 1.25]  # expected of what was not asked
    assert [step.cost_usd for step in top.route.trail] == [0.001, 0.01, 1.0]
    assert [(step.score, step.threshold) for step in top.route.trail] == [(0.89, 0.9), (0.79, 0.8), (None, None)]


def test_a_policy_places_a_request_without_a_guarantee() -> None:
    answer = ask(cascade(1.0, 1.0, options=RouterOptions(policies=(RulePolicy(kind="rule", to="large"),))))
    assert (answer.answered_by, steps(answer)) == ("large", [("rule", "passed on"), ("large", "answered")])
    kept = ask(cascade(0.0, 0.0, options=RouterOptions(policies=(RulePolicy(kind="rule", to="words"),))))
    assert (kept.answered_by, route(kept)["certified"]) == ("words", False)


def test_a_stage_outside_the_cascade_is_reached_by_a_policy_only() -> None:
    stages = (Stage("challenger", Echo("challenger", confidence=1.0)),)
    options = RouterOptions(policy_stages=stages)
    assert ask(cascade(0.0, 0.0, options=options)).answered_by == "large"
    options = options._replace(policies=(SplitPolicy(kind="split", to="challenger", share=1.0),))
    assert ask(cascade(0.0, 0.0, options=options)).answered_by == "challenger"


class Json(Echo):
    def __init__(self, **field_confidence: float) -> None:
        super().__init__("small")
        self.field_confidence = field_confidence

    async def complete(self, request: Request) -> Completion:
        completion = await super().complete(request)
        return completion.model_copy(update={"field_confidence": self.field_confidence})


def of_fields(threshold: float, whole: float) -> FieldCertificate:
    kept = {"n_kept": 1, "n_wrong": 0, "n_rows_kept": 1, "n_rows_wrong": 0, "bound": 0.05}
    each, together = (KeptFields(threshold=at, **kept) for at in (threshold, whole))
    return FieldCertificate(names=("a", "b"), each=each, whole=together, n_rows=9, n_units=9)


def by_fields(*, large: Model | None, temperature: float = 0.0, **field_confidence: float) -> Completion:
    guarantee = Guarantee(max_error=None, max_wrong_fields=0.05)
    record = certificate(NEVER_ACCEPT, guarantee=guarantee, fields=of_fields(0.7, 0.8))
    request = Request.ask("x").model_copy(update={"temperature": temperature})
    return asyncio.run(Router(Json(**field_confidence), large, record).complete(request))


def test_an_answer_whose_every_field_is_sure_stays_small() -> None:
    found = by_fields(large=Echo("large"), a=0.9, b=0.85)
    assert (found.answered_by, found.route.certified, found.route.certified_fields) == ("small", True, ("a", "b"))
    assert found.route.guarantee == "at most 5 % of kept fields wrong (95 %)"


def test_an_answer_with_an_unsure_field_goes_on_and_without_a_large_model_says_which_are_sure() -> None:
    asked = by_fields(large=Echo("large"), a=0.9, b=0.75)
    assert (asked.answered_by, asked.route.certified_fields) == ("large", None)
    alone = by_fields(large=None, a=0.9, b=0.2)
    assert (alone.answered_by, alone.route.certified, alone.route.certified_fields) == ("small", False, ("a",))
    sampled = by_fields(large=None, temperature=1.5, a=0.9, b=0.85)
    assert (sampled.route.certified, sampled.route.certified_fields) == (False, ())


ANY_JSON = ResponseFormat(kind="json_object")
CHOSEN = frozenset({Capability.CHOSEN})
SAMPLED = "temperature 1.5: certified are answers at temperature 0"


class Small(WholeModel):
    """Answers surely, with any fields of its Completion changed."""

    def __init__(self, name: str = "small", capabilities: frozenset[Capability] = frozenset(), **fields: Any) -> None:
        self.name, self.capabilities, self.fields = name, capabilities, fields
        self.max_answer_tokens = 64

    async def complete(self, request: Request) -> Completion:
        fields = {"text": self.name, "confidence": 0.95, **self.fields}
        return Completion(answered_by=self.name, latency_ms=1.0, cost_usd=0.0, **fields)


def ask_all(model: Model, *requests: Request) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        found = [await model.complete(request) for request in requests]
        await model.aclose()
        return found

    return asyncio.run(all_of_them())


def asked(**settings: Any) -> Request:
    return Request.ask("where is my card").model_copy(update=settings)


@pytest.mark.parametrize(
    ("settings", "answer", "why"),
    [
        ({}, {}, ""),
        ({"temperature": 1.5, "seed": 3}, {}, SAMPLED),
        ({"seed": 3, "logprobs": 5, "tags": {"user": "u"}}, {}, ""),
        ({"max_tokens": 3}, {"completion_tokens": 2}, ""),
        (
            {"max_tokens": 3},
            {"finish_reason": "length", "completion_tokens": 3},
            "max_tokens 3 cut the answer off: certified are answers of up to 64 tokens",
        ),
        ({"max_tokens": 64}, {"finish_reason": "length", "completion_tokens": 64}, ""),
        ({"max_tokens": 4000}, {"finish_reason": "length", "completion_tokens": 64}, ""),
        (
            {"max_tokens": 4000},
            {"completion_tokens": 300},
            "max_tokens 4000: certified are answers of up to 64 tokens, and this one is longer",
        ),
        ({"stop": ("\n",)}, {"stopped": False}, ""),
        ({"stop": ("\n",)}, {"stopped": True}, "stop: one of its texts ended the answer, and certified are whole ones"),
        ({"stop": ("\n",)}, {}, "stop: one of its texts may have ended the answer, and certified are whole ones"),
        ({"response_format": ANY_JSON}, {}, ""),  # without JSON a model does not follow it
    ],
)
def test_a_setting_counts_where_it_changed_the_answer(settings: Any, answer: Any, why: str) -> None:
    request, small = asked(**settings), Small(**answer)
    (found,) = ask_all(small, request)
    assert changed_by(request, small, found) == why
    assert changed_by(request, Small(capabilities=CHOSEN), found) == ""
    (routed,) = ask_all(Router(small, Small("large"), certificate(0.8)), request)
    assert (routed.route.certified, routed.answered_by) == ((False, "large") if why else (True, "small"))
    if why:
        assert routed.route.why == routed.route.trail[0].why == why
        assert not took_cascade(routed.route)


@pytest.mark.parametrize(
    ("changes", "stage", "why"),
    [
        ({"threshold": 0.0, "below": "escalate"}, "small", f"{SAMPLED}, and there is no large model to ask"),
        ({"below": "abstain"}, "person", f"{SAMPLED}, and there is no large model: left to a person"),
    ],
)
def test_without_a_large_model_the_answer_is_given_uncertified(changes: Any, stage: str, why: str) -> None:
    (found,) = ask_all(Router(Small(), None, certificate(**changes)), asked(temperature=1.5))
    assert (found.route.stage, found.route.why, found.route.certified) == (stage, why, False)


@pytest.mark.parametrize(
    ("first", "last", "answered_by"),
    [
        (CHOSEN, frozenset(), "words"),
        (frozenset(), CHOSEN, "large"),  # what the second stage accepts was certified on what the first one passes on
    ],
)
def test_in_a_cascade_stages_before_the_first_that_generates_keep_their_certificate(
    first: frozenset[Capability], last: frozenset[Capability], answered_by: str
) -> None:
    stages = (Stage("words", Small("words", first)), Stage("small", Small("small", last)))
    router = Router(stages, Small("large"), certificate(0.8, thresholds={"words": 0.8, "small": 0.8}))
    certain, sampled = ask_all(router, asked(), asked(temperature=1.5))
    assert (certain.answered_by, sampled.answered_by) == ("words", answered_by)
    assert sampled.route.certified == (answered_by == "words")


def test_sampled_answers_of_a_model_that_generates_are_never_certified(lively: tuple[Any, Any]) -> None:
    manifest = Manifest(kind="generative", task=Answer(name="rules", max_answer_tokens=6), base="tiny")
    small = GenerativeModel.fine_tuned(Generator(*lively), manifest)
    texts = [f"the card {i}" for i in range(12)]
    sampled = [Request.ask(text).model_copy(update={"temperature": 1.5, "seed": i}) for i, text in enumerate(texts)]
    stopped = Request.ask(texts[0]).model_copy(update={"stop": ("a", "e", "i", "o", "u")})
    spared = stopped.model_copy(update={"stop": ("\u2603",)})
    cut = Request.ask(texts[0], max_tokens=2)
    router = Router(small, Small("large"), certificate(0.0))
    found = ask_all(router, *map(Request.ask, texts), *sampled, stopped, spared, cut)
    certified = [answer.route is not None and answer.route.certified for answer in found]
    assert certified == [True] * 12 + [False] * 12 + [False, True, False]
    assert [answer.answered_by for answer in found[12:24]] == ["large"] * 12

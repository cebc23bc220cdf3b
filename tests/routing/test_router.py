"""The Router's laws: which model answers, what it costs, and what is promised about the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fixtures.certificates import certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data.dataset import Message
from smallfirst.errors import ModelError, Unavailable
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, Route
from smallfirst.routing.budget import Budget
from smallfirst.routing.certificate.certificate import StageThreshold
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.policies.always import AlwaysPolicy
from smallfirst.routing.policies.rule import RulePolicy
from smallfirst.routing.policies.split import SplitPolicy
from smallfirst.routing.router import Router
from smallfirst.routing.types import OodScore, RouterOptions, Stage


class Answers:
    """Says its own name and the text; streams it in two pieces; writes down what happens in `events`."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

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


class Essays:
    """A domain for which every text that holds the word essay is something else."""

    threshold = 0.5

    def __init__(self, *, cost_usd: float = 0.0, latency_ms: float = 0.0, events: list[str] | None = None) -> None:
        self.cost_usd, self.latency_ms = cost_usd, latency_ms
        self.events = events if events is not None else []

    async def score(self, request: Request) -> OodScore:
        self.events.append("domain")
        return OodScore(0.9 if "essay" in request.text else 0.1, self.cost_usd, self.latency_ms)

    async def aclose(self) -> None:
        self.events.append("domain closed")


def ask(model: Model, text: str = "where is my card") -> Completion:
    return asyncio.run(model.complete(Request.ask(text)))


def streamed(model: Model, text: str) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in model.stream(Request.ask(text))]

    return asyncio.run(collect())


def bare(answer: Completion) -> Route:
    """The route without its steps and names."""
    assert answer.route is not None
    return answer.route.model_copy(update={"trail": (), "task": "", "promise": ""})


CONFIDENCES = st.one_of(st.none(), st.floats(0, 1))


@settings(max_examples=50, deadline=None)
@given(st.text(), CONFIDENCES)
def test_threshold_zero_is_the_small_model_exactly(text: str, confidence: float | None) -> None:
    small = Answers("small", confidence=confidence, cost_usd=0.001, latency_ms=4)
    large = Answers("large", cost_usd=1, latency_ms=900)
    answer = ask(Router(small, large, certificate(0.0)), text)
    assert answer.model_copy(update={"route": None}) == ask(small, text)
    assert large.events == []


@settings(max_examples=50, deadline=None)
@given(st.text(), CONFIDENCES)
def test_a_certificate_that_keeps_nothing_gives_the_large_models_answer_exactly(
    text: str, confidence: float | None
) -> None:
    small, large = Answers("small", confidence=confidence), Answers("large")
    answer = ask(Router(small, large, certificate(NEVER_ACCEPT)), text)
    assert (answer.text, answer.answered_by) == (ask(large, text).text, "large")
    assert bare(answer) == Route(
        stage="large",
        why="the small model was not confident enough",
        certified=False,
        threshold=NEVER_ACCEPT,
        confidence=confidence,
    )


def test_an_answer_at_the_threshold_is_kept_and_certified() -> None:
    small, large = Answers("small", confidence=0.8, cost_usd=0.001, latency_ms=4), Answers("large")
    answer = ask(Router(small, large, certificate(0.8)))
    assert answer.answered_by == "small"
    assert bare(answer) == Route(
        stage="small", why="confident enough for the certificate", certified=True, threshold=0.8, confidence=0.8
    )
    assert (answer.cost_usd, answer.latency_ms) == (0.001, 4)


def test_an_escalated_answer_costs_and_takes_the_sum_of_both() -> None:
    small = Answers("small", confidence=0.79, cost_usd=0.001, latency_ms=4)
    large = Answers("large", cost_usd=0.25, latency_ms=900)
    answer = ask(Router(small, large, certificate(0.8)))
    assert (answer.cost_usd, answer.latency_ms) == (pytest.approx(0.251), 904)
    assert answer.confidence is None  # the large model's own view, not the draft's


def test_a_doubtful_answer_stays_small_but_uncertified_where_large_is_no_better() -> None:
    small, large = Answers("small", confidence=0.3), Answers("large")
    answer = ask(Router(small, large, certificate(0.8, below="keep")))
    assert (answer.answered_by, large.events) == ("small", [])
    assert bare(answer) == Route(
        stage="small",
        why="not confident enough, but the large model was measured to be no better here",
        certified=False,
        threshold=0.8,
        confidence=0.3,
    )


def test_without_a_large_model_the_draft_stands_uncertified() -> None:
    answer = ask(Router(Answers("small", confidence=0.3), None, certificate(0.8)))
    assert answer.answered_by == "small"
    assert answer.route is not None
    assert (answer.route.stage, answer.route.certified) == ("small", False)
    assert answer.route.why == "not confident enough, and there is no large model to ask"


def test_if_the_large_model_is_down_the_draft_stands_uncertified_and_says_why() -> None:
    down = Answers("large", error=Unavailable("no route to host", hint="start it"))
    answer = ask(Router(Answers("small", confidence=0.3, cost_usd=0.5), down, certificate(0.8)))
    assert (answer.answered_by, answer.cost_usd) == ("small", 0.5)
    assert bare(answer) == Route(
        stage="small",
        why="the large model did not answer (no route to host), so the small model's draft is used",
        certified=False,
        threshold=0.8,
        confidence=0.3,
    )


def test_a_small_model_that_fails_is_not_hidden() -> None:
    router = Router(Answers("small", error=ModelError("closed")), Answers("large"), certificate(0.8))
    with pytest.raises(ModelError, match="closed"):
        ask(router)


def test_a_request_of_another_domain_goes_to_the_general_model_without_a_draft() -> None:
    events: list[str] = []
    small, large = Answers("small", confidence=1.0, events=events), Answers("large", events=events)
    general = Answers("general", cost_usd=0.25, latency_ms=900, events=events)
    router = Router(small, large, certificate(0.0), general=general, ood_detector=Essays())
    answer = ask(router, "write an essay")
    assert events == ["general"]
    assert (answer.text, answer.cost_usd, answer.latency_ms) == ("general: write an essay", 0.25, 900)
    assert bare(answer) == Route(
        stage="large", why="unlike this task's requests (out-of-domain score 0.90, threshold 0.50)", certified=False
    )
    events.clear()
    assert ask(router).answered_by == "small"


@pytest.mark.parametrize(
    ("text", "confidence", "took"),
    [
        ("where is my card", 0.9, (0.001 + 0.01, 4 + 2)),
        ("where is my card", 0.1, (0.001 + 0.01 + 0.25, 4 + 2 + 900)),
        ("write an essay", 0.9, (0.01 + 0.25, 2 + 900)),
    ],
)
def test_what_the_domain_check_took_is_part_of_every_answer_and_it_is_asked_once(
    text: str, confidence: float, took: tuple[float, float]
) -> None:
    small = Answers("small", confidence=confidence, cost_usd=0.001, latency_ms=4)
    domain = Essays(cost_usd=0.01, latency_ms=2)
    router = Router(small, Answers("large", cost_usd=0.25, latency_ms=900), certificate(0.8), ood_detector=domain)
    whole, streamed_last = ask(router, text), streamed(router, text)[-1].completion
    assert (whole.cost_usd, whole.latency_ms) == pytest.approx(took)
    assert streamed_last == whole
    assert domain.events == ["domain", "domain"]  # once for each of the two answers


def test_a_conversation_is_no_request_of_a_task_asked_in_one_message() -> None:
    router = Router(Answers("small", confidence=1.0), Answers("large"), certificate(0.0), ood_detector=Essays())
    turns = (
        Message(role="system", content="be kind"),
        Message(role="user", content="where is my card"),
        Message(role="assistant", content="small: card"),
        Message(role="user", content="thanks"),
    )
    answer = asyncio.run(router.complete(Request(messages=turns)))
    assert bare(answer) == Route(
        stage="large", why="a conversation, while this task expects a single message", certified=False
    )
    assert asyncio.run(router.complete(Request(messages=turns[:2]))).answered_by == "small"


def test_the_large_model_is_the_general_one_where_no_other_is_named() -> None:
    router = Router(Answers("small"), Answers("large"), certificate(0.0), ood_detector=Essays())
    assert ask(router, "write an essay").answered_by == "large"


def test_without_any_other_model_a_foreign_request_is_answered_small_but_never_certified() -> None:
    answer = ask(
        Router(Answers("small", confidence=1.0), None, certificate(0.0), ood_detector=Essays()), "write an essay"
    )
    assert answer.answered_by == "small"
    assert bare(answer) == Route(
        stage="small",
        why="unlike this task's requests (out-of-domain score 0.90, threshold 0.50), "
        "and there is no other model to ask",
        certified=False,
        threshold=0.0,
        confidence=1.0,
    )


@pytest.mark.parametrize(("confidence", "stage"), [(0.9, "small"), (0.2, "large")])
def test_no_text_is_streamed_before_it_is_decided_who_answers(confidence: float, stage: str) -> None:
    events: list[str] = []
    small = Answers("small", confidence=confidence, events=events)
    router = Router(small, Answers("large", events=events), certificate(0.8))

    async def collect() -> list[Chunk]:
        chunks = []
        async for chunk in router.stream(Request.ask("hello")):
            events.append("text" if chunk.text else "end")
            chunks.append(chunk)
        return chunks

    chunks = asyncio.run(collect())
    assert events == [*(["small", "text"] if stage == "small" else ["small", "large", "text", "text"]), "end"]
    assert "".join(chunk.text for chunk in chunks) == f"{stage}: hello"
    assert chunks[-1].completion == ask(router, "hello")


def test_the_general_model_streams_as_it_writes_and_the_last_piece_carries_the_route() -> None:
    general = Answers("general")
    router = Router(Answers("small"), Answers("large"), certificate(0.8), general=general, ood_detector=Essays())
    chunks = streamed(router, "an essay")
    assert [chunk.text for chunk in chunks] == ["general: ", "an essay", ""]
    assert [chunk.completion is not None for chunk in chunks] == [False, False, True]
    assert chunks[-1].completion == ask(router, "an essay")


def test_closing_closes_every_model_once() -> None:
    events: list[str] = []
    small, large = Answers("small", events=events), Answers("large", events=events)
    domain = Essays(events=events)
    asyncio.run(Router(small, large, certificate(0.8), general=large, ood_detector=domain).aclose())
    assert sorted(events) == ["domain closed", "large closed", "small closed"]


def test_a_router_is_a_model_under_the_tasks_name() -> None:
    router = Router(Answers("small"), None, certificate(0.8), name="desk")
    assert isinstance(router, Model)
    assert (router.name, Router(Answers("small"), None, certificate(0.8)).name) == ("desk", "small")


def steps(answer: Completion) -> list[tuple[str, str]]:
    assert answer.route is not None
    return [(step.stage, step.decision) for step in answer.route.trail]


def cascade(
    words: float, small: float, *, options: RouterOptions | None = None, large: Answers | None = None
) -> Router:
    """Words, then the small model, then the large one, which was measured to cost a dollar."""
    drafts = [
        Stage("words", Answers("words", confidence=words, cost_usd=0.001, latency_ms=1)),
        Stage("small", Answers("small", confidence=small, cost_usd=0.01, latency_ms=10)),
    ]
    stages = (
        StageThreshold(name="words", threshold=0.9, n_accepted=30, n_errors=0),
        StageThreshold(name="small", threshold=0.8, n_accepted=30, n_errors=0),
    )
    promised = certificate(0.8).model_copy(update={"stages": stages})
    last = large or Answers("large", cost_usd=1.0, latency_ms=100)
    return Router(
        drafts, last, promised, options=options or RouterOptions(expected_cost_usd={"large": 1.25}), name="tickets"
    )


def test_the_cheapest_stage_that_is_sure_enough_answers_and_no_other_is_asked() -> None:
    answer = ask(cascade(0.95, 0.95))
    assert (answer.answered_by, answer.cost_usd, answer.latency_ms) == ("words", 0.001, 1)
    assert bare(answer).stage == "words"
    assert bare(answer).certified
    assert steps(answer) == [("words", "kept"), ("large", "not asked")]


def test_a_cascade_goes_up_step_by_step_and_pays_for_every_step() -> None:
    middle, top = ask(cascade(0.89, 0.8)), ask(cascade(0.89, 0.79))
    assert steps(middle) == [("words", "passed on"), ("small", "kept"), ("large", "not asked")]
    assert (middle.answered_by, middle.cost_usd) == ("small", pytest.approx(0.011))
    assert steps(top) == [("words", "passed on"), ("small", "passed on"), ("large", "answered")]
    assert (top.answered_by, top.cost_usd, top.latency_ms) == ("large", pytest.approx(1.011), 111)
    assert top.route is not None
    assert [step.cost_usd for step in top.route.trail] == [0.001, 0.01, 1.0]
    assert [(step.score, step.threshold) for step in top.route.trail] == [(0.89, 0.9), (0.79, 0.8), (None, None)]


def test_the_choice_that_was_not_made_is_shown_with_its_expected_price() -> None:
    answer = ask(cascade(0.0, 0.9))
    assert answer.route is not None
    assert answer.route.trail[-1].model_dump(include={"stage", "decision", "cost_usd"}) == {
        "stage": "large",
        "decision": "not asked",
        "cost_usd": 1.25,
    }
    assert answer.cost_usd == pytest.approx(0.011)
    assert answer.route.promise == "at most 5 % of kept answers wrong (95 %)"


def test_a_policy_places_a_request_without_a_promise() -> None:
    straight = RouterOptions(policies=(AlwaysPolicy(kind="always", to="large"),))
    answer = ask(cascade(1.0, 1.0, options=straight))
    assert (answer.answered_by, steps(answer)) == ("large", [("always", "passed on"), ("large", "answered")])
    kept = ask(cascade(0.0, 0.0, options=RouterOptions(policies=(AlwaysPolicy(kind="always", to="words"),))))
    assert (kept.answered_by, bare(kept).certified) == ("words", False)


def test_a_rule_may_send_a_request_up_the_cascade_before_a_later_policy_takes_it() -> None:
    first = RulePolicy(kind="rule", to="cascade", contains=("card",))
    router = cascade(1.0, 1.0, options=RouterOptions(policies=(first, AlwaysPolicy(kind="always", to="large"))))
    assert (ask(router, "my card").answered_by, ask(router, "my house").answered_by) == ("words", "large")


def test_a_stage_beside_the_cascade_is_reached_by_a_policy_only() -> None:
    beside = (Stage("challenger", Answers("challenger", confidence=1.0)),)
    split = SplitPolicy(kind="split", to="challenger", share=1.0)
    assert (
        ask(cascade(0.0, 0.0, options=RouterOptions(policy_stages=beside, policies=(split,)))).answered_by
        == "challenger"
    )
    assert ask(cascade(0.0, 0.0, options=RouterOptions(policy_stages=beside))).answered_by == "large"


def test_a_spent_budget_keeps_the_draft_without_a_promise() -> None:
    router = cascade(
        0.0, 0.0, options=RouterOptions(budget=Budget(usd=2.0, per="day"), expected_cost_usd={"large": 0.9})
    )
    answers = [ask(router) for _ in range(3)]
    assert [a.answered_by for a in answers] == ["large", "large", "small"]
    assert bare(answers[2]).why == "not confident enough, but the budget of $2 a day is spent"
    assert not bare(answers[2]).certified


def test_a_head_reads_the_confidence_and_sees_the_cheaper_draft() -> None:
    class Agreement:
        def confidence(self, completion: Completion, cheaper: Completion | None = None) -> float:
            return 1.0 if cheaper is not None and cheaper.answered_by == "words" else 0.0

    router = cascade(0.0, 0.0)
    words, small = router.stages
    router.stages = (words, small._replace(head=Agreement()))
    assert (ask(router).answered_by, bare(ask(router)).confidence) == ("small", 1.0)


def test_a_stream_that_fails_before_its_first_text_falls_back_to_the_draft() -> None:
    router = cascade(0.0, 0.3, large=Answers("large", error=Unavailable("down")))
    chunks = streamed(router, "hello")
    assert [chunk.text for chunk in chunks] == ["small: hello", ""]
    assert chunks[-1].completion is not None
    assert steps(chunks[-1].completion)[-1] == ("large", "failed")
    assert bare(chunks[-1].completion).stage == "small"


def test_a_promise_without_a_limit_on_wrong_answers_is_said_as_it_was_asked_for() -> None:
    asked = Guarantee(max_error=None, max_accuracy_loss=0.01)
    made = certificate(0.5).model_copy(update={"guarantee": asked, "max_error": 1.0})
    answer = ask(Router(Answers("small", confidence=0.9), Answers("large"), made))
    assert answer.route is not None
    assert answer.route.promise == "at most 1 point less accurate than the large model (95 %)"


def test_a_budget_is_about_escalation_alone() -> None:
    straight = RulePolicy(kind="rule", to="large", contains=("house",))
    options = RouterOptions(policies=(straight,), budget=Budget(usd=1.5, per="day"), expected_cost_usd={"large": 0.9})
    router = cascade(0.0, 0.0, options=options)
    assert [ask(router, "my house").answered_by for _ in range(3)] == ["large"] * 3
    assert [ask(router, "my card").answered_by for _ in range(2)] == ["large", "small"]


def test_a_signature_stands_in_for_a_missing_certificate_only() -> None:
    options = RouterOptions(signed_by="Ada: pilot")
    assert ask(cascade(0.0, 0.0, options=options)).answered_by == "large"
    router = cascade(0.0, 0.0, options=options)
    router.certificate = router.certificate.model_copy(update={"issued": False, "threshold": NEVER_ACCEPT})
    answer = ask(router)
    assert (answer.answered_by, bare(answer).why) == ("small", "not certified; signed for by Ada: pilot")

"""The Router's laws: which model answers, what it costs, and what is promised about the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data.dataset import Message
from smallfirst.errors import ModelError, Unavailable
from smallfirst.models.model import Chunk, Completion, Model, Request, Route
from smallfirst.routing.certificate import NOTHING_KEPT, Certificate
from smallfirst.routing.router import Doubt, Router
from smallfirst.stats import wilson


class Answers:
    """Says its own name and the text; streams it in two pieces; writes down what happens in `events`."""

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

    limit = 0.5

    def __init__(self, *, cost_usd: float = 0.0, latency_ms: float = 0.0, events: list[str] | None = None) -> None:
        self.cost_usd, self.latency_ms = cost_usd, latency_ms
        self.events = events if events is not None else []

    async def doubt(self, request: Request) -> Doubt:
        self.events.append("domain")
        return Doubt(0.9 if "essay" in request.text else 0.1, self.cost_usd, self.latency_ms)

    async def aclose(self) -> None:
        self.events.append("domain closed")


def certificate(threshold: float, *, below: str = "escalate") -> Certificate:
    return Certificate(
        issued=True,
        why="shown",
        promised_error=0.05,
        confidence=0.95,
        threshold=threshold,
        n_labels=100,
        n_kept=60,
        errors_kept=0,
        error_bound=0.049,
        coverage=wilson(60, 100),
        below=below,  # type: ignore[arg-type]
        below_why="measured",
        below_difference=None,
        temperature=1.0,
        curve=(),
        model_fingerprint="m",
        dataset_fingerprint="d",
    )


def ask(model: Model, text: str = "where is my card") -> Completion:
    return asyncio.run(model.complete(Request.ask(text)))


def streamed(model: Model, text: str) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in model.stream(Request.ask(text))]

    return asyncio.run(collect())


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
    answer = ask(Router(small, large, certificate(NOTHING_KEPT)), text)
    assert (answer.text, answer.answered_by) == (ask(large, text).text, "large")
    assert answer.route == Route(
        stage="large",
        why="the small model was not sure enough",
        certified=False,
        threshold=NOTHING_KEPT,
        confidence=confidence,
    )


def test_an_answer_at_the_threshold_is_kept_and_certified() -> None:
    small, large = Answers("small", confidence=0.8, cost_usd=0.001, latency_ms=4), Answers("large")
    answer = ask(Router(small, large, certificate(0.8)))
    assert answer.answered_by == "small"
    assert answer.route == Route(
        stage="small", why="as sure as the certificate asks for", certified=True, threshold=0.8, confidence=0.8
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
    assert answer.route == Route(
        stage="small",
        why="not sure, but the large model was measured to be no better here",
        certified=False,
        threshold=0.8,
        confidence=0.3,
    )


def test_without_a_large_model_the_draft_stands_uncertified() -> None:
    answer = ask(Router(Answers("small", confidence=0.3), None, certificate(0.8)))
    assert answer.answered_by == "small"
    assert answer.route is not None
    assert (answer.route.stage, answer.route.certified) == ("small", False)
    assert answer.route.why == "not sure, and there is no large model to ask"


def test_if_the_large_model_is_down_the_draft_stands_uncertified_and_says_why() -> None:
    down = Answers("large", error=Unavailable("no route to host", hint="start it"))
    answer = ask(Router(Answers("small", confidence=0.3, cost_usd=0.5), down, certificate(0.8)))
    assert (answer.answered_by, answer.cost_usd) == ("small", 0.5)
    assert answer.route == Route(
        stage="small",
        why="the large model did not answer (no route to host), so the small model's draft stands",
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
    router = Router(small, large, certificate(0.0), general=general, domain=Essays())
    answer = ask(router, "write an essay")
    assert events == ["general"]
    assert (answer.text, answer.cost_usd, answer.latency_ms) == ("general: write an essay", 0.25, 900)
    assert answer.route == Route(
        stage="large", why="unlike this task's requests (doubt 0.90, limit 0.50)", certified=False
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
    router = Router(small, Answers("large", cost_usd=0.25, latency_ms=900), certificate(0.8), domain=domain)
    whole, streamed_last = ask(router, text), streamed(router, text)[-1].completion
    assert (whole.cost_usd, whole.latency_ms) == pytest.approx(took)
    assert streamed_last == whole
    assert domain.events == ["domain", "domain"]  # once for each of the two answers


def test_a_conversation_is_no_request_of_a_task_asked_in_one_message() -> None:
    router = Router(Answers("small", confidence=1.0), Answers("large"), certificate(0.0), domain=Essays())
    turns = (
        Message(role="system", content="be kind"),
        Message(role="user", content="where is my card"),
        Message(role="assistant", content="small: card"),
        Message(role="user", content="thanks"),
    )
    answer = asyncio.run(router.complete(Request(messages=turns)))
    assert answer.route == Route(
        stage="large", why="a conversation, while this task is asked in one message", certified=False
    )
    assert asyncio.run(router.complete(Request(messages=turns[:2]))).answered_by == "small"


def test_the_large_model_is_the_general_one_where_no_other_is_named() -> None:
    router = Router(Answers("small"), Answers("large"), certificate(0.0), domain=Essays())
    assert ask(router, "write an essay").answered_by == "large"


def test_without_any_other_model_a_foreign_request_is_answered_small_but_never_certified() -> None:
    answer = ask(Router(Answers("small", confidence=1.0), None, certificate(0.0), domain=Essays()), "write an essay")
    assert answer.answered_by == "small"
    assert answer.route == Route(
        stage="small",
        why="unlike this task's requests (doubt 0.90, limit 0.50), and there is no other model to ask",
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
    assert events == [*(["small"] if stage == "small" else ["small", "large"]), "text", "end"]
    assert "".join(chunk.text for chunk in chunks) == f"{stage}: hello"
    assert chunks[-1].completion == ask(router, "hello")


def test_the_general_model_streams_as_it_writes_and_the_last_piece_carries_the_route() -> None:
    general = Answers("general")
    router = Router(Answers("small"), Answers("large"), certificate(0.8), general=general, domain=Essays())
    chunks = streamed(router, "an essay")
    assert [chunk.text for chunk in chunks] == ["general: ", "an essay", ""]
    assert [chunk.completion is not None for chunk in chunks] == [False, False, True]
    assert chunks[-1].completion == ask(router, "an essay")


def test_closing_closes_every_model_once() -> None:
    events: list[str] = []
    small, large = Answers("small", events=events), Answers("large", events=events)
    domain = Essays(events=events)
    asyncio.run(Router(small, large, certificate(0.8), general=large, domain=domain).aclose())
    assert sorted(events) == ["domain closed", "large closed", "small closed"]


def test_a_router_is_a_model_under_the_tasks_name() -> None:
    router = Router(Answers("small"), None, certificate(0.8), name="desk")
    assert isinstance(router, Model)
    assert (router.name, Router(Answers("small"), None, certificate(0.8)).name) == ("desk", "small")

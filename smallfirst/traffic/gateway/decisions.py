"""`POST /v1/decisions`: each question by its task's small model, the rest by one call of the model's upstream.

A request that no task has to do with passes as it is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from smallfirst.data.redaction import redact_body
from smallfirst.models.pricing import TokenUsage, read_usage, tokens_of
from smallfirst.models.protocol import label_probability_model
from smallfirst.serving.wire import raw_headers
from smallfirst.traffic.gateway.app import Handler
from smallfirst.traffic.gateway.http import (
    AskAgain,
    BackgroundTasks,
    Captured,
    GatewayRequest,
    GatewayResponse,
    RawHeaders,
    TaskRequest,
    UpstreamAnswer,
)
from smallfirst.traffic.gateway.upstreams import UpstreamFailed, Upstreams
from smallfirst.traffic.questions import (
    ROUTE,
    DecisionRequest,
    Question,
    QuestionAnswer,
    read_decision,
    read_response,
    write_response,
)
from smallfirst.traffic.wire import Json, question_prompt

if TYPE_CHECKING:
    from smallfirst.traffic.gateway.live_task import Ruling
    from smallfirst.traffic.gateway.tasks import TakenOverTasks

_log = logging.getLogger("smallfirst.decisions")
Probabilities = Literal["calibrated", "calibrated to the large model", "upstream"]
"""What probabilities are worth: calibrated on people's labels, on the large model's recorded answers, or as an upstream
gave them."""
_JSON: RawHeaders = [(b"content-type", b"application/json")]
_PASSED_BACK = (b"x-", b"openai-", b"retry-after")
"""Beginnings of the upstream's headers that a response put together here carries too."""


class UpstreamDecision(NamedTuple):
    """What an upstream answered."""

    answer: UpstreamAnswer
    """As it came."""
    answers: list[QuestionAnswer] | None
    """One a question; None if the upstream refused the request."""
    usage: TokenUsage = TokenUsage()
    model: str = ""
    """As the response names it."""

    def body_of(self, question: Question, answer: QuestionAnswer, n: int) -> Json:
        """Return the response that the upstream would give to one of the `n` questions that it answered."""
        usage = TokenUsage(**{name: tokens // n for name, tokens in self.usage})
        return write_response(self.model, [question], [answer], usage)


class Answered(NamedTuple):
    """The answer to one question, and where it comes from."""

    answer: QuestionAnswer
    by: str
    probabilities: Probabilities = "upstream"
    task: str = ""
    """Taken-over task that answered; empty for the upstream."""
    usage: TokenUsage = TokenUsage()
    """Tokens of a small answer; those of an upstream's answers are counted together."""

    @property
    def note(self) -> dict[str, Any]:
        """Return what the response says of it in its field `smallfirst`."""
        note = {"answered_by": self.by, "probabilities": self.probabilities}
        return {**note, "task": self.task, "certified": True} if self.task else note


class DecisionRoutes:
    """The handler of the route."""

    def __init__(self, tasks: TakenOverTasks) -> None:
        self._tasks, self._background = tasks, BackgroundTasks()

    @property
    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", ROUTE): self.handle}

    async def handle(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        """Answer a request; None passes it to its model's upstream as it is. Raise UpstreamFailed."""
        asked = read_decision(request.json() or {})
        ruled = await self._ruled(request, asked, upstreams) if asked else []
        if asked is None or not any(ruled):
            return None
        answered = await asyncio.gather(*map(_answer_here, asked.questions, ruled))
        rest = [i for i, one in enumerate(answered) if one is None]
        said: UpstreamDecision | None = None
        if rest:
            said = await _ask(request, upstreams, asked, [asked.questions[i] for i in rest])
            if said.answers is None:
                return GatewayResponse(said.answer.status, said.answer.headers, said.answer.body)
            for i, answer in zip(rest, said.answers, strict=True):
                answered[i] = Answered(answer, said.model)
        every = [one for one in answered if one is not None]
        for i, one in enumerate(ruled):
            if one is not None and every[i].task:
                await one.task.answered(one)
            elif one is not None and said is not None:
                body = said.body_of(asked.questions[i], every[i].answer, len(rest))
                self._background.start(one.task.passed(one, body, latency_ms=said.answer.latency_ms))
        return _response(request, asked, every, said)

    async def _ruled(
        self, request: GatewayRequest, asked: DecisionRequest, upstreams: Upstreams
    ) -> list[Ruling | None]:
        """Return the task of each question, None where there is none; a failure counts as none."""
        kept = read_decision(redact_body(asked.raw))
        target = upstreams.own_target(request, kept.model) if kept is not None else None
        if kept is None or target is None or asked.has_media:
            return [None] * len(asked.questions)

        async def ruled(i: int, question: Question) -> Ruling | None:
            prompt = question_prompt(kept.model, question, kept)
            try:
                found = None if prompt.has_media else self._tasks.find(prompt)
                if found is None:
                    return None
                task, match = found
                again = _asking_again(request, upstreams, asked, asked.questions[i])
                body = asked.with_questions([asked.questions[i]])
                may_ask = upstreams.accepts(request, target, kept.model)
                one = TaskRequest(
                    f"{request.id}#{i}", ROUTE, body, match.text, again, match.answer_format, request.tenant, may_ask
                )
                ruling: Ruling = await task.rule(one)
                return ruling
            except Exception:
                _log.exception("a small answer failed; the question is passed on")
                return None

        return list(await asyncio.gather(*(ruled(i, one) for i, one in enumerate(kept.questions))))


async def _answer_here(question: Question, ruling: Ruling | None) -> Answered | None:
    """Return the small model's certified answer with the probability of every option, or None: the upstream answers."""
    small = ruling.small if ruling is not None else None
    if ruling is None or small is None or small.text not in question.labels:
        return None
    known = dict(small.alternatives)
    model = next((one.model for one in ruling.task.router.router.stages if one.model.name == small.answered_by), None)
    scoring = label_probability_model(model) if model is not None else None
    if scoring is not None and sum(known.values()) <= 1 - 1e-9:  # the answer does not name all labels
        (scores,) = await scoring.probabilities([ruling.asked.text])
        known = dict(zip(scores.labels, scores.probabilities, strict=True))
    given = [max(0.0, (known or {small.text: 1.0}).get(label, 0.0)) for label in question.labels]
    total = sum(given)
    answer = QuestionAnswer(tuple(p / total for p in given)) if total else QuestionAnswer()
    if answer.refused or question.labels[answer.best] != small.text:
        return None  # the certificate is about the label: probabilities that prefer another one are not shown
    usage = tokens_of(small.prompt_tokens, small.completion_tokens)
    worth: Probabilities = "calibrated to the large model" if ruling.task.agreement else "calibrated"
    return Answered(answer, small.answered_by, worth, ruling.task.taken.task, usage)


async def _ask(
    request: GatewayRequest, upstreams: Upstreams, asked: DecisionRequest, questions: Sequence[Question]
) -> UpstreamDecision:
    """Ask `questions` of the model's upstream with the client's headers. Raise UpstreamFailed without an answer."""
    headers = [pair for pair in request.headers if pair[0] != b"accept-encoding"]  # the answer is read here
    body = json.dumps(asked.with_questions(questions)).encode()
    answer = await upstreams.ask(dataclasses.replace(request, headers=headers, body=body))
    if answer.status != 200:
        return UpstreamDecision(answer, None)
    try:
        response = json.loads(answer.body)
        answers = read_response(response, questions)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        message = f'The upstream "{answer.upstream}" answered in no form of its shape: {error}.'
        raise UpstreamFailed(502, "upstream_invalid", message) from None
    usage = read_usage(response).credible.tokens or TokenUsage()
    return UpstreamDecision(answer, answers, usage, str(response.get("model") or asked.model))


def _asking_again(
    request: GatewayRequest, upstreams: Upstreams, asked: DecisionRequest, question: Question
) -> AskAgain:
    """Return the function that an audit asks one of the questions with."""

    async def again() -> tuple[int, Json | None]:
        try:
            said = await _ask(request, upstreams, asked, [question])
        except UpstreamFailed as error:
            return error.status, None
        return said.answer.status, said.body_of(question, said.answers[0], 1) if said.answers else None

    return again


def _response(
    request: GatewayRequest, asked: DecisionRequest, answered: Sequence[Answered], said: UpstreamDecision | None
) -> GatewayResponse:
    """Return the response with all answers, in its field `smallfirst` where each comes from.

    Only what the upstream answered is captured.
    """
    usages = [*(one.usage for one in answered), *([said.usage] if said else [])]
    usage = TokenUsage(**sum((Counter(dict(one)) for one in usages), Counter[str]()))
    body = write_response(said.model if said else asked.model, asked.questions, [a.answer for a in answered], usage)
    body["smallfirst"] = {"answers": [one.note for one in answered]}
    n = Counter("small" if one.task else "upstream" for one in answered)
    by_whom = ", ".join(f"{n[by]} {by}" for by in ("small", "upstream") if n[by])
    headers = [*_JSON, *raw_headers({"x-smallfirst-answered": by_whom})]
    theirs = [pair for pair in said.answer.headers if pair[0].startswith(_PASSED_BACK)] if said else []
    if b"x-request-id" not in dict(theirs):
        headers.append((b"x-request-id", request.id.encode()))
    captured = None
    if said is not None:
        pairs = [(q, one.answer) for q, one in zip(asked.questions, answered, strict=True) if not one.task]
        questions = [question for question, _ in pairs]
        given = write_response(said.model, questions, [answer for _, answer in pairs], said.usage)
        kept = json.dumps(asked.with_questions(questions)).encode()
        captured = Captured(kept, said.answer._replace(headers=_JSON, body=json.dumps(given).encode()))
    return GatewayResponse(200, [*headers, *theirs], json.dumps(body).encode(), captured)

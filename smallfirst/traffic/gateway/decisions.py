"""`POST /v1/decisions`: each question by its task's small model, the rest by one upstream call.

Upstream is what speaks the route's own shape, or a chat model that is asked for labels as JSON. A request that no task
has to do with passes as it is where its upstream speaks the route's own shape.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pydantic

from smallfirst.models.protocol import label_probability_model
from smallfirst.serving.openai.errors import ApiError, validation_error
from smallfirst.serving.openai.wire import raw_headers
from smallfirst.traffic.exchange import kept_body
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
    refusal,
)
from smallfirst.traffic.gateway.upstreams import UPSTREAM_HEADER, Target, UpstreamFailed, Upstreams
from smallfirst.traffic.questions import (
    ROUTE,
    DecisionRequest,
    DecisionUsage,
    Question,
    QuestionAnswer,
    read_decision,
    read_request,
    read_response,
    write_response,
)
from smallfirst.traffic.settings import DecisionSettings
from smallfirst.traffic.wire import Json, question_prompt, read_answer

if TYPE_CHECKING:
    from smallfirst.traffic.gateway.live_task import Ruling
    from smallfirst.traffic.gateway.tasks import TakenOverTasks

_log = logging.getLogger("smallfirst.decisions")
CHAT_ROUTE = "/v1/chat/completions"
MAX_SCHEMA_OPTIONS = 500
"""Values that OpenAI's structured outputs take in all enums together; more are checked here alone."""
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
Probabilities = Literal["calibrated", "calibrated to the large model", "upstream", "uncalibrated"]
"""What probabilities are worth: calibrated on people's labels, on the large model's recorded answers, as an upstream
gave them, or nothing: a chat model named a label."""
_WORST_FIRST: tuple[Probabilities, ...] = ("uncalibrated", "upstream", "calibrated to the large model", "calibrated")
_JSON: RawHeaders = [(b"content-type", b"application/json")]
_PASSED_BACK = (b"x-", b"openai-", b"retry-after")
"""Beginnings of the upstream's headers that a response put together here carries too."""


class UpstreamDecision(NamedTuple):
    """What an upstream answered."""

    answer: UpstreamAnswer
    """As it came."""
    answers: list[QuestionAnswer] | None
    """One a question; None if the upstream refused the request."""
    usage: DecisionUsage
    model: str
    """As the response names it."""

    def body_of(self, question: Question, answer: QuestionAnswer, n: int) -> Json:
        """Return the response that the upstream would give to one of the `n` questions that it answered."""
        return write_response(self.model, [question], [answer], DecisionUsage(*(one // n for one in self.usage)))


class Answered(NamedTuple):
    """The answer to one question, and where it comes from."""

    answer: QuestionAnswer
    by: str
    probabilities: Probabilities
    task: str = ""
    """Taken-over task that answered; empty for the upstream."""
    usage: DecisionUsage = DecisionUsage()
    """Tokens of a small answer; those of an upstream's answers are counted together."""

    @property
    def note(self) -> dict[str, Any]:
        """Return what the response says of it in its field `smallfirst`."""
        note = {"answered_by": self.by, "probabilities": self.probabilities}
        return {**note, "task": self.task, "certified": True} if self.task else note


class DecisionRoutes:
    """The handler of the route."""

    def __init__(self, settings: DecisionSettings | None = None, tasks: TakenOverTasks | None = None) -> None:
        self._settings, self._tasks = settings, tasks
        self._background = BackgroundTasks()

    @property
    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", ROUTE): self.handle}

    async def handle(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        """Answer a request; None passes it to its model's upstream as it is."""
        upstream = DecisionUpstream(self._settings, request, upstreams)
        try:
            asked = _read(request, upstream)
            ruled = await self._ruled(request, asked, upstream) if asked else []
            if asked is None or (not upstream.is_chat and not any(ruled)):
                return await self._pass_on(request, upstream)
            return await self._answer(request, asked, upstream, ruled)
        except ApiError as error:
            return refusal(error)

    async def _pass_on(self, request: GatewayRequest, upstream: DecisionUpstream) -> GatewayResponse | None:
        if self._settings is None:
            return None
        answer = await upstream.pass_on()
        kept = Captured(request.body, answer) if answer.status == 200 and request.json() is not None else None
        return GatewayResponse(answer.status, answer.headers, answer.body, kept)

    async def _answer(
        self,
        request: GatewayRequest,
        asked: DecisionRequest,
        upstream: DecisionUpstream,
        ruled: Sequence[Ruling | None],
    ) -> GatewayResponse:
        answered = await asyncio.gather(*map(_answer_here, asked.questions, ruled))
        rest = [i for i, one in enumerate(answered) if one is None]
        said: UpstreamDecision | None = None
        if rest:
            said = await upstream.ask(asked, [asked.questions[i] for i in rest])
            if said.answers is None:
                return GatewayResponse(said.answer.status, said.answer.headers, said.answer.body)
            for i, answer in zip(rest, said.answers, strict=True):
                answered[i] = Answered(answer, said.model, "uncalibrated" if upstream.is_chat else "upstream")
        every = [one for one in answered if one is not None]
        for i, one in enumerate(ruled):
            if one is not None and every[i].task:
                await one.task.answered(one)
            elif one is not None and said is not None:
                body = said.body_of(asked.questions[i], every[i].answer, len(rest))
                self._background.start(one.task.passed(one, body, latency_ms=said.answer.latency_ms))
        return _response(request, asked, every, said)

    async def _ruled(
        self, request: GatewayRequest, asked: DecisionRequest, upstream: DecisionUpstream
    ) -> list[Ruling | None]:
        """Return the task of each question, None where there is none; a failure counts as none."""
        kept = read_decision(kept_body(asked.raw)) if self._tasks is not None else None
        target = upstream.own_target(kept.model) if kept is not None else None
        if self._tasks is None or kept is None or target is None or asked.has_media:
            return [None] * len(asked.questions)
        tasks = self._tasks

        async def ruled(i: int, question: Question) -> Ruling | None:
            prompt = question_prompt(kept.model, question, kept)
            try:
                found = None if prompt.has_media else tasks.find(prompt)
                if found is None:
                    return None
                task, match = found
                again = upstream.asking_again(asked, asked.questions[i])
                body = asked.with_questions([asked.questions[i]])
                may_ask = upstream.upstreams.accepts(request, target, kept.model)
                one = TaskRequest(
                    f"{request.id}#{i}", ROUTE, body, match.text, again, match.answer_format, request.tenant, may_ask
                )
                ruling: Ruling = await task.rule(one)
                return ruling
            except Exception:
                _log.exception("a small answer failed; the question is passed on")
                return None

        return list(await asyncio.gather(*(ruled(i, one) for i, one in enumerate(kept.questions))))


def _read(request: GatewayRequest, upstream: DecisionUpstream) -> DecisionRequest | None:
    """Return what is asked; None if the upstream, whose shape it is, judges it. Raise ApiError."""
    raw = request.json()
    if not upstream.is_chat:
        return read_decision(raw) if raw is not None else None
    if raw is None:
        raise ApiError(400, "The body must be a JSON object, not compressed.", code="invalid_json")
    try:
        asked = read_request(raw)
    except pydantic.ValidationError as error:
        named = validation_error(error)
        raise ApiError(400, str(named), param=named.body["error"]["param"], code="invalid_request") from None
    if asked.has_media or any(question.has_media for question in asked.questions):
        raise ApiError(400, f"Images need an upstream that speaks {ROUTE}.", code="media_not_supported")
    return asked


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
    usage = DecisionUsage(small.prompt_tokens, small.completion_tokens)
    worth: Probabilities = "calibrated to the large model" if ruling.task.agreement else "calibrated"
    return Answered(answer, small.answered_by, worth, ruling.task.taken.task, usage)


# The upstream


class DecisionUpstream:
    """The upstream of one request."""

    def __init__(self, settings: DecisionSettings | None, request: GatewayRequest, upstreams: Upstreams) -> None:
        """Without settings it is the upstream of the request's model, and speaks the route's own shape."""
        self._settings, self._request, self.upstreams = settings, request, upstreams
        self._model = settings.model if settings else ""
        self.is_chat = settings is not None and settings.shape == "chat"

    def own_target(self, model: str) -> Target | None:
        """Return where questions for `model` go; None if these go elsewhere, since their client chose that."""
        if self._settings is not None:
            return Target(self._settings.upstream)
        return self.upstreams.own_target(self._request, model)

    async def ask(self, request: DecisionRequest, questions: Sequence[Question]) -> UpstreamDecision:
        """Ask `questions`. Raise UpstreamFailed without a usable answer."""
        path = ROUTE
        if self._settings is not None and self.is_chat:
            body = chat_request(request, questions, self._model or request.model) | self._settings.extra_body
            path = CHAT_ROUTE
        else:
            body = request.with_questions(questions, self._model)
        answer = await self._send(path, json.dumps(body).encode())
        model = str(body["model"])
        if answer.status != 200:
            return UpstreamDecision(answer, None, DecisionUsage(), model)
        try:
            response = json.loads(answer.body)
            answers = (chat_answers if self.is_chat else read_response)(response, questions)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            message = f'The upstream "{answer.upstream}" answered in no form of its shape: {error}.'
            raise UpstreamFailed(502, "upstream_invalid", message) from None
        return UpstreamDecision(answer, answers, DecisionUsage.of(response), str(response.get("model") or model))

    def asking_again(self, request: DecisionRequest, question: Question) -> AskAgain:
        """Return the function that an audit asks one of the questions with."""

        async def again() -> tuple[int, Json | None]:
            try:
                said = await self.ask(request, [question])
            except UpstreamFailed as error:
                return error.status, None
            return said.answer.status, said.body_of(question, said.answers[0], 1) if said.answers else None

        return again

    async def pass_on(self) -> UpstreamAnswer:
        """Pass the request as it came, but for the model's name where the settings say one. Raise UpstreamFailed."""
        raw, body = self._request.json(), self._request.body
        if raw is not None and self._model:
            body = json.dumps({**raw, "model": self._model}).encode()
        return await self._send(self._request.path, body)

    async def _send(self, path: str, body: bytes) -> UpstreamAnswer:
        """Send a request with the client's headers; its answer comes uncompressed."""
        own = () if self._settings is None else (UPSTREAM_HEADER,)
        headers = [pair for pair in self._request.headers if pair[0] not in (b"accept-encoding", *own)]
        if self._settings is not None:
            headers.append((UPSTREAM_HEADER, self._settings.upstream.encode("latin-1")))
        return await self.upstreams.ask(dataclasses.replace(self._request, path=path, headers=headers, body=body))


def chat_request(request: DecisionRequest, questions: Sequence[Question], model: str) -> Json:
    """Return the chat request that asks `questions`, each to be answered by one label as JSON."""
    asked = "\n\n".join(f"q{i}: {question.text}" for i, question in enumerate(questions))
    listed = sum(len(question.options) for question in questions) <= MAX_SCHEMA_OPTIONS
    properties = {
        f"q{i}": {"type": "string", "enum": list(question.labels)} if listed else {"type": "string"}
        for i, question in enumerate(questions)
    }
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": f"Answer these questions about the text, each with one label.\n\n{asked}"},
            {"role": "user", "content": request.text},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answers", "strict": True, "schema": schema},
        },
    }


def chat_answers(response: Json, questions: Sequence[Question]) -> list[QuestionAnswer]:
    """Return one certain label as the answer to each question, a refusal where the model gives none of its labels.

    Raise ValueError where the response holds no answer.
    """
    answer = read_answer(CHAT_ROUTE, response)
    if answer is None:
        raise ValueError("a chat completion expected")
    fenced = _FENCE.fullmatch(answer.text)
    try:
        said = {} if answer.finish_reason == "refusal" else json.loads(fenced[1] if fenced else answer.text)
    except ValueError:
        said = {}
    found = []
    for i, question in enumerate(questions):
        label = said.get(f"q{i}") if isinstance(said, dict) else None
        label = str(label).lower() if isinstance(label, bool) else label
        shares = tuple(float(label == one) for one in question.labels)
        found.append(QuestionAnswer(shares if label in question.labels else ()))
    return found


def _response(
    request: GatewayRequest, asked: DecisionRequest, answered: Sequence[Answered], said: UpstreamDecision | None
) -> GatewayResponse:
    """Return the response with all answers, in its field `smallfirst` where each comes from.

    The header `x-smallfirst-probabilities` names the least that their probabilities are worth. Only what the upstream
    answered is captured.
    """
    usages = [*(one.usage for one in answered), said.usage if said else DecisionUsage()]
    usage = DecisionUsage(*map(sum, zip(*usages, strict=True)))
    body = write_response(said.model if said else asked.model, asked.questions, [a.answer for a in answered], usage)
    body["smallfirst"] = {"answers": [one.note for one in answered]}
    n = Counter("small" if one.task else "upstream" for one in answered)
    worst = next(worth for worth in _WORST_FIRST if any(one.probabilities == worth for one in answered))
    by_whom = ", ".join(f"{n[by]} {by}" for by in ("small", "upstream") if n[by])
    headers = [*_JSON, *raw_headers({"x-smallfirst-answered": by_whom, "x-smallfirst-probabilities": worst})]
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

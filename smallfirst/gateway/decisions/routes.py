"""`POST /v1/decisions`, `POST /v1/systemone`: each question by its task's small model, the rest by one upstream call.

A request that no task has to do with passes as it is where its upstream speaks the route's own shape.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pydantic

from smallfirst.gateway.app import Handler
from smallfirst.gateway.decisions.errors import invalid_request, refuse, upstream_error
from smallfirst.gateway.decisions.responses import Answered, one_answer, write_response
from smallfirst.gateway.decisions.small import answer_small
from smallfirst.gateway.decisions.upstream import DecisionUpstream, Verdicts
from smallfirst.gateway.http import Captured, GatewayRequest, GatewayResponse
from smallfirst.gateway.settings import DecisionSettings
from smallfirst.gateway.takeover.background import BackgroundTasks
from smallfirst.gateway.takeover.upstream import Asked
from smallfirst.gateway.upstreams import UpstreamFailed, Upstreams
from smallfirst.serving.openai.errors import ApiError
from smallfirst.traffic.bodies import kept_body
from smallfirst.traffic.decisions.exchanges import SHAPES, read_decision
from smallfirst.traffic.decisions.question import DecisionRequest, Question, Verdict
from smallfirst.traffic.messages import question_prompt

if TYPE_CHECKING:  # a proxy without tasks needs no models
    from smallfirst.gateway.takeover.live_task import Ruling
    from smallfirst.gateway.takeover.tasks import TakenOverTasks

_log = logging.getLogger("smallfirst.decisions")
OWN = "smallfirst"
"""Who answers a question of one option, which nobody needs to be asked."""


class DecisionRoutes:
    """The handlers of both routes."""

    def __init__(self, settings: DecisionSettings | None = None, tasks: TakenOverTasks | None = None) -> None:
        self._settings, self._tasks = settings, tasks
        self._background = BackgroundTasks()

    @property
    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", route): self.handle for route in SHAPES}

    async def handle(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        """Answer a request; None passes it to its model's upstream as it is."""
        upstream = DecisionUpstream(self._settings, request, upstreams)
        try:
            asked = _read(request, upstream)
            ruled = await self._ruled(request, asked, upstream, upstreams) if asked else []
            if asked is None or (upstream.speaks_route and not any(ruled)):
                return await self._pass_on(request, upstream)
            return await self._answer(request, asked, upstream, ruled)
        except pydantic.ValidationError as error:
            return invalid_request(request.path, error)
        except ApiError as error:
            return refuse(request.path, error)

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
        said: Verdicts | None = None
        if rest:
            try:
                said = await upstream.ask(asked, [asked.questions[i] for i in rest])
            except ValueError as error:
                raise ApiError(400, f"The upstream cannot be asked: {error}.", code="no_form") from None
            if said.verdicts is None:
                return _refused(request.path, upstream, said)
            for i, verdict in zip(rest, said.verdicts, strict=True):
                answered[i] = Answered(verdict, said.model, upstream.worth)
        every = [one for one in answered if one is not None]
        for i, one in enumerate(ruled):
            if one is not None and every[i].task:
                await one.task.answered(one)
            elif one is not None and said is not None:
                response = one_answer(request.path, asked.questions[i], every[i].verdict, said, len(rest))
                self._background.start(one.task.passed(one, response, latency_ms=said.answer.latency_ms))
        return write_response(request, asked, every, said)

    async def _ruled(
        self, request: GatewayRequest, asked: DecisionRequest, upstream: DecisionUpstream, upstreams: Upstreams
    ) -> list[Ruling | None]:
        """Return the task of each question, None where there is none; a failure counts as none."""
        kept = read_decision(request.path, kept_body(asked.raw)) if self._tasks is not None else None
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
                one = _asked(request, asked, i, found[1], upstream)
                return await found[0].rule(one._replace(may_ask=upstreams.accepts(request, target, kept.model)))
            except Exception:
                _log.exception("a small answer failed; the question is passed on")
                return None

        return list(await asyncio.gather(*(ruled(i, one) for i, one in enumerate(kept.questions))))


def _read(request: GatewayRequest, upstream: DecisionUpstream) -> DecisionRequest | None:
    """Return what is asked; None if the upstream, whose shape it is, judges it. Raise ValidationError, ApiError."""
    raw = request.json()
    try:
        asked = SHAPES[request.path].read_request(raw) if raw is not None else None
    except pydantic.ValidationError:
        if upstream.speaks_route:
            return None
        raise
    if upstream.speaks_route:
        return asked
    if asked is None:
        raise ApiError(400, "The body must be a JSON object, not compressed.", code="invalid_json")
    if asked.has_media or any(question.has_media for question in asked.questions):
        message = f"Images and boxes need an upstream that speaks {request.path}."
        raise ApiError(400, message, code="media_not_supported")
    return asked


def _asked(request: GatewayRequest, asked: DecisionRequest, i: int, text: str, upstream: DecisionUpstream) -> Asked:
    """Return one question about a case as a request of its own, which an audit may send again."""
    question, route = asked.questions[i], request.path

    async def again() -> tuple[int, dict[str, Any] | None]:
        try:
            said = await upstream.ask(asked, [question])
        except (UpstreamFailed, ValueError) as error:
            return getattr(error, "status", 502), None
        if said.verdicts is None:
            return said.answer.status, None
        return 200, one_answer(route, question, said.verdicts[0], said, 1)

    body = SHAPES[route].with_questions(asked, [question], asked.model)
    return Asked(f"{request.id}#{i}", route, "decisions", body, text, again, tenant=request.tenant)


async def _answer_here(question: Question, ruled: Ruling | None) -> Answered | None:
    if len(question.options) == 1:
        return Answered(Verdict((1.0,)), OWN, "calibrated")
    return await answer_small(ruled, question) if ruled is not None else None


def _refused(route: str, upstream: DecisionUpstream, said: Verdicts) -> GatewayResponse:
    """Return the upstream's refusal of a request: as it came in the route's own shape, else its words in that."""
    answer = said.answer
    if upstream.speaks_route:
        return GatewayResponse(answer.status, answer.headers, answer.body)
    return upstream_error(route, answer)

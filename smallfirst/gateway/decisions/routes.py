"""`POST /v1/decisions` and `POST /v1/systemone`, answered by an upstream of either shape, or by a chat model.

A request passes as it is where its upstream speaks the route's own shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import pydantic

from smallfirst.gateway.app import Handler
from smallfirst.gateway.decisions.errors import invalid_request, refuse, upstream_error
from smallfirst.gateway.decisions.responses import Answered, write_response
from smallfirst.gateway.decisions.settings import DecisionSettings
from smallfirst.gateway.decisions.upstream import DecisionUpstream, Verdicts
from smallfirst.gateway.http import Captured, GatewayRequest, GatewayResponse
from smallfirst.gateway.upstreams import UpstreamFailed, Upstreams
from smallfirst.traffic.decisions.exchanges import SHAPES
from smallfirst.traffic.decisions.question import DecisionRequest, Question, Verdict

OWN = "smallfirst"
"""Who answers a question of one option, which nobody needs to be asked."""


class DecisionRoutes:
    """The handlers of both routes."""

    def __init__(self, settings: DecisionSettings | None = None) -> None:
        self._settings = settings

    @property
    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", route): self.handle for route in SHAPES}

    async def handle(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        """Answer a request; None passes it to its model's upstream as it is."""
        upstream = DecisionUpstream(self._settings, request, upstreams)
        try:
            asked = _read(request, upstream)
            if isinstance(asked, GatewayResponse):
                return asked
            if asked is None or upstream.speaks_route:
                return await self._pass_on(request, upstream)
            return await self._answer(request, asked, upstream)
        except UpstreamFailed as failure:
            return refuse(request.path, failure.status, str(failure), failure.code)

    async def _pass_on(self, request: GatewayRequest, upstream: DecisionUpstream) -> GatewayResponse | None:
        if self._settings is None:
            return None
        answer = await upstream.pass_on()
        kept = Captured(request.body, answer) if answer.status == 200 and request.json() is not None else None
        return GatewayResponse(answer.status, answer.headers, answer.body, kept)

    async def _answer(
        self, request: GatewayRequest, asked: DecisionRequest, upstream: DecisionUpstream
    ) -> GatewayResponse:
        answered = [_answer_here(question) for question in asked.questions]
        rest = [i for i, one in enumerate(answered) if one is None]
        said: Verdicts | None = None
        if rest:
            try:
                said = await upstream.ask(asked, [asked.questions[i] for i in rest])
            except ValueError as error:
                return refuse(request.path, 400, f"The upstream cannot be asked: {error}.", "no_form")
            if said.verdicts is None:
                return _refused(request.path, upstream, said)
            for i, verdict in zip(rest, said.verdicts, strict=True):
                answered[i] = Answered(verdict, said.model, upstream.worth)
        return write_response(request, asked, [one for one in answered if one is not None], said)


def _read(request: GatewayRequest, upstream: DecisionUpstream) -> DecisionRequest | GatewayResponse | None:
    """Return what a request asks, or the error that it gets; None if its upstream, whose shape it is, judges it."""
    raw = request.json()
    try:
        asked = SHAPES[request.path].read_request(raw) if raw is not None else None
    except pydantic.ValidationError as error:
        return None if upstream.speaks_route else invalid_request(request.path, error)
    if upstream.speaks_route:
        return asked
    if asked is None:
        return refuse(request.path, 400, "The body must be a JSON object, not compressed.", "invalid_json")
    if asked.has_media or any(question.has_media for question in asked.questions):
        message = f"Images and boxes need an upstream that speaks {request.path}."
        return refuse(request.path, 400, message, "media_not_supported")
    return asked


def _answer_here(question: Question) -> Answered | None:
    return Answered(Verdict((1.0,)), OWN, "calibrated") if len(question.options) == 1 else None


def _refused(route: str, upstream: DecisionUpstream, said: Verdicts) -> GatewayResponse:
    """Return the upstream's refusal of a request: as it came in the route's own shape, else its words in that."""
    answer = said.answer
    if upstream.speaks_route:
        return GatewayResponse(answer.status, answer.headers, answer.body)
    return upstream_error(route, answer)

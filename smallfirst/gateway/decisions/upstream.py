"""Questions asked of an upstream in the shape that it speaks, and its answers as verdicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from smallfirst.gateway.decisions import chat_shape
from smallfirst.gateway.http import GatewayRequest, UpstreamAnswer
from smallfirst.gateway.settings import DecisionSettings
from smallfirst.gateway.upstreams import UPSTREAM_HEADER, Target, UpstreamFailed, Upstreams
from smallfirst.traffic.decisions import openai_shape, systemone_shape
from smallfirst.traffic.decisions.exchanges import SHAPES, Asking
from smallfirst.traffic.decisions.question import DecisionRequest, Question, Usage, Verdict

Probabilities = Literal["calibrated", "calibrated to the large model", "upstream", "uncalibrated"]
"""What probabilities are worth: calibrated on people's labels, on the large model's recorded answers, as an upstream
gave them, or nothing: a chat model named a label."""
_SHAPES: dict[str, Asking] = {"openai": openai_shape, "systemone": systemone_shape, "chat": chat_shape}
_OWN = {shape.ROUTE: name for name, shape in _SHAPES.items()}


class Verdicts(NamedTuple):
    """What an upstream answered."""

    answer: UpstreamAnswer
    """As it came."""
    verdicts: list[Verdict] | None
    """One a question; None if the upstream refused the request."""
    usage: Usage
    model: str
    """As the response names it."""


class DecisionUpstream:
    """The upstream of one request."""

    def __init__(self, settings: DecisionSettings | None, request: GatewayRequest, upstreams: Upstreams) -> None:
        """Without settings it is the upstream of the request's model, and speaks the route's own shape."""
        self._settings, self._request, self._upstreams = settings, request, upstreams
        self.name = settings.shape if settings else _OWN[request.path]
        self.speaks_route = self.name == _OWN[request.path]
        """True if the route is the upstream's own: its answers need no translation."""
        self._shape = _SHAPES[self.name]

    @property
    def worth(self) -> Probabilities:
        return "uncalibrated" if self.name == "chat" else "upstream"

    def own_target(self, model: str) -> Target | None:
        """Return where questions for `model` go; None if these go elsewhere, since their client chose that."""
        if self._settings is not None:
            return Target(self._settings.upstream)
        return self._upstreams.own_target(self._request, model)

    async def ask(self, request: DecisionRequest, questions: Sequence[Question]) -> Verdicts:
        """Ask `questions`. Raise UpstreamFailed without a usable answer, ValueError where they have no form."""
        model = self._model or request.model
        if self.speaks_route:
            body = SHAPES[self._request.path].with_questions(request, questions, model)
        else:
            body = self._shape.write_request(request, questions, model)
        if self.name == "chat" and self._settings is not None:
            body |= self._settings.extra_body
        answer = await self._send(self._shape.ROUTE, json.dumps(body).encode())
        if answer.status != 200:
            return Verdicts(answer, None, Usage(), model)
        try:
            response = json.loads(answer.body)
            verdicts = self._shape.read_response(response, questions)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            message = f'The upstream "{answer.upstream}" answered in no form of its shape: {error}.'
            raise UpstreamFailed(502, "upstream_invalid", message) from None
        return Verdicts(answer, verdicts, Usage.of(response), str(response.get("model") or model))

    async def pass_on(self) -> UpstreamAnswer:
        """Pass the request as it came, but for the model's name where the settings say one. Raise UpstreamFailed."""
        raw, body = self._request.json(), self._request.body
        if raw is not None and self._model:
            body = json.dumps({**raw, "model": self._model}).encode()
        return await self._send(self._request.path, body)

    @property
    def _model(self) -> str:
        return self._settings.model if self._settings else ""

    async def _send(self, path: str, body: bytes) -> UpstreamAnswer:
        """Send a request with the client's headers; its answer comes uncompressed."""
        own = () if self._settings is None else (UPSTREAM_HEADER,)
        headers = [pair for pair in self._request.headers if pair[0] not in (b"accept-encoding", *own)]
        if self._settings is not None:
            headers.append((UPSTREAM_HEADER, self._settings.upstream.encode("latin-1")))
        return await self._upstreams.ask(dataclasses.replace(self._request, path=path, headers=headers, body=body))

"""Responses of the decision routes, put together from small answers and an upstream's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.gateway.decisions.upstream import Probabilities, Verdicts
from smallfirst.gateway.http import Captured, GatewayRequest, GatewayResponse, RawHeaders
from smallfirst.serving.response_head import raw_headers
from smallfirst.traffic.decisions import openai_shape, systemone_shape
from smallfirst.traffic.decisions.exchanges import SHAPES
from smallfirst.traffic.decisions.question import DecisionRequest, Question, Usage, Verdict

_WORST_FIRST: tuple[Probabilities, ...] = ("uncalibrated", "upstream", "calibrated to the large model", "calibrated")
_REQUEST_ID = {openai_shape.ROUTE: b"x-request-id", systemone_shape.ROUTE: b"x-typesafe-request-id"}
_JSON: RawHeaders = [(b"content-type", b"application/json")]
_PASSED_BACK = (b"x-", b"openai-", b"retry-after")
"""Beginnings of the upstream's headers that a response put together here carries too."""


class Answered(NamedTuple):
    """The answer to one question, and where it comes from."""

    verdict: Verdict
    by: str
    probabilities: Probabilities
    task: str = ""
    """Taken-over task that answered; empty for the upstream."""
    usage: Usage = Usage()
    """Tokens of a small answer; those of an upstream's answers are counted together."""

    @property
    def is_upstreams(self) -> bool:
        return self.probabilities in ("upstream", "uncalibrated")

    @property
    def note(self) -> dict[str, Any]:
        """Return what the response says of it in its field `smallfirst`."""
        note = {"answered_by": self.by, "probabilities": self.probabilities}
        return {**note, "task": self.task, "certified": True} if self.task else note


def write_response(
    request: GatewayRequest, asked: DecisionRequest, answered: Sequence[Answered], said: Verdicts | None
) -> GatewayResponse:
    """Return the response with all answers, in its field `smallfirst` where each comes from.

    The header `x-smallfirst-probabilities` names the least that their probabilities are worth. Only what the upstream
    answered is captured.
    """
    usage = Usage(*map(sum, zip(*[one.usage for one in answered], said.usage if said else Usage(), strict=True)))
    verdicts = [one.verdict for one in answered]
    body = SHAPES[request.path].write_response(said.model if said else asked.model, asked.questions, verdicts, usage)
    body["smallfirst"] = {"answers": [one.note for one in answered]}
    n = Counter("upstream" if one.is_upstreams else "small" for one in answered)
    worst = next(worth for worth in _WORST_FIRST if any(one.probabilities == worth for one in answered))
    by_whom = ", ".join(f"{n[by]} {by}" for by in ("small", "upstream") if n[by])
    own = raw_headers({"x-smallfirst-answered": by_whom, "x-smallfirst-probabilities": worst})
    headers = [*_JSON, *own]
    theirs = [pair for pair in said.answer.headers if pair[0].startswith(_PASSED_BACK)] if said else []
    if _REQUEST_ID[request.path] not in dict(theirs):
        headers.append((_REQUEST_ID[request.path], request.id.encode()))
    captured = _captured(request.path, asked, answered, said) if said else None
    return GatewayResponse(200, [*headers, *theirs], json.dumps(body).encode(), captured)


def one_answer(route: str, question: Question, verdict: Verdict, said: Verdicts, n: int) -> dict[str, Any]:
    """Return the response that the upstream would give to one of the `n` questions that it answered."""
    usage = Usage(*(tokens // n for tokens in said.usage))
    return SHAPES[route].write_response(said.model, [question], [verdict], usage)


def _captured(route: str, asked: DecisionRequest, answered: Sequence[Answered], said: Verdicts) -> Captured:
    """Return the request with the questions that the upstream answered, and its answers, in the route's shape."""
    pairs = [(question, one) for question, one in zip(asked.questions, answered, strict=True) if one.is_upstreams]
    questions, verdicts = [question for question, _ in pairs], [one.verdict for _, one in pairs]
    shape = SHAPES[route]
    request = json.dumps(shape.with_questions(asked, questions, asked.model)).encode()
    response = json.dumps(shape.write_response(said.model, questions, verdicts, said.usage)).encode()
    return Captured(request, said.answer._replace(headers=_JSON, body=response))

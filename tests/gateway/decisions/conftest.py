"""A scripted upstream, and requests to the decision routes."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from fixtures.gateway import OpenUpstreams

from smallfirst.gateway.http import GatewayRequest, UpstreamAnswer

DECISIONS, SYSTEM_ONE, CHAT = "/v1/decisions", "/v1/systemone", "/v1/chat/completions"
Json = dict[str, Any]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


class ScriptedUpstreams(OpenUpstreams):
    """Upstreams that answer with what `script` makes of a body: a body, or a status and a body."""

    def __init__(self, script: Callable[[Json], Any]) -> None:
        self.script, self.asked = script, []

    async def ask(self, request: GatewayRequest) -> UpstreamAnswer:
        upstream = request.header(b"x-smallfirst-upstream").decode() or "default"
        self.asked.append((request, upstream))
        found = self.script(json.loads(request.body))
        status, body = found if isinstance(found, tuple) else (200, found)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"x-ratelimit-remaining-requests", b"9")]
        if status == 429:
            headers.append((b"retry-after", b"3"))
        return UpstreamAnswer(status, headers, content, upstream, 12.0)

    @property
    def body(self) -> Json:
        """The body that was asked last."""
        return json.loads(self.asked[-1][0].body)


@pytest.fixture
def upstreams() -> type[ScriptedUpstreams]:
    return ScriptedUpstreams


@pytest.fixture
def post() -> Callable[..., GatewayRequest]:
    """Return a request with a body."""

    def request(path: str, body: Any, *headers: tuple[bytes, bytes]) -> GatewayRequest:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = [(b"authorization", b"Bearer key"), (b"content-type", b"application/json"), (b"accept-encoding", b"gzip")]
        return GatewayRequest("POST", path, b"", [*own, *headers], content, id="r1")

    return request


@pytest.fixture
def ticket() -> Json:
    """Three questions about one ticket in OpenAI's shape."""
    return {
        "model": "luna",
        "input": "My card is lost and nobody answers!",
        "questions": [
            {"type": "predicate", "name": "urgent", "instructions": "It is urgent."},
            {
                "type": "choice",
                "name": "team",
                "instructions": "Which team?",
                "choices": [{"value": "cards"}, {"value": "fees"}, {"value": "other"}],
            },
            {"type": "score", "instructions": "Anger?", "levels": [{"label": "calm"}, {"label": "angry"}]},
        ],
    }


@pytest.fixture
def luna() -> Callable[[Json], Json]:
    """Answer as OpenAI's route does: yes with 0.9, the first choice with 0.8, the last level with 0.7."""

    def answer(body: Json) -> Json:
        return {
            "model": "luna-2026-10-06",
            "answers": [_answer(question) for question in body["questions"]],
            "usage": {
                "input_tokens": 30 * len(body["questions"]),
                "output_tokens": 3,
                "total_tokens": 30 * len(body["questions"]) + 3,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }

    return answer


def _answer(question: Json) -> Json:
    kind, name = question["type"], question.get("name")
    if kind == "predicate":
        return {"type": kind, "name": name, "probability": 0.9}
    if kind == "choice":
        values = [choice["value"] for choice in question["choices"]]
        shares = [0.8, *[0.2 / (len(values) - 1)] * (len(values) - 1)]
        listed = [{"value": value, "probability": share} for value, share in zip(values, shares, strict=True)]
        return {"type": kind, "name": name, "choice": values[0], "confidence": 0.7, "probabilities": listed}
    n = len(question["levels"])
    shares = [*[0.3 / (n - 1)] * (n - 1), 0.7]
    levels = [{"value": i, "label": one["label"], "probability": shares[i]} for i, one in enumerate(question["levels"])]
    mean = sum(i * share for i, share in enumerate(shares))
    return {"type": kind, "name": name, "score": mean, "confidence": 0.4, "probabilities": levels}

"""What a client gets, and the ledger keeps, of an answer that its settings took out of the certificate."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.certificates import certificate
from fixtures.server import RunningServer, WholeModel

from smallfirst.models.protocol import Completion, Request
from smallfirst.routing.router import Router

SAMPLED = "temperature 1.5: certified are answers at temperature 0"


class Generates(WholeModel):
    """Says the first words of the question again, as many as the request allows, and is sure of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(self, request: Request) -> Completion:
        words = request.text.split(" ")
        said = words[: request.max_tokens]
        reason: Any = "length" if len(said) < len(words) else "stop"
        fields = {"finish_reason": reason, "confidence": 0.9, "completion_tokens": len(said), "stopped": False}
        return Completion(text=" ".join(said), answered_by=self.name, latency_ms=1.0, cost_usd=0.25, **fields)


@pytest.fixture
def server(start) -> RunningServer:
    return start(m=Router(Generates("small"), Generates("large"), certificate(0.8), name="m"))


def certified(server: RunningServer) -> list[tuple[bool, str]]:
    return [(row.certified, row.answered_by) for row in server.ledger.rows()]


def test_a_sampled_answer_is_the_large_models_whole_and_streamed(server: RunningServer) -> None:
    client, messages = server.client().chat.completions, [{"role": "user", "content": "a b c"}]
    plain = client.create(model="m", messages=messages)
    whole = client.create(model="m", messages=messages, temperature=1.5)
    stream = list(client.create(model="m", messages=messages, temperature=1.5, stream=True))
    assert plain.smallfirst["certified"] is True
    for found in (whole, stream[-1]):
        said = found.smallfirst
        assert (said["certified"], said["route"], said["why"]) == (False, "large", SAMPLED)
        assert [step["decision"] for step in said["steps"]] == ["passed on", "answered"]
    assert certified(server) == [(True, "small"), (False, "large"), (False, "large")]

"""Heads that cannot be sent are 500 for the client and the ledger."""

from __future__ import annotations

import asyncio

import h11
import httpx
import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.models.protocol import Completion
from smallfirst.serving.plugins import Plugin
from smallfirst.serving.request_lifecycle import HeldHead


class Damaging(Plugin):
    """Adds a header that h11 refuses: to answers, or to errors too."""

    def __init__(self, *statuses: int) -> None:
        def damaged(app: ASGIApp) -> ASGIApp:
            async def call(scope: Scope, receive: Receive, send: Send) -> None:
                async def worse(message: Message) -> None:
                    if message["type"] == "http.response.start" and message["status"] in statuses:
                        message = {**message, "headers": [*message["headers"], (b"x-team", b"support ")]}
                    await send(message)

                await app(scope, receive, worse)

            return call

        self.middleware = (Middleware(damaged),)


@pytest.mark.parametrize(
    ("path", "body", "paid_usd"),
    [
        ("completions", {"prompt": "a b"}, 0.5),
        ("completions", {"prompt": "a b", "stream": True}, 0.0),  # cut off at its first word
        ("chat/completions", {"messages": [{"role": "user", "content": "a b"}], "stream": True}, 0.0),
    ],
)
def test_a_head_that_cannot_be_sent_is_500_for_the_client_and_the_ledger(
    start, echo, path: str, body: dict, paid_usd: float
) -> None:
    server = start(echo=echo, plugins=[Damaging(200)])
    found = httpx.post(f"{server.url}/v1/{path}", json={"model": "echo", **body})
    assert (found.status_code, found.json()["error"]["code"]) == (500, "head_not_sent")
    assert found.headers["x-should-retry"] == "false"  # the answer is paid
    (row,) = server.ledger.rows()
    assert (row.id, row.status, row.error_code) == (found.headers["x-request-id"], 500, "head_not_sent")
    assert row.cost_usd == paid_usd


def test_not_even_an_error_s_head_can_be_sent_and_the_client_still_gets_500(start, label) -> None:
    server = start(m=label, plugins=[Damaging(200, 500)])
    asked = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    found = httpx.post(f"{server.url}/v1/chat/completions", json=asked)
    assert (found.status_code, found.json()["error"]["code"]) == (500, "head_not_sent")
    assert [row.status for row in server.ledger.rows()] == [500]


def test_a_route_of_a_plugin_whose_head_cannot_be_sent_is_500(start, label) -> None:
    found = httpx.get(f"{start(m=label, plugins=[Damaging(200)]).url}/v1/models")
    assert (found.status_code, found.json()["error"]["code"]) == (500, "internal_error")


def test_an_answer_with_a_number_that_json_lacks_is_recorded_as_failed(start, label) -> None:
    async def complete(_: object) -> Completion:
        return Completion(text="a", answered_by="m", latency_ms=float("nan"), cost_usd=0.25)

    label.complete = complete
    server = start(m=label)
    asked = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=asked).status_code == 500
    (row,) = server.ledger.rows()
    assert (row.status, row.cost_usd) == (500, 0.25)


def test_a_head_waits_for_its_body_and_another_may_take_its_place() -> None:
    sent: list[Message] = []

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not sent
        with pytest.raises(h11.LocalProtocolError):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a b", b"c")]})
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def keep(message: Message) -> None:
        sent.append(message)

    asyncio.run(HeldHead(app)({"type": "http"}, None, keep))
    assert [message.get("status") for message in sent] == [503, None]

"""Header values that h11 takes whatever they say, and heads that cannot be sent: 500 for the client and the ledger."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import h11
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.models.protocol import Completion
from smallfirst.serving.plugins import Plugin
from smallfirst.serving.response_head import MAX_VALUE, HeldHead, header_value, raw_headers

PROMPTS = [f"prompt number {i}" for i in range(64)]
texts = st.text(st.characters(codec=None), max_size=1200) | st.text(" \t\n\r\v\f\0%;aé…\ud800", max_size=1200)


@given(texts)
@example("echo answer 0.5; " * 60)
@example(" " * 1000)
@example("a" * 899 + " b")
@example("é" * 900)
def test_every_text_makes_a_value_that_h11_takes(text: str) -> None:
    value = header_value(text)
    head = h11.Response(status_code=200, headers=raw_headers({"x-why": text}), reason="OK")
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    server.next_event()
    sent = server.send(head)
    assert sent is not None
    assert f"\r\nx-why: {value}\r\n".encode("ascii") in sent
    assert len(value) <= MAX_VALUE
    assert all(32 <= ord(letter) < 127 for letter in value)
    readable = text.encode(errors="replace").decode()
    if value.endswith("..."):
        assert readable.strip(" ").startswith(unquote(value[:-3], errors="strict"))
    else:
        assert unquote(value, errors="strict") == readable.strip(" ")


def test_a_cut_splits_neither_an_escape_nor_a_character() -> None:
    assert header_value("é" * 200) == "%C3%A9" * 149 + "..."
    assert header_value("x" * MAX_VALUE) == "x" * MAX_VALUE
    assert header_value("x" * (MAX_VALUE + 1)) == "x" * (MAX_VALUE - 3) + "..."


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_with_a_long_bill_reaches_its_client(start, echo, stream: bool) -> None:
    echo.name = "echo"  # 36 lines of its bill and the space behind them have 900 characters
    server = start(echo=echo)
    asked = {"model": "echo", "prompt": PROMPTS, "n": 8, "stream": stream}
    found = httpx.post(f"{server.url}/v1/completions", json=asked)
    assert found.status_code == 200
    assert found.text.count("prompt number 7") == 8
    assert found.headers["x-smallfirst-charges"].endswith("...")
    assert [row.status for row in server.ledger.rows()] == [200]


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
        ("completions", {"prompt": PROMPTS, "n": 2}, 32.0),
        ("completions", {"prompt": PROMPTS, "n": 2, "stream": True}, 32.0),
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

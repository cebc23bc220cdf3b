"""Every queue, body and wait has an end, and the client is told which it was."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.waiting import beside, until

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.serving.admission import Shares, Turns
from smallfirst.serving.errors import ApiError
from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY = {"model": "m", "messages": HELLO}


def test_bodies_that_cannot_be_read_are_refused_and_recorded(start, label) -> None:
    server = start(ServeSettings(max_body_bytes=1000), m=label)
    url = f"{server.url}/v1/chat/completions"
    kind = {"content-type": "application/json"}

    def pieces():  # no Content-Length: the size is only known by counting
        for _ in range(40):
            yield b"x" * 100

    refused = [
        httpx.post(url, json={**BODY, "n": 9}),
        httpx.post(url, json={"model": "m", "messages": []}),
        httpx.post(url, content=b"{", headers=kind),
        httpx.post(url, content=b"x" * 1000, headers=kind),  # as large as the limit
        httpx.post(url, content=b"x" * 1001, headers=kind),
        httpx.post(url, content=pieces(), headers=kind),
        httpx.post(url, content=b"x" * 1_000_000, headers=kind),
        httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}),
        httpx.post(url, content=b"{}", headers={**kind, "content-encoding": "gzip"}),
    ]
    statuses = [400, 400, 400, 400, 413, 413, 413, 415, 415]
    assert [answer.status_code for answer in refused] == statuses
    assert [row.status for row in server.ledger.rows()] == statuses
    for answer in refused:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_beyond_the_queue_requests_are_refused_and_told_when_to_come_back(start, echo) -> None:
    echo.gate.clear()
    server = start(ServeSettings(max_in_flight=1, max_queue=1), m=echo)
    url = f"{server.url}/v1/chat/completions"
    answers: list[httpx.Response] = []
    with beside(lambda: answers.append(httpx.post(url, json=BODY, timeout=60)), (), (), ()):
        until(lambda: len(answers) == 1)  # two have places, one is refused at once
        assert answers[0].status_code == 503
        assert answers[0].headers["retry-after"] == "2"
        assert answers[0].json()["error"]["code"] == "overloaded"
        assert httpx.get(f"{server.url}/health").status_code == 200
        echo.gate.set()
    assert [answer.status_code for answer in answers] == [503, 200, 200]
    assert httpx.post(url, json=BODY).status_code == 200  # places are given back


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_cut_off(start, echo, stream: bool) -> None:
    echo.gate.clear()
    server = start(ServeSettings(request_timeout_s=0.3), m=echo)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": stream})
    assert answer.status_code == (200 if stream else 504)  # a stream has begun by then
    assert '"code":"timeout"' in answer.text.replace(" ", "")
    assert echo.cancelled.wait(60)
    assert [row.status for row in server.ledger.rows()] == [504]


@pytest.mark.parametrize("stream", [False, True])
def test_work_is_cancelled_when_the_client_leaves(start, echo, stream: bool) -> None:
    echo.gate.clear()
    server = start(ServeSettings(max_in_flight=1, max_queue=0), m=echo)
    body = httpx.Request("POST", server.url, json={**BODY, "stream": stream}).content
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        assert echo.started.wait(60)
    assert echo.cancelled.wait(60)
    until(server.ledger.rows)
    assert [(row.status, row.error_code) for row in server.ledger.rows()] == [(499, "client_disconnected")]
    echo.gate.set()
    assert httpx.post(f"{server.url}/v1/chat/completions", json=BODY).status_code == 200  # its place is free


@pytest.fixture
def keys(tmp_path: Path) -> tuple[KeyStore, str, str]:
    store = KeyStore(tmp_path / "keys.db")
    return store, store.create("one", KeyPolicy())[1], store.create("other", KeyPolicy())[1]


def ask(server: Any, key: str, **values: Any) -> httpx.Response:
    head = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, **values}, headers=head, timeout=60)


@contextlib.contextmanager
def half_sent(server: Any, key: str, n: int) -> Iterator[list[socket.socket]]:
    """`n` connections that have sent a head and half a body, and send no more."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: 1000\r\n\r\n{{"
    )
    with contextlib.ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)) for _ in range(n)
        ]
        for line in lines:
            line.sendall(head.encode())
        time.sleep(0.2)
        yield lines


def test_slow_senders_of_one_key_keep_no_other_out(start, keys, label) -> None:
    store, one, other = keys
    server = start(ServeSettings(max_in_flight=4, max_queue=4), key_store=store, m=label)
    with half_sent(server, one, 20) as lines:
        assert ask(server, other).status_code == 200
        refused = lines[-1].recv(4096)  # beyond the key's own share
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"share of the server's requests" in refused
    until(lambda: ask(server, one).status_code == 200)


def test_answers_of_one_key_keep_no_other_out(start, keys, echo, label) -> None:
    store, one, other = keys
    echo.gate.clear()
    server = start(ServeSettings(max_in_flight=4, max_queue=4), key_store=store, m=echo, label=label)
    statuses: list[int] = []
    with beside(lambda: statuses.append(ask(server, one, stream=True).status_code), *[()] * 20):
        until(lambda: len(statuses) == 14)
        assert statuses == [429] * 14  # of eight places it has six, of four turns three
        assert ask(server, other, model="label").status_code == 200
        echo.gate.set()
    assert statuses[14:] == [200] * 6


def test_shares_leave_a_quarter_and_are_given_back() -> None:
    shares = Shares(64, "answers")
    with contextlib.ExitStack() as held:
        for key, most in (("a", 48), ("b", 12), ("c", 3)):
            for _ in range(most):
                held.enter_context(shares.hold(key))
            with pytest.raises(ApiError) as refused, shares.hold(key):
                raise AssertionError
            assert refused.value.status == 429
        held.enter_context(shares.hold("d"))
        with pytest.raises(ApiError) as full, shares.hold("e"):
            raise AssertionError
        assert full.value.status == 503
    assert shares.used == 0
    with shares.hold("a", 100):  # alone
        assert not shares.fits("b")


async def test_keys_take_turns_and_whoever_leaves_the_queue_takes_none() -> None:
    turns, order = Turns(1), list[str]()

    async def work(key: str, name: str) -> None:
        async with turns.turn(key):
            order.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group, turns.turn("z"):
        waiting = [group.create_task(work(name[0], name)) for name in ("a1", "a2", "a3", "a4", "b1")]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        assert order == []
    assert order == ["a1", "b1", "a3", "a4"]
    assert turns.used == 0


async def test_a_turn_that_is_granted_to_one_who_leaves_goes_on_to_the_next() -> None:
    turns = Turns(1)

    async def work(key: str) -> None:
        async with turns.turn(key):
            pass

    async with turns.turn("z"):
        tasks = [asyncio.create_task(work(key)) for key in ("a", "b")]
        await asyncio.sleep(0)
    tasks[0].cancel()  # its turn is granted, and it does not know yet
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled()
    assert tasks[1].done()
    assert turns.used == 0

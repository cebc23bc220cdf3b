"""Every queue, body and wait has an end, and the client is told which it was."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx
import pytest

from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY = {"model": "m", "messages": HELLO}


def wait_for(condition: Any) -> None:
    """Returns when `condition()` is true; fails after five seconds."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "waited for 5 s"
        time.sleep(0.01)


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
        httpx.post(url, content=b"x" * 1001, headers=kind),
        httpx.post(url, content=pieces(), headers=kind),
        httpx.post(url, content=b"x" * 1_000_000, headers=kind),
        httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}),
        httpx.post(url, content=b"{}", headers={**kind, "content-encoding": "gzip"}),
    ]
    statuses = [400, 400, 400, 413, 413, 413, 415, 415]
    assert [answer.status_code for answer in refused] == statuses
    assert [row.status for row in server.ledger.rows()] == statuses
    for answer in refused:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_beyond_the_queue_requests_are_refused_and_told_when_to_come_back(start, echo) -> None:
    echo.gate.clear()
    server = start(ServeSettings(max_in_flight=1, max_queue=1), m=echo)
    url = f"{server.url}/v1/chat/completions"
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(httpx.post(url, json=BODY, timeout=20))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answers) == 1)  # two have places, one is refused at once
    assert answers[0].status_code == 503
    assert answers[0].headers["retry-after"] == "2"
    assert answers[0].json()["error"]["code"] == "overloaded"
    assert httpx.get(f"{server.url}/health").status_code == 200
    echo.gate.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [503, 200, 200]
    assert httpx.post(url, json=BODY).status_code == 200  # places are given back


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_cut_off(start, echo, stream: bool) -> None:
    echo.gate.clear()
    server = start(ServeSettings(request_timeout_s=0.3), m=echo)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": stream})
    assert answer.status_code == (200 if stream else 504)  # a stream has begun by then
    assert '"code":"timeout"' in answer.text.replace(" ", "")
    assert echo.cancelled.wait(5)
    assert [row.status for row in server.ledger.rows()] == [504]


@pytest.mark.parametrize("stream", [False, True])
def test_work_is_cancelled_when_the_client_leaves(start, echo, stream: bool) -> None:
    echo.gate.clear()
    server = start(m=echo)
    body = httpx.Request("POST", server.url, json={**BODY, "stream": stream}).content
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        assert echo.started.wait(5)
    assert echo.cancelled.wait(5)
    wait_for(server.ledger.rows)
    assert [(row.status, row.error_code) for row in server.ledger.rows()] == [(499, "client_disconnected")]

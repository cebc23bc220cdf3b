"""A closed loop of clients over keep-alive sockets: each sends its next request when it has read its last answer.

Requests are bytes made beforehand and answers are kept unread, so that the clients take little of the cores that they
share with the server. Other requests run before the measured ones, to warm up, and after them until the last
measured one is answered, so all clients are busy from the first measured request to the last. No answer is retried.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Answer(NamedTuple):
    """What came back for one request."""

    status: int
    """HTTP status; 0 if the connection broke."""
    body: bytes
    seconds: float
    """From sending to the whole answer."""


class Load(NamedTuple):
    """One closed loop."""

    answers: tuple[Answer, ...]
    """Answers to the measured requests, in their order."""
    requests_per_s: float
    """Rate of all answers between the first measured request and the last measured answer."""


class Client:
    """One connection, opened again when the server closes it; opening is not part of a request's time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[Answer, float, float]:
        """An answer with the times of request and arrival."""
        if self._pipe is None:
            self._pipe = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._pipe
        began = time.perf_counter()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            head, body = b"", b""
        ended = time.perf_counter()
        if not head or b"connection: close" in head:
            self.close()
        return Answer(int(head[9:12] or 0), body, ended - began), began, ended

    def close(self) -> None:
        """Nothing back."""
        if self._pipe is not None:
            self._pipe[1].close()
            self._pipe = None


async def closed_loop(port: int, measured: Sequence[bytes], others: Sequence[bytes], *, clients: int) -> Load:
    """Send `measured`, once each, with `clients` at a time; `others` warm up, two a client, and fill the end."""
    answers: dict[int, Answer] = {}
    ends: list[float] = []
    first, last = float("inf"), 0.0
    numbers, spare = itertools.count(-2 * clients), itertools.cycle(others)

    async def work(client: Client, numbers: Iterator[int]) -> None:
        nonlocal first, last
        while len(answers) < len(measured):
            at = next(numbers)
            counted = 0 <= at < len(measured)
            answer, began, ended = await client.ask(measured[at] if counted else next(spare))
            ends.append(ended)
            if counted:
                answers[at] = answer
                first, last = min(first, began), max(last, ended)

    pool = [Client(port) for _ in range(clients)]
    await asyncio.gather(*(work(client, numbers) for client in pool))
    for client in pool:
        client.close()
    rate = sum(first < end <= last for end in ends) / (last - first)
    return Load(tuple(answers[at] for at in range(len(measured))), rate)


def post(path: str, body: dict[str, object], headers: dict[str, str]) -> bytes:
    """A whole HTTP/1.1 request."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content

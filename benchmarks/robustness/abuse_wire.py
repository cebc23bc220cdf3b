"""Requests as bytes on a socket, which no well-behaved client would send."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

CHAT = "/v1/chat/completions"
KEY, VICTIM, REVOKED, EXPIRED, NARROW = "<attacker>", "<victim>", "<revoked>", "<expired>", "<narrow>"
"""Placeholders for the random keys of a run."""


class Attack(NamedTuple):
    """One hostile exchange."""

    group: str
    name: str
    sent: tuple[bytes | float, ...]
    """Bytes to send and seconds to wait, in order."""
    allowed: frozenset[int] | None = None
    """Allowed statuses; None = any but 5xx. 0 = closed without an answer."""
    most_answers: int = 1
    """Most answers; one more means that a request was smuggled."""
    lingers: bool = False
    """True: after the first answer the client waits for more."""
    reads: bool = True
    """False: the client sends, reads nothing, and waits for the server to give up."""
    deadline_s: float = 15.0
    """Seconds within which the server must answer or close."""


class Answer(NamedTuple):
    """What came back."""

    statuses: tuple[int, ...]
    content: bytes
    """All bytes."""
    seconds: float
    closed: bool
    """The server closed the connection."""
    in_time: bool


def http(target: str = CHAT, *lines: str | bytes, body: bytes | None = None, **named: Any) -> bytes:
    """Return a request as bytes: GET without a body, else POST, unless `method` is given.

    `key=None` leaves the key out, `host=None` the Host, `length=None` the length.
    """
    method = named.get("method", "GET" if body is None else "POST")
    fields = [f"{method} {target} HTTP/1.1".encode("utf-8", "surrogateescape")]
    if (host := named.get("host", "localhost")) is not None:
        fields.append(f"Host: {host}".encode())
    if (key := named.get("key", KEY)) is not None:
        fields.append(f"Authorization: Bearer {key}".encode())
    if body is not None:
        fields.append(b"Content-Type: application/json")
        if (length := named.get("length", len(body))) is not None:
            fields.append(f"Content-Length: {length}".encode())
    fields += [line.encode() if isinstance(line, str) else line for line in lines]
    return b"\r\n".join(fields) + b"\r\n\r\n" + (body or b"")


def chat(**values: Any) -> bytes:
    """Return a body that is valid except for `values`; a value of `...` removes the field."""
    usual = {"model": "tiny", "messages": [{"role": "user", "content": "where is my card"}], "max_tokens": 4}
    return json.dumps({k: v for k, v in {**usual, **values}.items() if v is not ...}).encode()


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def with_keys(sent: bytes, keys: dict[str, str]) -> bytes:
    """The bytes with the keys of this run."""
    for name, key in keys.items():
        sent = sent.replace(name.encode(), key.encode())
    return sent


def exchange(attack: Attack, port: int, keys: dict[str, str]) -> Answer:
    """Send the attack. Raise OSError if the server accepts no connection."""
    began = time.monotonic()
    content, closed = bytearray(), False
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.settimeout(0.25)
        if not attack.reads:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for step in attack.sent:
            if isinstance(step, float):
                closed |= attack.reads and _read(line, content, step)
            elif not closed:
                closed = _send(line, with_keys(step, keys), content, began + attack.deadline_s)
        while not closed and time.monotonic() - began < attack.deadline_s:
            if not attack.reads:
                closed = _is_gone(line)
                time.sleep(0.2)
                continue
            closed = _read(line, content, 0.25)
            if _is_whole(bytes(content)):
                if attack.lingers:
                    _read(line, content, 0.4, to_the_end=True)
                break
        seconds = time.monotonic() - began
    answers = tuple(_statuses(bytes(content)))
    return Answer(answers, bytes(content), seconds, closed, closed or bool(answers))


def _send(line: socket.socket, data: bytes, content: bytearray, until: float) -> bool:
    """Return True if the server closed; keep what it sent meanwhile."""
    view = memoryview(data)
    while view and time.monotonic() < until:
        try:
            view = view[line.send(view) :]
        except TimeoutError:
            with suppress(TimeoutError, OSError):
                content += line.recv(65536)
        except OSError:
            _read(line, content, 0.2)
            return True
    return False


def _read(line: socket.socket, content: bytearray, seconds: float, *, to_the_end: bool = False) -> bool:
    """Read up to the first complete answer; return True if the server closed."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        line.settimeout(max(0.01, min(0.25, left)))
        try:
            piece = line.recv(1 << 20)
        except TimeoutError:
            continue
        except OSError:
            return True
        if not piece:
            return True
        content += piece
        if not to_the_end and _is_whole(bytes(content)):
            return False
    return False


def _is_gone(line: socket.socket) -> bool:
    """Return True if the server has dropped the connection, without reading anything."""
    watch = select.poll()
    watch.register(line, 0)  # only errors and hang-ups
    return bool(watch.poll(0))


def _heads(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Return status, head and body of each complete answer."""
    while content.startswith(b"HTTP/1."):
        head, gap, rest = content.partition(b"\r\n\r\n")
        if not gap:
            return
        status, fields = int(head.split()[1]), head.lower()
        if b"\r\ncontent-length:" in fields:
            n = int(fields.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n")[0])
            if status != 100 and len(rest) < n:
                return
        elif b"\r\ntransfer-encoding: chunked" in fields:
            end = rest.find(b"0\r\n\r\n")
            if end < 0:
                return
            n = end + 5
        else:
            n = 0 if status == 100 else len(rest)
        yield status, head, rest[:n]
        content = rest[n:]


def _is_whole(content: bytes) -> bool:
    """True if a final answer is there."""
    return any(status >= 200 for status, _, _ in _heads(content))


def _statuses(content: bytes) -> Iterator[int]:
    return (status for status, _, _ in _heads(content) if status >= 200)


def bodies(content: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer."""
    return [(status, body) for status, _, body in _heads(content) if status >= 200]

"""Time and size limits of HTTP connections, and refusal of requests that two parsers could read differently.

uvicorn waits for ever for the rest of a head, for the rest of a body that nobody reads, and for a client that does not
read; h11 accepts a Content-Length beside chunks, folded header lines, a head of any size in one piece, and LF alone as
the end of a line (RFC 9112, 2.2: a proxy before this server may see another request in it). The base classes are
uvicorn's H11Protocol and h11's ChunkedReader, whose internals may change between releases.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import resource
import socket
import struct
import sys
import termios
import time
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any, Literal, NamedTuple

import h11
from h11._readers import ChunkedReader
from uvicorn.protocols.http.h11_impl import H11Protocol

from smallfirst.base.records import Record
from smallfirst.serving.admission import Shares
from smallfirst.serving.errors import ApiError

_HEAD_END = re.compile(rb"\n\r?\n")
_FOLDED = re.compile(rb"\n[ \t]")
_ALONE = re.compile(rb"(?<!\r)\n|\r[^\n]")
_CHUNK_HEAD = re.compile(rb"[0-9A-Fa-f]+(;[^\r\n]*)?\r\n")
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:([^\r\n]*)", re.IGNORECASE)
_CODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Unavailable"}

_LATE_S = 0.1
"""Seconds by which a timer may be late."""

Phase = Literal["head", "body", "rest", "none"]
"""What the client must send: a head, a body, the rest of a body whose request is answered, or nothing."""


class ConnectionLimits(Record):
    """Limits of connections."""

    silent_s: float = 60.0
    """Longest time from the start of a connection to its first byte; then it is closed without a word."""
    head_s: float = 10.0
    """Longest time from the first byte of a head to its last."""
    body_s: float = 10.0
    """Longest time for a body, extended by its bytes."""
    body_bytes_per_s: int = 4096
    """Bytes of a body that extend its time by a second: a slower sender is cut off soon after `body_s`."""
    unread_s: float = 30.0
    """Longest time that a client may read nothing while there is something to send."""
    read_bytes_per_s: int = 500
    """Bytes a second that a client must read of a waiting answer."""
    max_head_bytes: int = 16 * 1024
    max_head_lines: int = 100
    max_connections: int = 2_000
    """Connections at once, and at most half of the files that the process may open. Addresses share them as keys share
    places: one alone, such as a proxy, has three quarters."""


class _Refusal(NamedTuple):
    status: int
    rule: str


class _StrictConnection(h11.Connection):
    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__(h11.SERVER, limits.max_head_bytes)
        self._limits = limits
        self.refusal: _Refusal | None = None

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self.refusal = self._check_head(self.trailing_data[0].lstrip(b"\r\n"))
        if self.refusal is not None:
            raise h11.RemoteProtocolError(self.refusal.rule, error_status_hint=self.refusal.status)
        event = super().next_event()
        if isinstance(event, h11.Request) and isinstance(self._reader, ChunkedReader):
            self._reader = _StrictChunks()
        return event

    def _check_head(self, waiting: bytes) -> _Refusal | None:
        if not waiting:
            return None
        end = _HEAD_END.search(waiting)
        head = waiting[: end.start()] if end else waiting
        if len(head) > self._limits.max_head_bytes:
            return _Refusal(431, f"the head is larger than {self._limits.max_head_bytes} bytes")
        if head.count(b"\n") > self._limits.max_head_lines:
            return _Refusal(431, f"the head has more than {self._limits.max_head_lines} lines")
        if _FOLDED.search(head):
            return _Refusal(400, "a header is folded over several lines")
        if _ALONE.search(waiting, 0, end.end() if end else len(waiting)):
            return _Refusal(400, "a line does not end with CR and LF")
        if end and not head.partition(b"\n")[0].rstrip(b"\r").endswith((b" HTTP/1.1", b" HTTP/1.0")):
            return _Refusal(400, "it is not HTTP/1.1")
        return _check_length(head) if end else None


def _check_length(head: bytes) -> _Refusal | None:
    """Check how a whole head gives the length of its body; h11 would accept two equal lengths."""
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        return _Refusal(400, "it has more than one content-length")
    if _CODING.search(head):
        if lengths:
            return _Refusal(400, "it has both content-length and transfer-encoding")
        if head.partition(b"\r\n")[0].endswith(b" HTTP/1.0"):
            return _Refusal(400, "it is HTTP/1.0 and has a transfer-encoding")
    return None


class _StrictChunks(ChunkedReader):
    """Refuses blanks and a lone CR in the head of a chunk, and a lone CR or LF in what follows the last one."""

    def __call__(self, buf: Any) -> Any:
        odd, start = False, len(self._bytes_to_discard)
        if self._reading_trailer:
            lines = b"\r\n" + bytes(buf)
            end = _HEAD_END.search(lines)
            odd = bool(_ALONE.search(lines, 0, end.end() if end else len(lines)))
        elif not self._bytes_in_chunk and buf._data.find(b"\r\n", start) >= 0:  # a whole head, not copied
            odd = not _CHUNK_HEAD.match(buf._data, start)
        if odd:
            raise h11.LocalProtocolError("a chunk that can be read in two ways")
        return super().__call__(buf)


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with deadlines; `limited_protocol` sets its limits."""

    limits = ConnectionLimits()
    peers = Shares(limits.max_connections, "connections")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: _StrictConnection = _StrictConnection(self.limits)
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._since_s, self._n_bytes, self._phase = time.monotonic(), 0, "none"
        self._peer: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # With no buffer, `pause_writing` is called as soon as the client does not read.
        transport.set_write_buffer_limits(high=0)
        peer = _network(self.client[0] if self.client else "")
        if not self.peers.fits(peer):
            self._refuse(503, "There are too many connections, or too many of yours; try again shortly.", "overloaded")
            return
        self._peer = peer
        self.peers.take(peer)
        self._watch(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(len(data))

    def on_response_complete(self) -> None:
        """Keep the clock running for a client that still sends the body of an answered request."""
        super().on_response_complete()
        self._watch(0)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        self._timer = self._unread = None
        if self._peer is not None:
            self.peers.give_back(self._peer)
            self._peer = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread(self._n_waiting())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        refusal = self.conn.refusal or _Refusal(400, "it is not HTTP/1.1")
        self._refuse(refusal.status, f"The request cannot be read: {refusal.rule}.", "invalid_http")

    def _now(self) -> Phase:
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        fresh = self.cycle is None or bool(self.conn.trailing_data[0])
        return "head" if self.conn.their_state is h11.IDLE and fresh else "none"

    def _watch(self, n_bytes: int) -> None:
        phase = self._now()
        if phase != self._phase or (n_bytes and self._silent):  # a head's time begins with its first byte
            self._phase, self._since_s, self._n_bytes = phase, time.monotonic(), 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if phase == "none":
            return
        self._n_bytes += n_bytes
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._left_s(), self._ring)

    @property
    def _silent(self) -> bool:
        """True until the first byte of the connection."""
        return self.cycle is None and not self._n_bytes

    def _left_s(self) -> float:
        given_s = self.limits.silent_s if self._silent else self.limits.head_s
        if self._phase == "body":
            given_s = self.limits.body_s + self._n_bytes / self.limits.body_bytes_per_s
        return self._since_s + given_s - time.monotonic()

    def _ring(self) -> None:
        """Refuse the request unless its time was extended or the server is the one that does not read."""
        self._timer = None
        if self.flow.read_paused:
            self._since_s = time.monotonic()
        if (left_s := self._left_s()) < -_LATE_S:  # the process was kept from reading what may have come meanwhile
            self._since_s -= 2 * left_s
            left_s = -left_s
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._ring)
        elif self._silent:
            self.transport.close()
        elif not self.transport.is_closing():
            self._refuse(408, "The rest of the request did not come in time.", "request_timeout")

    def _watch_unread(self, n_bytes: int) -> None:
        self._unread = self.loop.call_later(self.limits.unread_s, self._ring_unread, n_bytes)

    def _ring_unread(self, n_bytes: int) -> None:
        """Cut the client off unless it is slow but still reading."""
        left = self._n_waiting()
        if n_bytes - left >= self.limits.unread_s * self.limits.read_bytes_per_s:
            self._watch_unread(left)
        else:  # drop all unsent bytes, those in the kernel as well
            line = self.transport.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _n_waiting(self) -> int:
        """Return the bytes the client has not read: of this process, and of the kernel, which takes large blocks."""
        held = bytearray(4)
        with suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        return self.transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Send the reason, if no answer has begun, and close; the application sees a disconnect."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(status, message, code=code).body).encode()
            fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d" % len(body)
            self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n\r\n%s" % (status, _REASONS[status], fields, body))
        self.transport.close()


def limited_protocol(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """Return the class for `uvicorn.Config(http=…)`; raise the process's soft limit of open files as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS allows less than its hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * limits.max_connections)), hard))
    places = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    peers = Shares(places, "connections")
    return type("BoundedProtocol", (LimitedProtocol,), {"limits": limits, "peers": peers})


def _network(address: str) -> str:
    """Return an IPv4 address as it is, and of an IPv6 address the 64 bits that name its network."""
    if ":" not in address:
        return address
    host = IPv6Address(address)
    return str(host.ipv4_mapped or int(host) >> 64)

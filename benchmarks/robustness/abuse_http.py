"""Hostile HTTP: ambiguous heads, disguised paths, invalid keys, slow clients."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.robustness.abuse_bodies import ANSWERED_OR_REFUSED, REFUSED
from benchmarks.robustness.abuse_wire import CHAT, EXPIRED, KEY, NARROW, REVOKED, Attack, chat, chunked, http

SHUT = frozenset({0, 400, 401, 403, 404, 405, 408, 413, 414, 415, 431})
"""Refused, or closed without a word."""
_INNER = b"GET /v1/queue HTTP/1.1\r\nHost: localhost\r\n\r\n"


def all_http(draw: random.Random) -> Iterator[Attack]:
    """Every attack that is more than a body."""
    yield from _smuggling()
    yield from _sizes()
    yield from _paths()
    yield from _hosts()
    yield from _methods()
    yield from _headers()
    yield from _auth()
    yield from _noise(draw)


def _smuggling() -> Iterator[Attack]:
    body = chat()
    n = f"Content-Length: {len(body)}"
    heads: list[tuple[str, tuple[bytes | str, ...]]] = [
        ("CL.TE", (n, "Transfer-Encoding: chunked")),
        ("TE.CL", ("Transfer-Encoding: chunked", "Content-Length: 4")),
        ("CL twice, unequal", (n, "Content-Length: 0")),
        ("CL twice, equal", (n, n)),
        ("CL list", (f"Content-Length: {len(body)}, {len(body)}",)),
        ("TE folded", ("Transfer-Encoding:", " chunked")),
        ("CL folded", ("X: y", f" {n}", n)),
        ("TE twice", ("Transfer-Encoding: chunked", "Transfer-Encoding: identity")),
    ]
    codings = [
        "xchunked",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked;q=1",
        "\x0bchunked",
        "chun\x00ked",
        '"chunked"',
        "",
    ]
    heads += [(f"TE {coding!r}", (f"Transfer-Encoding: {coding}",)) for coding in codings]
    lengths = ["-1", "+5", "0x10", "1e3", "5 5", "9" * 40, "", " ", "5;", "\u0665", "1_0", "0.5"]
    heads += [(f"CL {length[:8]!r}", (f"Content-Length: {length}",)) for length in lengths]
    heads += [(f"bad field {line!r}"[:40], (line, n)) for line in (
        b"Content-Length : 5", b" X: y", b"X\x00: y", b"X: a\x00b", b"X: a\rContent-Length: 0", b": empty",
        b"no colon", b"X\xc3\xa4: y", b"X(): y",
    )]  # fmt: skip
    for name, lines in heads:
        for smuggled in (body + _INNER, chunked(body) + _INNER):
            sent = http(CHAT, *lines, "Content-Type: application/json", method="POST") + smuggled
            yield Attack("smuggling", name, (sent,), SHUT, lingers=True)
    starts = [
        b"GET /v1/queue HTTP/0.9", b"GET /v1/queue", b"GET  /v1/queue  HTTP/1.1", b"GET /v1/queue HTTP/9.9",
        b"GET\t/v1/queue\tHTTP/1.1", b"\x00", b"PRI * HTTP/2.0", b"GET /v1/queue HTTP/1.1 x",
        b"GET /v1/ queue HTTP/1.1", b"GET /v1/queue\x00 HTTP/1.1", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ]  # fmt: skip
    for start in starts:
        yield Attack("smuggling", repr(start)[:40], (start + b"\r\nHost: localhost\r\n\r\n",), SHUT, deadline_s=30)
    # The second request of a pipeline has no key of its own.
    good = http(body=body)
    yield Attack(
        "smuggling", "pipelined without a key", (good + _INNER,), frozenset({200, 401}), most_answers=2, lingers=True
    )
    yield Attack(
        "smuggling",
        "a body that is a request",
        (http(body=_INNER) + _INNER,),
        frozenset({400, 401}),
        most_answers=2,
        lingers=True,
    )
    hidden = http("/v1/models", method="GET", body=_INNER)
    yield Attack("smuggling", "GET with a body that is a request", (hidden,), ANSWERED_OR_REFUSED, lingers=True)


def _sizes() -> Iterator[Attack]:
    body = chat()
    post = http(CHAT, "Content-Type: application/json", "Transfer-Encoding: chunked", method="POST")
    big = b"x" * 65536
    cases: list[tuple[str, bytes, frozenset[int]]] = [
        ("1 MiB and one", http(body=b" " * (1024 * 1024 + 1)), frozenset({413})),
        ("3 MiB in chunks", post + chunked(*[big] * 48), frozenset({413})),
        ("length too small", http(body=body, length=10), frozenset({400})),
        ("chunk of 2**60", post + b"1000000000000000\r\nx", SHUT),
        ("chunk of -1", post + b"-1\r\nx\r\n", SHUT),
        ("chunk without a size", post + b"\r\n\r\n", SHUT),
        ("chunk size no hex", post + b"zz\r\nx\r\n", SHUT),
        ("chunk with a long extension", post + b"5;" + b"a" * 100_000 + b"\r\nhello\r\n0\r\n\r\n", SHUT),
        ("chunk longer than said", post + b"2\r\nhello\r\n0\r\n\r\n", SHUT),
        ("10,000 chunks of one byte", post + chunked(*[b" "] * 10_000), REFUSED),
        ("trailers", post + chunked(body)[:-2] + b"Authorization: Bearer x\r\n\r\n", ANSWERED_OR_REFUSED),
    ]
    for name, sent, allowed in cases:
        yield Attack("sizes", name, (sent,), allowed, deadline_s=40)


def _paths() -> Iterator[Attack]:
    """Yield requests without a key, which only /health and /ready answer, and with a user's key to admin routes."""
    closed = [
        "//health", "/health/", "/health%2f", "/health;/v1/queue", "/health/../v1/queue", "/HEALTH", "/v1/queue",
        "//v1//queue", "/v1/queue/", "/v1/./queue", "/v1/x/../queue", "/%76%31/queue", "/V1/QUEUE", "/metrics",
        "/metrics/", "/metrics?x=/health", "/docs", "/openapi.yaml", "/.env", "/.git/config", "/v1/queue%00",
        "/v1/queue#/health", "/health%00/v1/queue", "/v1/queue\\..\\health", "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00",
        "/v1/models/%0d%0aX-Injected:%201", "/v1/routers", "http://localhost/v1/queue",
        "http://evil.example/health", "https://localhost/health", "*", "/v1/%c0%ae%c0%ae/queue",
        "/v1/files/..%2f..%2fkeys.json", "/v1/models/" + "a" * 5000, "/v1/models/%s%s%n",
        "/v1/models/" + "%2e%2e%2f" * 100, "/?/health", "/v1/fine_tuning/jobs/..", "/keys.json",
    ]  # fmt: skip
    for path in closed:
        yield Attack("paths", f"no key {path[:40]}", (http(path, key=None),), frozenset({400, 401, 404}), deadline_s=30)
        yield Attack("paths", f"user {path[:40]}", (http(path),), frozenset({400, 401, 403, 404}), deadline_s=30)
    for line in (
        "X-Original-URL: /v1/queue",
        "X-Rewrite-URL: /v1/queue",
        "X-Forwarded-Prefix: /v1/queue",
        "X-HTTP-Method-Override: DELETE",
    ):
        yield Attack("paths", line, (http("/v1/models", line, key=None),), frozenset({401}))
    for extra in ("?model=other", "?" + "a=b&" * 2000, "?stream=true&stream=false", "?api_key=" + KEY):
        yield Attack("paths", f"chat{extra[:20]}", (http(CHAT + extra, body=chat()),), ANSWERED_OR_REFUSED)


def _hosts() -> Iterator[Attack]:
    for host in (
        "evil.example",
        "localhost@evil.example",
        "",
        "a" * 5000,
        "localhost:99999999",
        "localhost\t",
        "[::1",
        "[",
        "127.0.0.1/health?",
        "%00",
    ):
        yield Attack("hosts", f"no key {host[:30]!r}", (http("/v1/queue", key=None, host=host),), SHUT)
    yield Attack("hosts", "none", (http("/v1/queue", key=None, host=None),), SHUT)
    yield Attack("hosts", "two", (http("/v1/queue", "Host: evil.example", key=None),), SHUT)
    for line in (
        "X-Forwarded-Host: evil",
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
        "Origin: https://evil.example",
        "X-Real-IP: ::1",
    ):
        yield Attack("hosts", line, (http("/v1/queue", line, key=None),), frozenset({401}))


def _methods() -> Iterator[Attack]:
    for method in (
        "GET",
        "PUT",
        "DELETE",
        "PATCH",
        "TRACE",
        "CONNECT",
        "OPTIONS",
        "PROPFIND",
        "post",
        "A" * 5000,
        "P\u00d6ST",
        "GET\x00",
        "",
        "PURGE",
    ):
        yield Attack("methods", method[:20] or "none", (http(CHAT, method=method),), SHUT, deadline_s=30)
    for path in ("/v1/models", "/health", "/v1/queue", "/metrics"):
        for method in ("DELETE", "POST", "TRACE"):
            yield Attack("methods", f"{method} {path}", (http(path, method=method),), SHUT)
    yield Attack("methods", "HEAD", (http(CHAT, "Connection: close", method="HEAD"),), frozenset({0}))


def _headers() -> Iterator[Attack]:
    body = chat()
    for size in (20_000, 70_000, 1_000_000):
        yield Attack("headers", f"one of {size:,} bytes", (http(CHAT, "X: " + "a" * size, body=body),), SHUT)
        yield Attack("headers", f"a name of {size:,} bytes", (http(CHAT, "X" * size + ": a", body=body),), SHUT)
    for n in (150, 2_000, 50_000):
        yield Attack("headers", f"{n:,} of them", (http(CHAT, *[f"X-{i}: a" for i in range(n)], body=body),), SHUT)
    lines = [
        "Expect: 100-continue", "Expect: 200-maybe", "Range: bytes=0-", "Upgrade: websocket\r\nConnection: Upgrade",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings", "Accept: text/event-stream",
        "Cookie: " + "a=b; " * 1000, "Connection: keep-alive, close, x", "If-None-Match: *",
        "Accept-Encoding: gzip", "X-Request-Id: evil\u0009", "Traceparent: 00-x", "Content-Type: text/html",
        "Via: 1.1 x",
    ]  # fmt: skip
    for line in lines:
        yield Attack("headers", line[:30], (http(CHAT, line, body=body),), ANSWERED_OR_REFUSED)
    for kind in (
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data; boundary=" + "x" * 9000,
        "application/json\x00",
        "application/jsonp",
        "",
    ):
        sent = http(CHAT, f"Content-Type: {kind}", f"Content-Length: {len(body)}", method="POST") + body
        yield Attack("headers", f"type {kind[:25]}", (sent,), ANSWERED_OR_REFUSED)


def _auth() -> Iterator[Attack]:
    body = chat()
    wrong = [
        "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer null", f"Basic {KEY}", KEY, f"Bearer {KEY}x",
        f"Bearer x{KEY}", f"Bearer {KEY} {KEY}", f"Bearer {REVOKED}", f"Bearer {EXPIRED}",
        "Bearer sf-000000000000-" + "A" * 43, "Bearer sf-' OR 1=1 --", "Bearer \u00e9\u00e9",
        "Bearer " + "a" * 10_000, "Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer ${jndi:ldap://x}", "Digest x",
        "bearer", "Bearer\t" + KEY, f"Token {KEY}", "Bearer " + "0" * 64, f'Bearer "{KEY}"',
    ]  # fmt: skip
    for value in wrong:
        yield Attack(
            "keys", value[:40], (http(CHAT, f"Authorization: {value}", key=None, body=body),), frozenset({400, 401})
        )
    two = (f"Authorization: Bearer {KEY}", "Authorization: Bearer x")
    for lines in (two, two[::-1], two[:1] * 2):
        yield Attack("keys", "two headers", (http(CHAT, *lines, key=None, body=body),), frozenset({401}))
    for line in (f"X-Api-Key: {KEY}", f"Cookie: key={KEY}", f"Proxy-Authorization: Bearer {KEY}", f"Api-Key: {KEY}"):
        yield Attack("keys", f"in {line[:20]}", (http(CHAT, line, key=None, body=body),), frozenset({401}))
    yield Attack("keys", "in the address", (http(f"{CHAT}?api_key={KEY}", key=None, body=body),), frozenset({401}))
    yield Attack("keys", "a model that is not the key's", (http(key=NARROW, body=body),), frozenset({404}))
    yield Attack("keys", "an administrator's path", (http("/v1/queue"),), frozenset({403}))
    yield Attack("keys", "many requests, few a minute", (http("/v1/models", key=NARROW),), frozenset({200, 429}))


def _noise(draw: random.Random) -> Iterator[Attack]:
    for n in range(40):
        blob = draw.randbytes(draw.choice((1, 10, 100, 1_000, 20_000)))
        yield Attack("noise", f"{n} {len(blob):,} random bytes", (blob + b"\r\n\r\n",), SHUT, deadline_s=30)
    good = http(body=chat())
    for n in range(80):
        bent = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            bent[draw.randrange(len(bent))] = draw.randrange(256)
        yield Attack("noise", f"{n} bent", (bytes(bent),), SHUT | {200, 501}, most_answers=2, deadline_s=30)


def slow() -> Iterator[Attack]:
    """Yield slow clients, all at once."""
    body = chat()
    head = http(body=body, length=len(body))[: -len(body)]
    drip: tuple[bytes | float, ...] = tuple(x for n in range(60) for x in (b"X-%d: a\r\n" % n, 1.0))
    crumbs: tuple[bytes | float, ...] = tuple(x for byte in body[:70] for x in (bytes([byte]), 1.0))
    for n in range(10):
        yield Attack("slow", f"{n} says nothing", (), SHUT, deadline_s=60)
        yield Attack("slow", f"{n} half a head", (head[:30],), SHUT, deadline_s=60)
        yield Attack("slow", f"{n} a header a second", (head[:-2], *drip), SHUT, deadline_s=60)
        yield Attack("slow", f"{n} no body", (head,), SHUT, deadline_s=60)
        yield Attack("slow", f"{n} a byte of body a second", (head, *crumbs), SHUT, deadline_s=60)
        unauthorised = http(CHAT, key=None, body=b"", length=10**9)
        yield Attack(
            "slow", f"{n} refused and still sending", (unauthorised, *crumbs), SHUT, deadline_s=60, lingers=True
        )
    flood = http(body=chat(model="flood", stream=True))
    for n in range(10):
        yield Attack("slow", f"{n} stops reading a stream", (flood,), frozenset({0, 200}), reads=False, deadline_s=90)


def leaving() -> Iterator[Attack]:
    """Clients that go away in the middle."""
    body = chat(model="flood", stream=True)
    sent = http(body=body)
    for n in range(1, 40):
        yield Attack(
            "leaving", f"after {n}/40 of the request", (sent[: len(sent) * n // 40],), SHUT | {200}, deadline_s=0.05
        )
    for n in range(20):
        yield Attack("leaving", f"{n} in the middle of a stream", (sent, 0.05), SHUT | {200}, deadline_s=0.1)

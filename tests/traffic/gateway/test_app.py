"""What passes the proxy passes as it is; what cannot pass, and what it answers itself, has the shape of the API."""

import asyncio
import json
import socket

import pytest
from fixtures.gateway import run_gateway
from fixtures.waiting import until

from smallfirst.serving.errors import ApiError
from smallfirst.traffic.gateway import app
from smallfirst.traffic.gateway.app import Gateway, Handler
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer, json_response
from smallfirst.traffic.gateway.upstreams import Upstreams
from tests.traffic.gateway.conftest import Proxied, Script, answer, settings

CHAT = json.dumps({"messages": [{"role": "user", "content": "Grüße"}], "model": "gpt-4o"}, ensure_ascii=False).encode()


def post(path: str, body: bytes = CHAT, *more: str) -> str:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(body)}", *more]
    return "\n".join(lines)


def code(sent: tuple[str, dict[str, str], bytes]) -> tuple[str, str]:
    status, headers, body = sent
    assert json.loads(body)["error"]["code"] == headers["x-smallfirst-error"]
    return status.split(" ", 1)[1], headers["x-smallfirst-error"]


class Small:
    """Answers one text, watches another, fails on a third."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, UpstreamAnswer]] = []

    async def answer(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        asked = (request.json() or {})["ask"]
        if asked == "fail":
            raise RuntimeError(asked)
        request.watched = "known" if asked == "watch" else None
        return json_response({"answer": "small"}) if asked == "small" else None

    async def start(self) -> None: ...

    async def passed(self, request: GatewayRequest, answer: UpstreamAnswer) -> None:
        self.seen.append((request.id, answer))

    async def aclose(self) -> None: ...


def test_what_the_proxy_asks_on_its_own_account_has_a_size_and_a_time(
    proxied: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse:
        return json_response(len((await upstreams.ask(request)).body))

    async def drips(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            writer.write(b"x")
            await asyncio.sleep(0.1)

    monkeypatch.setattr("smallfirst.traffic.gateway.upstreams.MAX_BODY_BYTES", 100)
    monkeypatch.setitem(proxied.gateway.routes, ("POST", "/v1/own"), ask)
    proxied.upstream.script, proxied.other.script = answer(b"x" * 101), drips
    assert code(proxied.send(post("/v1/own"), CHAT)) == ("502 Bad Gateway", "upstream_invalid")
    slow = post("/v1/own", CHAT, "x-smallfirst-upstream: second")
    assert code(proxied.send(slow, CHAT)) == ("504 Gateway Timeout", "upstream_timeout")


def test_a_body_has_a_least_pace(proxied: Proxied, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = app.LIMITS.model_copy(update={"body_s": app.LIMITS.body_s / 300})
    monkeypatch.setattr(app, "LIMITS", limits)
    with run_gateway(Gateway(proxied.gateway.settings)) as port:
        status, _, body = proxied._replace(port=port).send(post("/v1/chat/completions", CHAT * 2), CHAT)
    assert (status, json.loads(body)["error"]["code"]) == ("HTTP/1.1 408 Request Timeout", "request_timeout")
    assert proxied.upstream.asked == []


def test_an_answer_to_head_has_a_length_and_no_body(proxied: Proxied) -> None:
    async def head(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 123\r\n\r\n")

    proxied.upstream.script = head
    status, headers, body = proxied.send("HEAD /v1/files/f HTTP/1.1\nHost: localhost\nConnection: close")
    assert (status.split()[1], headers["content-length"], body) == ("200", "123", b"")


def test_what_cannot_be_passed_on_is_refused(proxied: Proxied) -> None:
    get = "GET {} HTTP/1.1\nHost: localhost\nConnection: close"
    assert code(proxied.send(get.format("/metrics"))) == ("404 Not Found", "not_below_v1")
    assert code(proxied.send(get.format("/v1/%2e%2E/admin"))) == ("400 Bad Request", "invalid_path")
    upgrade = get.format("/v1/realtime").replace("close", "Upgrade\nUpgrade: websocket")
    assert code(proxied.send(upgrade + "\nConnection: close")) == ("501 Not Implemented", "websocket_not_supported")
    assert proxied.upstream.asked == []


def test_a_small_answer_takes_the_place_of_the_upstreams_and_is_counted(proxied: Proxied) -> None:
    proxied.gateway.local = small = Small()
    proxied.gateway.counts.clear()
    for asked in ("small", "fail", "watch", "pass"):
        body = json.dumps({"ask": asked}).encode()
        sent = proxied.send(post("/v1/chat/completions", body), body)
        assert sent[2] == (b'{"answer": "small"}' if asked == "small" else b"{}")
    assert [json.loads(asked.body)["ask"] for asked in proxied.upstream.asked] == ["fail", "watch", "pass"]
    ((_, seen),) = small.seen
    assert (seen.status, seen.body, seen.upstream) == (200, b"{}", "first")
    get = "GET /v1/smallfirst/status HTTP/1.1\nHost: localhost\nConnection: close"
    counted = {"small": 1, "passed": 3, "own": 1}
    assert json.loads(proxied.send(get)[2]) == {"requests": counted, "capture": None}


async def own(request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
    return json_response({"own": True}, 202)


async def passes(request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
    return None


async def refuses(request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
    raise ApiError(422, "no such option", code="invalid_option")


async def fails(request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("handler", "status", "error"),
    [(own, "202", None), (passes, "200", None), (refuses, "422", "invalid_option"), (fails, "500", "internal_error")],
)
def test_an_own_route_answers_passes_on_or_fails_in_openais_shape(
    proxied: Proxied, monkeypatch: pytest.MonkeyPatch, handler: Handler, status: str, error: str | None
) -> None:
    monkeypatch.setitem(proxied.gateway.routes, ("POST", "/v1/decisions"), handler)
    found, headers, _ = proxied.send(post("/v1/decisions"), CHAT)
    assert (found.split()[1], headers.get("x-smallfirst-error")) == (status, error)
    assert len(proxied.upstream.asked) == (handler is passes)


def test_a_model_chooses_its_upstream_and_is_renamed_there(proxied: Proxied) -> None:
    route = {"models": {"gpt-4o": {"upstream": "second", "name": "qwen"}}}
    proxied.gateway.settings = settings(proxied.upstream.port, proxied.other.port, **route)
    proxied.gateway.upstreams.settings = proxied.gateway.settings
    head = post("/v1/chat/completions", CHAT, "Authorization: Bearer sk-own", "Content-Type: application/json")
    assert proxied.send(head, CHAT)[0].split()[1] == "200"
    (asked,) = proxied.other.asked
    assert asked.line.startswith("POST /other/v1/chat/completions ")
    assert asked.headers["authorization"] == "Bearer sk-second"
    assert asked.body == CHAT.replace(b"gpt-4o", b"qwen")
    for body in (b'{"model": 7}', b'{"a": tru', b"[]"):  # names none
        proxied.send(post("/v1/chat/completions", body), body)
        assert proxied.upstream.asked[-1].body == body


def test_dead_slow_and_garbled_upstreams(proxied: Proxied) -> None:
    async def garbage(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x01garbage\r\n\r\n")

    async def hang(_: object, writer: asyncio.StreamWriter) -> None: ...

    async def close(_: object, writer: asyncio.StreamWriter) -> None:
        writer.close()

    to_second = "X-Smallfirst-Upstream: second"
    found = []
    for script in (garbage, hang, close):
        proxied.other.script = script
        found.append(code(proxied.send(post("/v1/responses", CHAT, to_second), CHAT)))
    assert found == [
        ("502 Bad Gateway", "upstream_invalid"),
        ("504 Gateway Timeout", "upstream_timeout"),
        ("502 Bad Gateway", "upstream_disconnected"),
    ]
    sent = proxied.send(post("/v1/responses", CHAT, "X-Smallfirst-Upstream: gone"), CHAT)
    assert code(sent) == ("502 Bad Gateway", "upstream_unreachable")


class Kept:
    """A capture that keeps all bodies in memory."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def wants(self, request: GatewayRequest) -> bool:
        return True

    def keep(self, request: GatewayRequest, answer: UpstreamAnswer) -> None:
        self.bodies.append(answer.body)


@pytest.mark.parametrize(("mark", "n_kept"), [(b"data: [DONE]\n\n", 1), (b"data: {}\n\n", 0)])
def test_a_stream_is_kept_though_its_client_goes_at_the_mark_of_its_end(
    proxied: Proxied, monkeypatch: pytest.MonkeyPatch, mark: bytes, n_kept: int
) -> None:
    async def script(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"data: {}\n\n" + mark[:7], mark[7:]):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0.01)

    kept, small = Kept(), Small()
    monkeypatch.setattr(proxied.gateway, "capture", kept)
    proxied.gateway.local, proxied.upstream.script = small, script
    body = json.dumps({"ask": "watch"}).encode()
    with proxied.send(post("/v1/chat/completions", body), body, read=False) as line:
        seen = b""
        while mark[7:] not in seen:
            seen += line.recv(65536)
    assert proxied.upstream.closed.wait(60)  # the upstream's work ends with its client
    assert kept.bodies == [b"data: {}\n\n" + mark] * n_kept
    until(lambda: len(small.seen) == n_kept)
    assert [answer.body for _, answer in small.seen] == kept.bodies


def test_a_head_may_be_large_but_not_of_any_size(proxied: Proxied) -> None:
    head = "GET /health HTTP/1.1\nHost: localhost\nConnection: close\nA: "
    assert [proxied.send(head + "x" * n)[0].split()[1] for n in (200_000, 300_000)] == ["200", "431"]


def test_what_two_parsers_could_read_differently_is_refused(proxied: Proxied) -> None:
    chunked = post("/v1/chat/completions", CHAT, "Transfer-Encoding: chunked")
    assert proxied.send(chunked, CHAT)[0].split()[1] == "400"
    assert proxied.upstream.asked == []


def test_a_client_that_offers_another_protocol_is_answered_in_this_one(proxied: Proxied) -> None:
    """Java's HttpClient offers HTTP/2 with each request, its body included."""
    offer = post("/v1/chat/completions", CHAT, "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    head = offer.replace("Connection: close", "Connection: close, Upgrade, HTTP2-Settings")
    assert proxied.send(head, CHAT)[0].split()[1] == "200"
    assert proxied.upstream.asked[0].body == CHAT


def raw(content: bytes) -> Script:
    """An upstream that sends these bytes and closes the connection."""

    async def script(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        writer.close()

    return script


def test_headers_of_the_proxy_come_from_the_proxy_alone(proxied: Proxied) -> None:
    lies = ("X-Smallfirst-Task: claims", "x-smallfirst-certified: true", "X-Smallfirst-Error: upstream_timeout")
    proxied.upstream.script = answer(b"{}", "200 OK", *lies, "X-Request-Id: r")
    _, headers, _ = proxied.send(post("/v1/chat/completions", CHAT, "TE: trailers", "X-Smallfirst-A: b"), CHAT)
    assert {name for name in headers if name.lower().startswith("x-")} == {"x-request-id"}
    assert not {"te", "x-smallfirst-a", "user-agent", "accept"} & set(proxied.upstream.asked[0].headers)


@pytest.mark.parametrize(
    ("kinds", "inert"),
    [
        *(
            ([kind], True)
            for kind in ("application/json; charset=utf-8", "text/event-stream", "audio/mpeg", "image/png")
        ),
        *(([kind], False) for kind in ("text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml", "text/xml")),
        *(([kind], False) for kind in ("image/svg+xml", "multipart/x-mixed-replace; boundary=x")),
        (["application/json;,text/html"], False),
        (["application/json", "text/html"], False),
        ([], False),
    ],
)
def test_what_a_browser_would_run_gets_no_origin(proxied: Proxied, kinds: list[str], inert: bool) -> None:
    head = "".join(
        f"{line}\r\n" for line in ["HTTP/1.1 200 OK", "Content-Length: 2", *(f"Content-Type: {k}" for k in kinds)]
    )
    proxied.upstream.script = raw(f"{head}\r\n{{}}".encode())
    _, headers, body = proxied.send("GET /v1/page HTTP/1.1\nHost: localhost\nConnection: close")
    added = {"content-security-policy": "sandbox", "x-content-type-options": "nosniff"}
    assert {name: headers.get(name) for name in added} == (dict.fromkeys(added) if inert else added)
    assert body == b"{}"


@pytest.mark.parametrize(
    "head",
    [
        *(f"HTTP/1.1 {status} Odd" for status in (999, 600, 199, 101, "-1", "2000", "20x")),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3",
        "HTTP/1.1 200 OK\r\nContent-Length: -2",
        "HTTP/1.1 200 OK\r\nX-A: a\x00b",
        "HTTP/1.1 200 OK\r\nX A: b",
        "SMTP 200 OK",
    ],
)
def test_what_is_not_http_is_502(proxied: Proxied, head: str) -> None:
    proxied.upstream.script = raw(f"{head}\r\n\r\n{{}}".encode())
    assert code(proxied.send(post("/v1/chat/completions"), CHAT))[0] == "502 Bad Gateway"


def test_a_length_beside_chunks_is_not_passed_on(proxied: Proxied) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    proxied.upstream.script = raw(head + b"5\r\nhello\r\n0\r\n\r\n")
    status, headers, body = proxied.send(post("/v1/chat/completions"), CHAT)
    found = status.split()[1], "hello" in body.decode(), "content-length" in headers
    assert found in (("200", True, False), ("502", False, True))


def test_an_upstream_that_a_client_names_must_be_there(proxied: Proxied) -> None:
    sent = proxied.send(post("/v1/responses", CHAT, "X-Smallfirst-Upstream: nobody"), CHAT)
    assert code(sent) == ("400 Bad Request", "unknown_upstream")
    assert proxied.upstream.asked == []


@pytest.mark.parametrize("lines", ["X: a\nTransfer-Encoding: chunked\r\n", "Content-Length: 2\r\nX: a\nY: b\r\n"])
def test_a_line_that_ends_with_lf_alone_reaches_no_upstream(proxied: Proxied, lines: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode()
    with socket.create_connection(("127.0.0.1", proxied.port), timeout=60) as line:
        line.sendall(head + b"2\r\n{}\r\n0\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert line.recv(65536) == b""  # closed
    assert proxied.upstream.asked == []

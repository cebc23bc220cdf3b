import pytest

from tests.gateway.conftest import Proxied

pytest.importorskip("httptools")

from smallfirst.gateway import connections

HEAD = "GET /v1/models HTTP/1.1\nHost: localhost"


def test_a_head_that_never_ends_is_refused(proxied: Proxied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HEAD_BYTES", 20_000)
    with proxied.send("GET /v1/models HTTP/1.1\nA: b", read=False) as line:
        line.recv(1)  # the first head is whole and answered
        line.sendall(b"GET /v1/models HTTP/1.1\r\nA: " + b"x" * 30_000)
        said = b""
        while piece := line.recv(65536):
            said += piece
    assert b"HTTP/1.1 431 Request Header Fields Too Large\r\n" in said
    assert b'"code": "head_too_large"' in said


def test_a_head_that_comes_too_slowly_is_refused(proxied: Proxied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    with proxied.send(HEAD, read=False) as line:
        line.sendall(b"GET /v1")
        said = b""
        while piece := line.recv(65536):
            said += piece
    assert b"HTTP/1.1 408 Request Timeout\r\n" in said


def test_what_is_not_http_is_refused_in_openais_shape(proxied: Proxied) -> None:
    status, headers, _ = proxied.send("NONSENSE\nNONSENSE", b"")
    assert (status, headers["x-smallfirst-error"]) == ("HTTP/1.1 400 Bad Request", "invalid_http")

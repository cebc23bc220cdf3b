"""What an HTTP session takes from the environment, and what it refuses to read."""

from __future__ import annotations

import ssl

import pytest

from smallfirst.models.remote import http
from smallfirst.models.remote.http import BlockingSession, ConnectionBroken, HttpSession
from tests.models.remote.test_client import Server, reply, server

__all__ = ["server"]


def test_proxy_of_the_environment_is_used_except_where_it_says_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "internal.example.com")
    assert http.proxy_for("https://api.example.com/v1") == "http://proxy:3128"
    assert http.proxy_for("https://internal.example.com/v1") is None


def test_https_trusts_the_certificates_of_the_system_or_else_those_of_certifi(monkeypatch: pytest.MonkeyPatch) -> None:
    assert http.certificates("http://api.example.com/v1") is True
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)
    context = http.certificates("https://api.example.com/v1")
    assert isinstance(context, ssl.SSLContext)
    assert context.get_ca_certs()


def test_line_beyond_the_limit_breaks_the_stream(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LINE_BYTES", 100)
    server.deeds = [reply("200 OK", b"data:" + b"x" * 200)]
    with BlockingSession(lambda: HttpSession(server.url, timeout_s=60)) as session:
        response = session.send("POST", "/", {})
        with pytest.raises(ConnectionBroken, match="a line of more than 100 bytes"):
            list(session.events(response))

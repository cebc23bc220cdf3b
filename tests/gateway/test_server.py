from tests.gateway.conftest import Proxied
from tests.gateway.test_app import CHAT, post


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

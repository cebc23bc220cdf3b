"""Addresses in any writing, and URLs that open something."""

from __future__ import annotations

import pytest

from smallfirst.data.redaction import redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('"ann smith"@example.com!', "[EMAIL]!"),
        ("ann [at] example [dot] com!", "[EMAIL]!"),
        ("ann AT example DOT com", "[EMAIL]"),
        ("邮箱wang@example.cn谢谢", "邮箱[EMAIL]谢谢"),
        ("ann@[192.168.0.1]", "[EMAIL]"),
        ("u\u0308ber@mu\u0308ller.example", "[EMAIL]"),
        ("jdbc:oracle:thin:scott/t1ger@db:1521/XE", "[URL]"),
        ("see https://hooks.slack.com/services/T0/B0/x", "see [URL]"),
        ("meet at noon at example dot", "meet at noon at example dot"),
        ("look at this. dot com boom", "look at this. dot com boom"),
    ],
)
def test_addresses(text: str, clean: str) -> None:
    assert redact(text).text == clean

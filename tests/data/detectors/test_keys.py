"""Keys are told from words, hashes and ids."""

from __future__ import annotations

import pytest

from benchmarks.traffic.secret_forms import Maker
from smallfirst.data.detectors.keys import key_spans
from smallfirst.data.redaction import redact

MAKE = Maker(3)
STAYS = [
    "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "call_9pw1qnYScqvGrCH58HWCvFH6x8y7Za3b",
    "sk-learn and task-based-approaches-2024",
    "9b2d6c3e-0f5a-4c8e-9a43-1f0f3a1b2c3d", "commit 6367c48dd193d56ea7b0baad25b19455e529f5ee",
    "sha256:" + "ab12" * 16,
    "testShouldReturn404WhenUserIsNotFoundInTheDatabase",
    "src/main/java/org/example/ParserV2/TokenReader3Test.java", "AKIAIOS",
    "https://example.com/a-long-path/of-2024/with-words/and-more-words-7", "-----BEGIN CERTIFICATE-----\nMIIB",
]  # fmt: skip


@pytest.mark.parametrize("text", STAYS)
def test_what_opens_nothing_stays(text: str) -> None:
    assert list(key_spans(text)) == []


def test_a_private_key_goes_from_head_to_foot_and_as_far_as_it_was_copied() -> None:
    head, foot = (f"-----{word} PRIVATE {'KEY'}-----" for word in ("BEGIN", "END"))
    body = MAKE.base64(64)
    whole, cut = f"{head}\n{body}\n{foot}", f"{head}\n{body}"
    assert redact(f"see {whole} ok").text == redact(f"see {cut} ok").text == "see [KEY] ok"


def test_an_unknown_key_is_told_by_chance_alone() -> None:
    token = MAKE.token("", 44)
    assert list(key_spans(f"x {token}.")) == [(2, 46)]

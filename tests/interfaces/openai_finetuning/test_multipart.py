"""A form in pieces of any size is the same form, and never more of it is kept than is allowed."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from starlette.requests import Request as HttpRequest

from smallfirst.interfaces.openai_finetuning.multipart import UploadForm, receive_form
from smallfirst.serving.admission import ClientDisconnected
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.plugins import PluginRequest

ROWS = b'{"a": 1}\r\n--not the end\r\n\r\n\x00\xff'
BODY = (
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="r\xc3\xa4.jsonl"\r\nContent-Type: a/b\r\n\r\n'
    + ROWS
    + b'\r\n--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--B--\r\n'
)
GONE = {"type": "http.disconnect"}


def read(body: bytes, *, at_once: int, max_bytes: int = 1000, ends: bool = True) -> tuple[UploadForm, bytes]:
    """The form and the file's content, the body arriving in pieces."""
    pieces = [body[i : i + at_once] for i in range(0, len(body), at_once)]
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages += [{"type": "http.request", "more_body": False}] if ends else [GONE]
    file = io.BytesIO()
    scope = {"type": "http", "query_string": b"", "headers": [(b"content-type", b"multipart/form-data; boundary=B")]}

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    try:
        return asyncio.run(
            receive_form(PluginRequest(HttpRequest(scope, receive)), file, max_bytes=max_bytes)
        ), file.getvalue()
    finally:
        assert len(file.getvalue()) <= max_bytes


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 50, 1000])
def test_pieces_of_any_size_make_the_same_form(at_once: int) -> None:
    assert read(BODY, at_once=at_once) == (UploadForm({"purpose": "fine-tune"}, "rä.jsonl", len(ROWS)), ROWS)


@pytest.mark.parametrize("n_bytes", [1001, 1999, 2500, 100_000])
def test_no_more_is_kept_than_is_allowed(n_bytes: int) -> None:
    start = BODY[: BODY.index(ROWS)]
    with pytest.raises(ApiError, match="larger than 1000 bytes") as caught:
        read(start + b"x" * (n_bytes - len(start)), at_once=100)
    assert caught.value.status == 413


def test_a_broken_form_is_read_to_its_end_before_it_is_refused() -> None:
    with pytest.raises(ApiError, match="more than one file") as caught:
        read(BODY[: BODY.index(b"--B", 3)] + BODY, at_once=10)
    assert caught.value.status == 400


def test_a_client_that_leaves_sends_no_form() -> None:
    with pytest.raises(ClientDisconnected):
        read(BODY[:40], at_once=10, ends=False)

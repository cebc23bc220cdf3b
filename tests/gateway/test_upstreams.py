"""A model's name is found in a body, and nothing else of it is changed."""

from __future__ import annotations

import json

import pytest

from smallfirst.gateway.upstreams import find_model, with_model

JSON_TYPE = b"application/json"


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"gpt-4o"}',
        ' {\n "messages" : [{"model": "no", "content": "\\"model\\": \\"no\\""}] ,\t"model" : "gpt-4o" , "n": 1e3}',
        '{"text": "Grüße 😀", "model": "gpt-4o", "more": "ß"}',
        '{"model": "first", "model": "gpt-4o"}',
    ],
)
def test_only_the_bytes_of_the_name_change(body: str) -> None:
    found = find_model(JSON_TYPE, body.encode())
    assert found is not None
    assert found.name == "gpt-4o"
    changed = with_model(JSON_TYPE, body.encode(), found, 'a"b')
    assert changed.decode() == body[::-1].replace('"gpt-4o"'[::-1], json.dumps('a"b')[::-1], 1)[::-1]


@pytest.mark.parametrize("body", ["", "[]", "7", '{"model": 7}', '{"model"}', '{"a": 1}', '{"a": tru', "\ud800"])
def test_a_body_without_a_model_has_none(body: str) -> None:
    assert find_model(JSON_TYPE, body.encode("utf-8", "surrogatepass")) is None


def test_a_field_of_a_form() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\xff\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n\r\nwhisper-1\r\n--b--\r\n'
    )
    kind = b"multipart/form-data; boundary=b"
    found = find_model(kind, body)
    assert found is not None
    assert found.name == "whisper-1"
    assert with_model(kind, body, found, "tiny") == body.replace(b"whisper-1", b"tiny")

"""A model's name is found in a body, and replaced in it."""

from __future__ import annotations

import json

import pytest

from smallfirst.traffic.gateway.http import GatewayRequest
from smallfirst.traffic.gateway.upstreams import model_of, with_model


def request(body: bytes) -> GatewayRequest:
    return GatewayRequest("POST", "/v1/any", b"", [(b"content-type", b"application/json")], body)


def test_only_the_name_changes() -> None:
    body = {"text": "Grüße 😀", "model": "gpt-4o", "messages": [{"model": "no"}], "n": 1e3}
    asked = request(json.dumps(body).encode())
    assert model_of(asked) == "gpt-4o"
    assert json.loads(with_model(asked, 'a"b')) == {**body, "model": 'a"b'}


@pytest.mark.parametrize("body", ["", "[]", "7", '{"model": 7}', '{"model"}', '{"a": 1}', '{"a": tru', "\ud800"])
def test_a_body_without_a_model_has_none(body: str) -> None:
    assert model_of(request(body.encode("utf-8", "surrogatepass"))) is None

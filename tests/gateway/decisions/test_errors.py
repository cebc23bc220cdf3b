"""Errors have the shape of the route, name their place, and carry an upstream's own words."""

from __future__ import annotations

import json

import pydantic
import pytest

from smallfirst.gateway.decisions.errors import invalid_request, refuse, upstream_error
from smallfirst.gateway.http import UpstreamAnswer
from smallfirst.serving.openai.errors import ApiError
from smallfirst.traffic.decisions import openai_shape, systemone_shape

DECISIONS, SYSTEM_ONE = openai_shape.ROUTE, systemone_shape.ROUTE


def refused(shape, body):
    with pytest.raises(pydantic.ValidationError) as found:
        shape.read_request(body)
    return found.value


def test_openais_error_names_the_field_and_never_repeats_what_was_sent(ticket):
    ticket["questions"][1]["choices"] = [{"value": "secret"}]
    response = invalid_request(DECISIONS, refused(openai_shape, {**ticket, "temperature": 0}))
    error = json.loads(response.body)["error"]
    assert (response.status, error["type"], error["param"]) == (400, "invalid_request_error", "questions[1].choices")
    assert "temperature: Extra inputs are not permitted" in error["message"]
    assert "secret" not in error["message"]
    assert dict(response.headers)[b"x-smallfirst-error"] == b"invalid_request"


def test_many_broken_rules_are_counted(ticket):
    error = refused(openai_shape, {**ticket, **{f"a{i}": 1 for i in range(8)}})
    assert json.loads(invalid_request(DECISIONS, error).body)["error"]["message"].endswith("; and 3 more")


def test_typesafes_error_has_places_from_the_body_on():
    response = invalid_request(SYSTEM_ONE, refused(systemone_shape, {"model": "jev", "state": "x", "questions": {}}))
    (detail,) = json.loads(response.body)["detail"]
    assert (response.status, detail["loc"]) == (422, ["body", "questions"])
    assert json.loads(refuse(SYSTEM_ONE, ApiError(502, "It broke.")).body) == {"detail": "It broke."}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "Slow down."}}', "Slow down."),
        (b'{"detail": [{"msg": "Field required"}, {"msg": "Too long"}]}', "Field required; Too long"),
        (b'{"detail": {"message": "No model."}}', "No model."),
        (b'{"error": "Bad key"}', "Bad key"),
        (b"<html>", "The upstream refused the request with HTTP 429."),
        (b'{"a": 1}', "The upstream refused the request with HTTP 429."),
    ],
)
def test_an_upstreams_words_and_its_wait_are_passed_on(body, said):
    answer = UpstreamAnswer(429, [(b"retry-after", b"3"), (b"content-length", b"9")], body, "u", 1.0)
    ours = upstream_error(DECISIONS, answer)
    assert (ours.status, json.loads(ours.body)["error"]["message"]) == (429, said)
    assert dict(ours.headers)[b"retry-after"] == b"3"
    assert b"content-length" not in dict(ours.headers)
    assert json.loads(upstream_error(SYSTEM_ONE, answer).body) == {"detail": said}

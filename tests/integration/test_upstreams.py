"""A server in front of an endpoint: what its clients get and its ledger shows, whatever the endpoint does."""

import json
from typing import Any

import httpx
import pytest
from fixtures.certificates import certificate

from smallfirst.ledger.rows import AttemptRow
from smallfirst.routing.router import Router
from tests.models.remote.test_client import BUSY, OK, Deed, Server, reply, say_and_hang_up, server
from tests.models.remote.test_model_hostile import INVALID

upstream = server
BODY = {"model": "m", "messages": [{"role": "user", "content": "Is it?"}]}
PRICE = 16e-6  # 3 tokens at $2 and 1 at $10 a million
LOST = "took the request and gave no answer"


def ask(start: Any, model: Any) -> tuple[httpx.Response, Any, list[tuple[str, float | None]]]:
    """Return the response, its ledger row, and the outcome and cost of each attempt."""
    started = start(m=model)
    answer = httpx.post(f"{started.url}/v1/chat/completions", json=BODY)
    (row,) = started.ledger.rows()
    attempts = started.ledger.entries(AttemptRow, id=row.id)
    return answer, row, [(attempt.outcome, attempt.cost_usd) for attempt in attempts]


@pytest.mark.parametrize(
    ("deeds", "status", "message", "outcomes"),
    [
        ([OK], 200, "", [("answered", PRICE)]),
        ([BUSY, reply("429 Slow Down"), OK], 200, "", [("HTTP 503", 0), ("HTTP 429", 0), ("answered", PRICE)]),
        ([reply("425 Too Early"), OK], 200, "", [("HTTP 425", 0), ("answered", PRICE)]),
        ([reply("500 Oops"), OK], 502, f"{LOST}: status 500.", [("HTTP 500", None)]),
        ([say_and_hang_up(b""), OK], 502, f"{LOST}: the connection broke off.", [("broken off", None)]),
        (
            [reply("200 OK", INVALID["negative usage"].encode()), OK],
            502,
            "gave no usable answer: usage.prompt_tokens: Input should be greater than or equal to 0.",
            [("invalid answer", None)],
        ),
        ([reply("400 Bad Request"), OK], 502, "gave no usable answer: status 400.", [("HTTP 400", 0)]),
    ],
)
def test_every_attempt_is_in_the_ledger_and_nothing_that_may_be_paid_is_repeated(
    start, upstream: Server, deeds: list[Deed], status: int, message: str, outcomes: list[tuple[str, float | None]]
) -> None:
    upstream.deeds = deeds
    answer, row, attempts = ask(start, upstream.model())
    assert (answer.status_code, row.status) == (status, status)
    assert attempts == [(outcome, cost and pytest.approx(cost)) for outcome, cost in outcomes]
    assert len(upstream.heads) == len(outcomes)
    if status == 200:
        assert row.cost_usd == pytest.approx(sum(cost for _, cost in attempts))
    else:
        assert answer.json()["error"]["message"] == f'The model behind "m" {message}'
        assert (row.cost_usd or 0) >= 0
        assert (row.cost_usd is not None) == (outcomes[-1][0] == "invalid answer") == row.estimated


def test_an_answer_that_falls_back_to_the_draft_has_the_drafts_cost_beside_an_attempt_of_unknown_cost(
    start, label, upstream: Server
) -> None:
    upstream.deeds = [reply("500 Oops", b"at /secret/path")]
    answer, row, attempts = ask(start, Router(label, upstream.model(), certificate(1.0)))
    assert (answer.status_code, row.stage, row.cost_usd) == (200, "small", 0.25)
    assert attempts == [("HTTP 500", None)]
    assert "/secret" not in answer.text + str(answer.headers)


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID.keys())
def test_nothing_invalid_reaches_a_client(start, upstream: Server, content: str) -> None:
    upstream.deeds = [reply("200 OK", content.encode())]
    answer, row, _ = ask(start, upstream.model())
    error = json.loads(answer.content, parse_constant=pytest.fail)["error"]
    assert (answer.status_code, error["code"], row.estimated) == (502, "bad_answer", True)
    assert 0 < row.cost_usd < 1
    assert ": " in error["message"]
